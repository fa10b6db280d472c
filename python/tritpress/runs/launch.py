"""Starting and resuming runs: checks before any work, then a worker process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from tritpress.config import KEPT_PLAN, SELF_TEXT, CompressionConfig, make_config
from tritpress.errors import InputError, TritpressError, UsageError
from tritpress.formats.output import disk_errors, write_file
from tritpress.runs.directory import REMOTE, RunDirectory, check_run_id, default_runs_dir, new_run_id
from tritpress.runs.liveness import is_alive
from tritpress.runs.queue import queueing

START_TIMEOUT = 60.0

_processes: dict[Path, subprocess.Popen[bytes]] = {}
"""Workers that this process started: kept so that they are reaped when they end."""


def launch(
    model: str | Path,
    out: str | Path | None,
    config: CompressionConfig | None = None,
    runs_dir: str | Path | None = None,
    *,
    run_id: str | None = None,
    name: str | None = None,
    queue: bool = False,
) -> RunDirectory:
    """Make a run and start its worker, which goes on when this process ends.

    `out` None is `runs/<id>/out`. With `queue` the worker waits until the runs that are now at work or
    waiting in that folder have ended. Returns once the worker is up. Raises `InputError` or `UsageError`
    before anything is written when model, out or text cannot be used, `TritpressError` when the worker
    cannot start.
    """
    config = config or make_config({})
    run_id = check_run_id(run_id) if run_id is not None else new_run_id()
    run = RunDirectory(Path(runs_dir or default_runs_dir()) / run_id)
    model_path = expanded(model).absolute()
    out_path = expanded(out).absolute() if out is not None else run.path / "out"
    check_request(model_path, out_path, config)
    if queue:
        with queueing(run.path.parent) as after:
            _write_new(run, model_path, out_path, config, name, after)
            _start(run)
    else:
        _write_new(run, model_path, out_path, config, name, [])
        _start(run)
    return run


def _write_new(
    run: RunDirectory, model: Path, out: Path, config: CompressionConfig, name: str | None, after: list[str]
) -> None:
    """Make the folder and its run.json; `after` names the runs to wait for. A plan is copied: it may be
    written over, or gone, when the run comes to it.
    """
    given = _read_plan(config.plan) if config.plan is not None else None
    run.create()
    if given is not None:
        with disk_errors(run.path):
            write_file(run.path / KEPT_PLAN, given)  # only with its run.json it becomes a run
    # A resume may come from another folder.
    tasks = [_place(task) for task in config.tasks]
    texts = [text if text == SELF_TEXT else str(expanded(text).absolute()) for text in config.text]
    plan = str(expanded(config.plan).absolute()) if config.plan is not None else None
    now = time.time()
    run.write_run(
        {
            "v": 1,
            "id": run.id,
            "name": name or model.name,
            "created": now,
            "launched": now,
            "model": str(model),
            "out": str(out),
            "text": texts,
            "config": config.model_copy(update={"text": texts, "plan": plan, "tasks": tasks}).model_dump(),
            "chosen": {},
            "status": "queued" if after else "created",
            "after": after,
            "pid": None,
            "host": None,
            "process_start": None,
            "heartbeat": None,
            "resumes": 0,
            "commands_offset": 0,
            "error": None,
            "exit_code": None,
        }
    )


def _read_plan(plan: str) -> bytes:
    try:
        return expanded(plan).read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read the plan {plan}: {error.strerror}") from None


def expanded(path: str | Path) -> Path:
    """`path` with its `~` replaced; with one of a user that is not known it stays, and nothing lies there."""
    return Path(os.path.expanduser(path))  # Path's own raises then


def _place(task: str) -> str:
    """A task's name, or the whole path of its file or folder."""
    path = expanded(task)
    return str(path.absolute()) if path.exists() else task


def resume(run: RunDirectory) -> RunDirectory:
    """Start a worker on a run that stopped, failed or died. Raises `UsageError` when there is none to do."""
    record = run.read_run()
    if record.get("origin") == REMOTE:
        raise UsageError(f"run {run.id} is worked on elsewhere: it can only be resumed there")
    if record.get("status") == "finished":
        raise UsageError(
            f"run {run.id} is finished: there is nothing to resume (its report: {run.report_path})"
        )
    if is_alive(run):
        raise UsageError(f"run {run.id} is at work already (process {record.get('pid')}): stop it first")
    if not Path(record["model"]).exists():
        raise InputError(f"cannot resume run {run.id}: its model {record['model']} is no longer there")
    run.update_run(
        status="created",
        after=[],
        launched=time.time(),
        pid=None,
        host=None,
        process_start=None,
        heartbeat=None,
        error=None,
        exit_code=None,
        resumes=int(record.get("resumes", 0)) + 1,
        # Commands to the worker that is gone are not for the new one.
        commands_offset=run.commands_path.stat().st_size if run.commands_path.exists() else 0,
    )
    _start(run)
    return run


def worker_process(run: RunDirectory) -> subprocess.Popen[bytes] | None:
    """The worker's process when it was started by this one."""
    return _processes.get(run.path)


def check_request(model: str | Path, out: str | Path, config: CompressionConfig) -> None:
    """Refuse, before any work, what cannot end well: `InputError` (model), `UsageError` (rest)."""
    check_inputs(model, config)
    model_path, out_path = Path(model).resolve(), Path(out).resolve()
    if out_path == model_path or model_path in out_path.parents:
        raise UsageError(f"the output {out} lies in the model's own directory: choose another place with -o")
    if out_path in model_path.parents:
        raise UsageError(f"the output {out} contains the model itself: choose another place with -o")
    if out_path.exists() and not out_path.is_dir():
        raise UsageError(f"the output {out} is a file: choose a directory with -o")
    if out_path.is_dir() and not config.overwrite and any(out_path.iterdir()):
        raise UsageError(
            f"the output directory {out} is not empty: choose another with -o, or give --overwrite"
        )
    for kind in ("packed", "dequantized"):  # with --overwrite something may lie there
        child = out_path / kind
        if config.outputs in ("both", kind) and (
            child.is_symlink() or (child.exists() and not child.is_dir())
        ):
            raise UsageError(f"cannot write {child}: a file or link of that name is there; move it away")
    if (out_path / "report.json").is_dir():
        raise UsageError(f"cannot write {out_path / 'report.json'}: it is a folder; move it away")
    there = next(path for path in (out_path, *out_path.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UsageError(f"cannot write the output {out}: {there} is not a folder that may be written to")


def check_inputs(model: str | Path, config: CompressionConfig) -> None:
    """Refuse a model, text or plan that is not there: `InputError` (model), `UsageError` (rest)."""
    model_path = Path(model).resolve()
    if not model_path.exists():
        raise InputError(f"there is no model at {model}: give the path of a Hugging Face directory")
    if not model_path.is_dir():
        raise InputError(f"{model} is a file: give the Hugging Face directory that it lies in")
    if not (model_path / "config.json").is_file():
        raise InputError(f"{model} has no config.json: it is no Hugging Face model directory")
    for text in config.text:
        if text != SELF_TEXT and not expanded(text).exists():
            raise UsageError(f"there is no text at {text}: --text takes a file or a folder")
    if config.plan is not None and not expanded(config.plan).is_file():
        raise UsageError(
            f"there is no plan at {config.plan}: --plan takes a JSON file, as `Plan.save` writes it"
        )


def worker_command(run: RunDirectory) -> list[str]:
    """The command line of the worker process."""
    return [sys.executable, "-m", "tritpress.runs.worker", str(run.path)]


def _start(run: RunDirectory) -> None:
    """Start the worker, detached, and wait until it has taken the run over."""
    for path in [path for path, process in _processes.items() if process.poll() is not None]:
        del _processes[path]
    with open(run.log_path, "ab") as log:
        process = subprocess.Popen(
            worker_command(run),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            close_fds=True,
        )
    _processes[run.path] = process
    deadline = time.monotonic() + START_TIMEOUT
    while run.read_run().get("pid") != process.pid:
        if process.poll() is not None and run.read_run().get("pid") != process.pid:
            run.update_run(status="failed", error="the worker process did not start")
            raise TritpressError(
                f"the worker process did not start; it left its last words in {run.log_path}"
            )
        if time.monotonic() > deadline:
            raise TritpressError(
                f"the worker process took more than {START_TIMEOUT:.0f} s to start: {run.log_path}"
            )
        time.sleep(0.01)
