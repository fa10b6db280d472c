"""Commands to a running worker: a line in `commands.jsonl` each, answered by a `command.ack` event."""

from __future__ import annotations

import json
import os
import secrets
import time
from pathlib import Path
from typing import Any

from tritpress.errors import TritpressError, UsageError
from tritpress.events.reader import EventReader
from tritpress.events.schema import encode
from tritpress.events.snapshot import load_snapshot
from tritpress.runs.directory import REMOTE, RunDirectory
from tritpress.runs.liveness import is_alive

COMMANDS = ("pause", "resume", "stop", "set")


def send(run: RunDirectory, command: str, /, **args: Any) -> str:
    """Send `command` to the run's worker and return the command's id.

    Raises `UsageError` for an unknown command and `TritpressError` when no worker is there to hear it.
    """
    if command not in COMMANDS:
        raise UsageError(f"unknown command {command!r}: a run takes {', '.join(COMMANDS)}")
    if run.read_run().get("origin") == REMOTE:
        raise TritpressError(f"run {run.id} is worked on elsewhere: its worker hears no commands from here")
    if not is_alive(run):
        status = run.read_run().get("status")
        at_work = status in ("created", "queued", "running", "paused")
        gone = "its worker is gone" if at_work else f"it is {status}"
        raise TritpressError(f"run {run.id} is not at work ({gone}): there is nothing to {command}")
    command_id = secrets.token_hex(6)
    line = encode({"id": command_id, "t": time.time(), "command": command, "args": args})
    # One write to a file opened for appending stays whole beside other writers. A line that a writer before
    # us left torn is ended first.
    file = os.open(run.commands_path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(file).st_size
        torn = size > 0 and os.pread(file, 1, size - 1) != b"\n"
        os.write(file, (b"\n" if torn else b"") + line.encode() + b"\n")
    finally:
        os.close(file)
    return command_id


def wait_ack(run: RunDirectory, command_id: str, timeout: float = 5.0) -> dict[str, Any] | None:
    """The acknowledgement {t, command, ok, detail} of that command; None when none came in time."""
    snapshot = load_snapshot(run.snapshot_path)
    reader = EventReader(run.events_path, snapshot["offset"] if snapshot else 0)
    if snapshot and command_id in snapshot["acks"]:
        return snapshot["acks"][command_id]
    deadline = time.monotonic() + timeout
    while True:
        for event in reader.poll():
            if event["type"] == "command.ack" and event.get("id") == command_id:
                return {key: event.get(key) for key in ("t", "command", "ok", "detail")}
        if time.monotonic() > deadline:
            return None
        time.sleep(0.02)


class CommandReader:
    """Reads whole lines of `commands.jsonl` from an offset on; what is no command is passed over."""

    def __init__(self, path: str | Path, offset: int = 0) -> None:
        self.path = Path(path)
        self.offset = offset

    def poll(self) -> list[dict[str, Any]]:
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                data = file.read()
        except FileNotFoundError:
            return []
        whole, newline, _ = data.rpartition(b"\n")
        self.offset += len(whole) + len(newline)
        commands = []
        for line in whole.split(b"\n"):
            try:
                command = json.loads(line)
            except ValueError:
                continue
            if isinstance(command, dict) and isinstance(command.get("id"), str):
                commands.append(command)
        return commands
