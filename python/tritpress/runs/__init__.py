"""Runs: their directories, their worker processes, commands to them, and their history.

A run is a directory. Whoever wants to know something reads it, whoever wants something sends a command; the
worker process that does the work depends on neither.

`directory` (RunDirectory, find_run), `launch` (launch, resume, check_request), `liveness` (is_alive),
`commands` (send, wait_ack), `follow` (follow, WorkerDied), `history` (list_runs, run_state); `control` and
`worker` are the inside of the worker process.
"""
