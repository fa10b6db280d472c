"""Runs: their directories, their worker processes, commands to them, and their history.

A run is a directory. Whoever wants to know something reads it, whoever wants something sends a command; the
worker process that does the work depends on neither.
"""

from tritpress.runs.commands import send, wait_ack
from tritpress.runs.directory import RunDirectory, default_runs_dir, find_run, new_run_id
from tritpress.runs.follow import WorkerDied, follow
from tritpress.runs.history import list_runs, run_state
from tritpress.runs.launch import check_request, launch, resume
from tritpress.runs.liveness import is_alive

__all__ = [
    "RunDirectory",
    "WorkerDied",
    "check_request",
    "default_runs_dir",
    "find_run",
    "follow",
    "is_alive",
    "launch",
    "list_runs",
    "new_run_id",
    "resume",
    "run_state",
    "send",
    "wait_ack",
]
