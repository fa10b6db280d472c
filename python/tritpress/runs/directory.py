"""A run's directory: what lies where, and its `run.json`."""

from __future__ import annotations

import json
import os
import re
import secrets
import threading
import time
from pathlib import Path
from typing import Any

from tritpress.config import CompressionConfig, without_unused
from tritpress.errors import InputError, UsageError
from tritpress.events.schema import encode

REMOTE = "remote"
"""`origin` in run.json of a run that is worked on elsewhere and only told of here."""

RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def default_runs_dir() -> Path:
    """Where runs are kept: `$TRITPRESS_RUNS`, else `runs` in the present directory."""
    return Path(os.environ.get("TRITPRESS_RUNS") or "runs").absolute()


def new_run_id() -> str:
    """A name for a run that sorts by time: `20261124-153012-9f3a`."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def check_run_id(run_id: str) -> str:
    """`run_id` when it can name a folder, else `UsageError`."""
    if not RUN_ID.fullmatch(run_id):
        raise UsageError(f"the run id {run_id!r} may hold letters, digits, '.', '_' and '-' only")
    return run_id


def find_run(run: str | Path, runs_dir: str | Path | None = None) -> RunDirectory:
    """The run of that id, of the one id that begins so, or at that path. Raises `InputError` otherwise."""
    directory = Path(runs_dir) if runs_dir is not None else default_runs_dir()
    text = str(run)
    if RUN_ID.fullmatch(text) and (directory / text / "run.json").is_file():
        return RunDirectory(directory / text)
    if (Path(text) / "run.json").is_file():
        return RunDirectory(text)
    begin = [path.parent.name for path in directory.glob("*/run.json") if path.parent.name.startswith(text)]
    if text and len(begin) == 1:
        return RunDirectory(directory / begin[0])
    if text and len(begin) > 1:
        some = ", ".join(sorted(begin)[:4])
        raise InputError(
            f"{len(begin)} runs in {directory} begin with {text!r} ({some}): give more of the id"
        )
    raise InputError(
        f"there is no run {text!r} in {directory}: `tritpress runs list` names those there are, "
        "--runs another folder"
    )


class RunDirectory:
    """Paths and `run.json` of one run. The directory need not exist yet.

    `run.json` is written by whoever makes the run and, once a worker is at work, by that worker alone.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        self.id = self.path.name
        self.run_json = self.path / "run.json"
        self.events_path = self.path / "events.jsonl"
        self.snapshot_path = self.path / "snapshot.json"
        self.commands_path = self.path / "commands.jsonl"
        self.log_path = self.path / "worker.log"
        self.report_path = self.path / "report.json"
        self.lock_path = self.path / "worker.lock"
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        return f"RunDirectory({str(self.path)!r})"

    def create(self) -> None:
        """Make the directory. Raises `UsageError` when the id is no plain name or is taken."""
        check_run_id(self.id)
        try:
            self.path.mkdir(parents=True)
        except FileExistsError:
            raise UsageError(
                f"there is a run {self.id!r} in {self.path.parent} already: choose another id"
            ) from None
        except OSError as error:
            raise UsageError(f"cannot make the run's folder {self.path}: {error.strerror}") from error

    @property
    def work(self) -> Path:
        """Where the pipeline keeps what a resumed run takes up again (made when asked for)."""
        path = self.path / "work"
        path.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def model_path(self) -> Path:
        """The model that the run compresses."""
        return Path(self.read_run()["model"])

    @property
    def out_path(self) -> Path:
        """Where the run writes its two models and the report."""
        return Path(self.read_run()["out"])

    @property
    def config(self) -> CompressionConfig:
        """What the run was asked to do."""
        return CompressionConfig(**without_unused(self.read_run()["config"]))

    @property
    def chosen(self) -> dict[str, Any]:
        """What was chosen by measurement at the run's first start; a resumed run uses it again."""
        return self.read_run().get("chosen", {})

    def choose(self, **values: Any) -> dict[str, Any]:
        """Keep choices made by measurement (number formats, threads, kernel path); return all that are kept.

        What was kept before stays: a resumed run must not choose anew, or its bytes would differ.
        """
        with self._lock:
            kept = {**values, **self.chosen}
            return self.update_run(chosen=kept)["chosen"]

    def read_run(self) -> dict[str, Any]:
        """The content of `run.json`. Raises `InputError` when it is missing or damaged."""
        try:
            run = json.loads(self.run_json.read_bytes())
        except FileNotFoundError:
            raise InputError(f"{self.path} is no run: it has no run.json") from None
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read {self.run_json}: {error}") from None
        if not isinstance(run, dict):
            raise InputError(f"{self.run_json} holds no JSON object")
        return run

    def write_run(self, run: dict[str, Any]) -> None:
        """Replace `run.json`; a reader sees the old one or the new one."""
        write_json(self.run_json, run)

    def update_run(self, **fields: Any) -> dict[str, Any]:
        """Change some fields of `run.json` and return all. Safe among the threads of one process."""
        with self._lock:
            run = {**self.read_run(), **fields}
            self.write_run(run)
            return run


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON under a temporary name, then rename."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(encode(value), encoding="utf-8")
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
