"""The process that does the work of one run: `python -m tritpress.runs.worker RUN_PATH`.

It depends on nobody: whoever started it may end. It writes run.json, events.jsonl and snapshot.json, hears
commands.jsonl, and takes SIGTERM and SIGINT for a stop.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tritpress.config import CompressionConfig
from tritpress.devices import wait_without_spinning
from tritpress.errors import StopRequested, TritpressError
from tritpress.events.context import RunContext
from tritpress.events.writer import EventWriter
from tritpress.report import exit_code
from tritpress.runs.commands import CommandReader
from tritpress.runs.control import WorkerContext
from tritpress.runs.directory import RunDirectory, write_json
from tritpress.runs.liveness import HEARTBEAT_EVERY, process_start, this_host
from tritpress.runs.queue import wait_for_turn

COMMANDS_EVERY = 0.1
WATCH_EVERY = 1.0

EVENTS_TOGETHER = 0.03
"""Seconds that events which come thick may wait for each other, to be written in one go."""

Pipeline = Callable[[Any, RunDirectory, RunContext], dict[str, Any]]


def main(arguments: list[str] | None = None) -> int:
    """Entry of the process; the exit code is the run's."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if len(arguments) != 1:
        print("usage: python -m tritpress.runs.worker RUN_PATH", file=sys.stderr)
        return 2
    wait_without_spinning()
    return work(RunDirectory(arguments[0]))


def work(run: RunDirectory, pipeline: Pipeline | None = None) -> int:
    """Do the run's work in this process and return its exit code: 0, 3 (a gate or a check of the handoff
    failed), 2, 1 (also: stopped).

    `pipeline` None is `tritpress.pipeline.run`.
    """
    with open(run.lock_path, "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            print(f"run {run.id} has a worker already", file=sys.stderr)
            return 1
        pid = os.getpid()
        record = run.update_run(
            pid=pid,
            host=this_host(),
            process_start=process_start(pid),
            heartbeat=time.time(),
        )
        if record.get("status") != "queued":
            record = run.update_run(status="running")
        writer = EventWriter(run.path, run.id, EVENTS_TOGETHER)
        context = WorkerContext(writer, run, _config(run))
        ended = threading.Event()
        threads = [
            threading.Thread(target=_beat, args=(run, ended), name="heartbeat", daemon=True),
            threading.Thread(
                target=_listen, args=(run, context, record, ended), name="commands", daemon=True
            ),
            threading.Thread(target=_watch, args=(context, ended), name="alerts", daemon=True),
        ]
        if context.courier.receivers or context.courier.outbox.folder.is_dir():
            threads.append(
                threading.Thread(target=context.courier.work, args=(ended,), name="courier", daemon=True)
            )
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, _stop_handler(context))
        for thread in threads:
            thread.start()
        try:
            return _run(run, record, context, pipeline, before_end=lambda: _join(ended, threads))
        finally:
            _join(ended, threads)
            writer.close()


def _run(
    run: RunDirectory,
    record: dict[str, Any],
    context: WorkerContext,
    pipeline: Pipeline | None,
    before_end: Callable[[], None],
) -> int:
    writer = context.writer
    try:
        if record.get("status") == "queued":
            wait_for_turn(run, context)
            run.update_run(status="running")
        context.emit(
            "run.started",
            model=record["model"],
            out=record["out"],
            config=record["config"],
            name=record.get("name"),
            resumed=bool(record.get("resumes")),
            pid=record["pid"],
            host=record["host"],
        )
        report = (pipeline or _product())(run.config, run, context)
        report_path = Path(record["out"]) / "report.json"
        # The run keeps a copy of its own: a later run may write over the output.
        if report_path.is_file():
            shutil.copyfile(report_path, run.report_path)
        else:
            write_json(run.report_path, report)
            report_path = run.report_path
    except StopRequested:
        before_end()
        end = {"status": "stopped", "exit_code": None, "report": None}
        run.update_run(status="stopped", exit_code=None, finished=time.time())
        context.emit("run.finished", **end, write_seconds=writer.write_seconds, seconds=writer.seconds)
        return 1  # as Ctrl-C on the command line: the run is not done
    except BaseException as error:
        traceback.print_exc()
        before_end()
        code = error.exit_code if isinstance(error, TritpressError) else 1
        sentence = describe(error)
        _fail(run, context, sentence, code, type(error).__name__)
        return code
    before_end()
    code = exit_code(report)
    run.update_run(status="finished", exit_code=code, error=None, finished=time.time())
    context.emit(
        "run.finished",
        status="finished",
        exit_code=code,
        report=str(report_path),
        write_seconds=writer.write_seconds,
        seconds=writer.seconds,
    )
    return code


def _product() -> Pipeline:
    """The seven steps; imported only here, when errors can already be told as events."""
    from tritpress.pipeline import run

    return run


def _fail(run: RunDirectory, context: WorkerContext, sentence: str, code: int, kind: str) -> None:
    """Say what went wrong wherever that can still be written."""
    writer = context.writer
    for say in (
        lambda: run.update_run(status="failed", error=sentence, exit_code=code, finished=time.time()),
        lambda: context.emit(
            "run.failed",
            error=sentence,
            kind=kind,
            exit_code=code,
            write_seconds=writer.write_seconds,
            seconds=writer.seconds,
        ),
    ):
        try:
            say()
        except OSError as error:  # a full disk is no reason to hide the first error
            print(f"cannot write into {run.path}: {error}", file=sys.stderr)


def describe(error: BaseException) -> str:
    """One sentence for the user; the traceback goes to worker.log."""
    if isinstance(error, TritpressError):
        return str(error)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        where = f" (writing {error.filename})" if error.filename else ""
        return f"the disk is full{where}: make room and resume the run"
    if isinstance(error, MemoryError):
        return "there is not enough memory for this model here"
    if isinstance(error, ModuleNotFoundError) and error.name:
        extra = {"torch": "hf", "transformers": "hf", "tokenizers": "hf"}.get(error.name.partition(".")[0])
        if extra:
            return f"this needs the package {error.name}: pip install 'tritpress[{extra}]'"
    first_line = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__


def _stop_handler(context: WorkerContext) -> Callable[[int, Any], None]:
    def handle(number: int, _frame: Any) -> None:
        # In a thread of its own: the handler may have interrupted the holder of the lock that this takes.
        reason = f"stopped by {signal.Signals(number).name}"
        threading.Thread(target=context.request_stop, args=(reason,), daemon=True).start()

    return handle


def _beat(run: RunDirectory, ended: threading.Event) -> None:
    while not ended.wait(HEARTBEAT_EVERY):
        try:
            run.update_run(heartbeat=time.time())
        except (OSError, TritpressError) as error:
            print(f"no heartbeat: {error}", file=sys.stderr)


def _config(run: RunDirectory) -> CompressionConfig:
    """The run's configuration as far as alerts go; a damaged one fails the run later, with its reason."""
    try:
        return run.config
    except (TritpressError, ValueError, KeyError, TypeError):
        return CompressionConfig(alerts=[])


def _watch(context: WorkerContext, ended: threading.Event) -> None:
    while not ended.wait(WATCH_EVERY):
        context.watch.tick()


def _listen(
    run: RunDirectory, context: WorkerContext, record: dict[str, Any], ended: threading.Event
) -> None:
    reader = CommandReader(run.commands_path, int(record.get("commands_offset") or 0))
    while True:
        over = ended.wait(COMMANDS_EVERY)  # one last look after the end, so that no sender waits in vain
        try:
            for command in reader.poll():
                context.obey(command)
        except OSError as error:
            print(f"cannot read commands: {error}", file=sys.stderr)
        if over:
            return


def _join(ended: threading.Event, threads: list[threading.Thread]) -> None:
    ended.set()
    for thread in threads:
        if thread.is_alive():
            thread.join(timeout=5)


if __name__ == "__main__":
    sys.exit(main())
