"""Takes pictures of every tab of the page: empty, running, failed and finished, light, dark, narrow and wide.

`python tests/screenshots.py` replays the runs it shows and writes to tests/screenshots; `--run RUN_DIR` shows
that finished run instead of a replayed one (`--other RUN_DIR` one whose gates failed), `--only
finished-overview` takes what is named so alone. `--readme docs/pictures`: the README's six instead, small.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from browser_helpers import CHROMIUM, free_port
from dashboard_log import events, make_run, write_run
from tritpress.events import EventWriter
from tritpress.runs.labels import edit_labels

TABS = ("runs", "overview", "progress", "metrics", "quality", "outputs", "compare", "diff", "tuning")
WIDTHS = (1440, 800)
SPOT_WIDTHS = (360, 2560)
TENSOR = "model.layers.3.mlp.down_proj.weight"
TALLEST = 6000
README = {
    "progress": ("dark", "?run=running&tab=progress", 860, False),
    "metrics": ("dark", "?run=finished&tab=metrics", 1150, False),
    "quality": ("light", "?run=finished&tab=quality", 900, False),
    "compare": ("light", "?run=finished,gate-failed&tab=compare", 1150, False),
    "diff": ("dark", f"?run=finished&tab=diff&tensor={TENSOR}", 1290, False),
    "tuning": ("light", "?run=finished&tab=tuning&threshold=0.9", 860, False),
}
"""Theme, query, height and whether the sidebar is shown, of the README's pictures."""
README_COLOURS = 256
BROKE = "Memory ran out at model.layers.2.self_attn.v_proj.weight: 3.1 GB were wanted, 2.0 GB are free."


def make_runs(folder: Path, real: Path | None, other: Path | None) -> None:
    """Runs in every state, this process being the worker of those at work."""
    finished = folder / "finished"
    if real is not None:
        shutil.copytree(real, finished, symlinks=True)
    else:
        write_run(folder, "finished", name="Llama 126", layers=126, steps=400, details=True)
    edit_labels(finished, name="ratio 8, fine-tuned", tags=["ratio 8", "fine-tuned"], note="The one to keep.")
    if other is not None:
        shutil.copytree(other, folder / "gate-failed", symlinks=True)
        edit_labels(folder / "gate-failed", name="one plane everywhere", tags=["one plane"], note="")
    else:
        write_run(
            folder,
            "gate-failed",
            name="one plane everywhere",
            details=True,
            failing_gate="perplexity",
            config={"planes": 1},
        )
    part(folder, "running", "Llama 126 at ratio 6", layers=126, done=470, details=True)
    part(folder, "training", "fine-tuning again", layers=6, steps_done=70)
    broken = part(folder, "failed", "ran out of memory", layers=6, done=17)
    with_writer(
        broken,
        "run.failed",
        error=BROKE,
        where="step 4",
    )
    broken.update_run(
        status="failed",
        exit_code=1,
        error=BROKE,
    )
    make_run(folder, "queued", name="next in line", status="queued")


def part(
    folder: Path,
    run_id: str,
    name: str,
    layers: int,
    done: int = 0,
    steps_done: int = 0,
    details: bool = False,
) -> Any:
    """A run that has come as far as `done` tensors or `steps_done` training steps."""
    run = make_run(folder, run_id, name=name)
    writer, seen = EventWriter(run.path), 0
    for kind, fields in events(run, layers, name=name, steps=200, details=details):
        writer.emit(kind, **fields)
        seen += kind == ("finetune.step" if steps_done else "layer.finished")
        if seen == (steps_done or done) and kind == "step.progress":
            break
    writer.close()
    return run


def with_writer(run: Any, kind: str, **fields: Any) -> None:
    writer = EventWriter(run.path)
    writer.emit(kind, **fields)
    writer.close()


class Server:
    """The page on a folder of runs, in a process of its own."""

    def __init__(self, folder: Path) -> None:
        port = free_port()
        code = (
            f"from tritpress.dashboard.app import serve; serve({str(folder)!r}, {port}, require_token=False)"
        )
        self.process = subprocess.Popen([sys.executable, "-c", code])
        self.url = f"http://127.0.0.1:{port}/dashboard"
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(self.url, timeout=5).close()
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.stop()
                    raise SystemExit("the server did not come up") from None
                time.sleep(0.2)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)


def views() -> Iterator[tuple[str, str, str]]:
    """Name, state of the folder and query of each picture."""
    for tab in TABS:
        yield f"empty-{tab}", "empty", f"?tab={tab}"
    yield "list-runs", "full", "?tab=runs"
    for state, tab in itertools.product(
        ("finished", "running", "failed", "gate-failed", "training"), TABS[1:]
    ):
        if state in ("gate-failed", "training") and tab not in ("overview", "metrics", "quality"):
            continue
        runs = "finished,gate-failed,training" if (state, tab) == ("finished", "compare") else state
        yield f"{state}-{tab}", "full", f"?run={runs}&tab={tab}"
    for state in ("finished", "running"):
        yield f"{state}-layer", "full", f"?run={state}&tab=progress&tensor={TENSOR}"
    yield "nosuch-overview", "full", "?run=nosuch"
    yield "failed-worker", "full", "?run=queued"


def settle(page: Any) -> None:
    """Wait until the page has stood still for a while: nothing on the wire, no change of what is seen."""
    page.get_by_role("tab", name="Overview").wait_for()
    page.wait_for_selector("[data-tab]", state="attached")
    page.wait_for_timeout(1500)


def take(page: Any, path: Path, width: int) -> dict[str, Any]:
    """A picture as tall as the page's content; returns what sticks out sideways."""
    page.set_viewport_size({"width": width, "height": 900})
    page.wait_for_timeout(350)
    wanted = page.evaluate(
        """() => {
          const find = (root, name) => {
            for (const e of root.querySelectorAll("*")) {
              if (e.classList.contains(name)) return e
              const inner = e.shadowRoot && find(e.shadowRoot, name)
              if (inner) return inner
            }
          }
          const main = find(document, "main-content"), side = find(document, "sidebar")
          const beside = innerWidth >= 1000 && side ? side.scrollHeight + 48 : 0
          return {tall: Math.max(main.scrollHeight + 56, beside),
                  out: main.scrollWidth - main.clientWidth}
        }"""
    )
    page.set_viewport_size({"width": width, "height": min(max(900, wanted["tall"]), TALLEST)})
    page.wait_for_timeout(450)
    page.screenshot(path=str(path))
    return wanted


def readme_pictures(browser: Any, url: str, out: Path) -> None:
    """The README's pictures, of few colours and half the size."""
    from PIL import Image

    for name, (theme, query, height, beside) in README.items():
        page = browser.new_page(color_scheme=theme, viewport={"width": 1440, "height": height})
        page.goto(url + query)
        settle(page)
        if not beside:
            page.get_by_role("button", name="Close drawer").click()
        page.mouse.move(700, 70)
        page.wait_for_timeout(2500)
        path = out / f"{name}.png"
        page.screenshot(path=str(path))
        page.close()
        picture = Image.open(path).convert("RGB")
        picture = picture.resize((960, round(picture.height * 960 / picture.width)), Image.Resampling.LANCZOS)
        picture.quantize(README_COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
        print(f"{path}: {path.stat().st_size // 1000} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--out", type=Path, default=Path(__file__).parent / "screenshots")
    parser.add_argument("--run", type=Path, help="a finished run")
    parser.add_argument("--other", type=Path, help="a finished run whose gates failed, of one plane")
    parser.add_argument("--only", action="append", default=[], help="names begin with this")
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--readme", type=Path, help="take the README's pictures, into this folder")
    parser.add_argument("--themes", nargs="+", default=["light", "dark"])
    arguments = parser.parse_args()
    if arguments.readme is not None and (arguments.run is None or arguments.other is None):
        sys.exit("the README's pictures show real runs: give --run and --other")
    from playwright.sync_api import sync_playwright

    arguments.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        temporary = stack.enter_context(tempfile.TemporaryDirectory())
        playwright = stack.enter_context(sync_playwright())
        folders = {state: Path(temporary) / state for state in ("empty", "full")}
        for folder in folders.values():
            folder.mkdir()
        make_runs(folders["full"], arguments.run, arguments.other)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        stack.callback(browser.close)
        servers = {}
        for state, folder in folders.items():
            servers[state] = Server(folder)
            stack.callback(servers[state].stop)
        if arguments.readme is not None:
            arguments.readme.mkdir(parents=True, exist_ok=True)
            readme_pictures(browser, servers["full"].url, arguments.readme)
            return
        for theme in arguments.themes:
            page = browser.new_page(color_scheme=theme, viewport={"width": 1440, "height": 900})
            page.on("pageerror", lambda error: print("error on the page:", error))
            for name, state, query in views():
                if arguments.only and not name.startswith(tuple(arguments.only)):
                    continue
                page.set_viewport_size({"width": arguments.widths[0], "height": 900})
                page.goto(servers[state].url + query)
                settle(page)
                for width in arguments.widths:
                    key = f"{name}-{theme}-{width}"
                    found[key] = take(page, arguments.out / f"{key}.png", width)
                    if found[key]["out"] > 0:
                        print(f"{key}: {found[key]['out']} pixels stick out", flush=True)
            page.close()
    (arguments.out / "sizes.json").write_text(json.dumps(found, indent=1))
    print(f"{len(found)} pictures in {arguments.out}")


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
