"""Whether the worker of a run is alive: process id, its start time, its host, and a heartbeat."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from tritpress.errors import TritpressError
from tritpress.events.schema import ENDED
from tritpress.runs.directory import RunDirectory

HEARTBEAT_EVERY = 2.0
"""Seconds between two heartbeats in run.json."""

HEARTBEAT_STALE = 30.0
"""A worker elsewhere is taken for dead after so many seconds without a heartbeat."""

START_GRACE = 30.0
"""Seconds that a process just started may take until it has written its id into run.json."""


def this_host() -> str:
    """Names the machine and, on Linux, its boot and process namespace: where process ids mean the same."""
    parts = [socket.gethostname()]
    try:
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8])
        parts.append(os.readlink("/proc/self/ns/pid").strip("pid:[]"))
    except OSError:
        pass
    return "/".join(parts)


def process_start(pid: int) -> str | None:
    """When that process was started, as an opaque text, or None when there is none (a zombie counts as none).

    A process id alone says little: the system gives it to another process later.
    """
    try:
        # The name in parentheses may hold blanks; fields 3 (state) and 22 (start in ticks) lie behind it.
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
    except OSError:
        return None
    else:
        return None if after_name[0] in "ZX" else after_name[19]
    answer = subprocess.run(
        ["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout.split(maxsplit=1)
    return answer[1].strip() if len(answer) == 2 and not answer[0].startswith("Z") else None


def is_alive(run: RunDirectory) -> bool:
    """Whether a worker is at work on `run` (paused ones are)."""
    try:
        return is_alive_record(run.read_run())
    except TritpressError:
        return False


def is_alive_record(run: dict[str, Any]) -> bool:
    """`is_alive` for the content of a run.json that was read already."""
    if run.get("status") in ENDED:
        return False
    now = time.time()
    pid = run.get("pid")
    if pid is None:  # launched, but the process has not come to its first line
        return now - _time(run.get("launched")) < START_GRACE
    if run.get("host") == this_host():
        found = process_start(pid) if isinstance(pid, int) else None
        return found is not None and found == run.get("process_start")
    return now - _time(run.get("heartbeat")) < HEARTBEAT_STALE


def _time(value: Any) -> float:
    """Seconds since 1970; long ago for what is no time, as the run.json of another program may have it."""
    return value if isinstance(value, int | float) and abs(value) < 1e11 else 0.0
