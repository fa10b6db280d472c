"""Peak memory, time and work of compressing a large model, made on the spot with random weights.

    python benches/large.py 350m [--method gptq] [--text PATH] [--folder DIR] [--threads N] [-- OPTIONS]

The model is a Llama of that size in bfloat16 shards (tests/large_models.py); its text the standard library's.
The run goes through `tritpress compress --no-finetune` as a user's does. Printed are the largest resident set
of the worker process as the kernel kept it (VmHWM) and the largest seen in each step, wall and processor
seconds, and the seconds of each step.
OPTIONS go to `tritpress compress` as they are.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from large_models import SIZES, make_llama
from tritpress.text import builtin_splits

EVERY = 0.2


class Watch(threading.Thread):
    """Notes the peak resident set and the processor time of a process and of those it started."""

    def __init__(self, runs: Path) -> None:
        super().__init__(daemon=True)
        self.runs, self.peak_kb, self.cpu_s = runs, {}, {}
        self.largest_kb: dict[str, int] = {}  # of each step, as seen every `EVERY` seconds

    def run(self) -> None:
        while True:
            for record in self.runs.glob("*/run.json"):
                try:
                    pid = json.loads(record.read_text())["pid"]
                except (ValueError, KeyError, OSError):
                    continue
                step = _step(record.parent)
                for one in [pid, *_children(pid)] if pid else ():
                    self._note(one, step)
            time.sleep(EVERY)

    def _note(self, pid: int, step: str) -> None:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return
        if "VmHWM:" in status:
            self.peak_kb[pid] = int(status.split("VmHWM:")[1].split()[0])
            now = int(status.split("VmRSS:")[1].split()[0])
            self.largest_kb[step] = max(now, self.largest_kb.get(step, 0))
            self.cpu_s[pid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _step(run: Path) -> str:
    """The name of the step that is running, as far as the run has told."""
    try:
        steps = json.loads((run / "snapshot.json").read_text())["steps"]
    except (OSError, ValueError, KeyError):
        return "load"
    return next((step["name"] for step in steps if step["state"] == "running"), "between steps")


def _children(pid: int) -> list[int]:
    try:
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def write_text(folder: Path) -> Path:
    """The built-in text as files."""
    splits = builtin_splits()
    for part in (splits.calibration, splits.fine_tuning, splits.validation, splits.held_out):
        for document in part:
            path = folder / document.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(document.text, encoding="utf-8")
    return folder


def measure(model: Path, text: Path, folder: Path, method: str, threads: int | None, more: list[str]) -> Any:
    runs = folder / "runs"
    words = [sys.executable, "-m", "tritpress", "compress", str(model), "-o", str(folder / "out"), "--json"]
    words += ["--method", method, "--no-finetune", "--runs", str(runs), "--overwrite", *more]
    words += ["--text", str(text)] if method == "gptq" else []
    words += ["--threads", str(threads)] if threads else []
    watch = Watch(runs)
    watch.start()
    started = time.perf_counter()
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode not in (0, 3):
        sys.exit(done.stderr)
    report = json.loads(done.stdout)
    return {
        "parameters": report["model"]["parameters"],
        "method": method,
        "peak_gb": max(watch.peak_kb.values()) * 1024 / 1e9,
        "largest_gb": {step: kb * 1024 / 1e9 for step, kb in watch.largest_kb.items()},
        "wall_s": seconds,
        "cpu_s": sum(watch.cpu_s.values()),
        "steps": {step["name"]: step["seconds"] for step in report["steps"]},
        "ratio_file": report["ratio_file"],
        "handoff": [item["name"] for item in report["handoff"] if item["passed"] is False],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("--method", choices=("gptq", "fast"), default="gptq")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--folder", type=Path, help="keep model and outputs there")
    parser.add_argument("--threads", type=int)
    parser.add_argument("more", nargs="*", help="options of tritpress compress, after --")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        model = folder / arguments.size
        if not model.is_dir():
            make_llama(model, *SIZES[arguments.size])
        text = arguments.text or write_text(folder / "text")
        found = measure(model, text, folder, arguments.method, arguments.threads, arguments.more)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
