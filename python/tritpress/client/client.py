"""`Client`: what can be asked of a dashboard."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

from tritpress.client.http import ClientError, Server
from tritpress.client.push import Pusher
from tritpress.client.websocket import WebSocket
from tritpress.config import CompressionConfig
from tritpress.errors import TritpressError

ENDS = ("run.finished", "run.failed")

RETRY = 1.0
"""Seconds before a stream that broke off is taken up again."""


class Client:
    """A dashboard at `url`, which may be the whole address that `tritpress dashboard` printed.

    `token` defaults to the one in `url`, then to `$TRITPRESS_TOKEN`. Every method raises `ClientError` with
    the server's sentence and HTTP status (0 when it cannot be reached).
    """

    def __init__(self, url: str, token: str | None = None, *, timeout: float = 30.0) -> None:
        self.server = Server(url, token, timeout)

    def runs(self) -> list[dict[str, Any]]:
        """All runs, newest first, as `tritpress runs list --json` has them."""
        return list(self.server.ask("GET", self.server.path("runs"))["runs"])

    def run(self, run_id: str) -> dict[str, Any]:
        """The run's state as folded from its events, with id, status, alive and origin (local or remote)."""
        return dict(self.server.ask("GET", self.server.path("runs", run_id)))

    def events(self, run_id: str, after: int = 0, limit: int | None = None) -> list[dict[str, Any]]:
        """Events with a `seq` above `after`, oldest first; all of them unless `limit` is given."""
        found: list[dict[str, Any]] = []
        while limit is None or len(found) < limit:
            wanted = 10_000 if limit is None else min(limit - len(found), 10_000)
            path = self.server.path("runs", run_id, "events", after=after, limit=wanted)
            data, headers = self.server.ask_raw("GET", path)
            events = [json.loads(line) for line in data.splitlines()]
            found += events
            if headers.get("Tritpress-More") != "true" or not events:
                break
            after = events[-1]["seq"]
        return found

    def follow(
        self, run_id: str, after: int = 0, *, forever: bool = False, retries: int = 5
    ) -> Iterator[dict[str, Any]]:
        """Yield events with a `seq` above `after`, those to come too, until the run is over: the end of an
        earlier worker does not end this when the run was resumed since.

        A connection that breaks off is taken up again where it was, up to `retries` times in a row. Raises
        `TritpressError` when the worker is gone without a last event. With `forever` neither the run's end
        nor its worker's ends this: a run may be resumed.
        """
        failed, ended = 0, False
        while True:
            try:
                for event in self._stream(run_id, after):
                    if "standing" in event:
                        over = event["standing"] == "over" or (ended and event["standing"] == "gone")
                        if over and not forever:
                            return
                        if event["standing"] == "gone" and not forever:
                            raise TritpressError(f"the worker of run {run_id} is gone without a last word")
                        continue
                    failed = 0
                    after = event["seq"]
                    ended = event["type"] in ENDS
                    yield event
                raise ClientError(0, f"{self.server.address} ended the stream")
            except ClientError as error:
                if error.status != 0 or failed >= retries:
                    if ended and not forever:  # the last that was heard is an end
                        return
                    raise
            failed += 1
            time.sleep(RETRY)

    def command(
        self, run_id: str, command: str, /, *, wait: bool | float = True, **args: Any
    ) -> dict[str, Any]:
        """Send pause, resume, stop or set (with `args`) to the run's worker.

        Returns {run, command, id, ack}; `ack` is the worker's answer {t, command, ok, detail}, None when it
        did not come within `wait` seconds (True: 10; False: not waited for). A run without a worker is taken
        up by "resume": the answer then has `resumed` and no id.
        """
        seconds = 10.0 if wait is True else float(wait)
        body = {"command": command, "args": args, "wait": seconds}
        path = self.server.path("runs", run_id, "commands")
        return dict(self.server.ask("POST", path, body, self.server.timeout + seconds))

    def start(
        self,
        model: str,
        config: CompressionConfig | Mapping[str, Any] | None = None,
        *,
        name: str | None = None,
        queue: bool = False,
    ) -> str:
        """Start a run on `model`, a directory on the server's machine, and return its id.

        With `queue` it waits until the runs that are at work there now have ended.

        `config` has the fields of `CompressionConfig`; its checks are the server's too.
        """
        given = config.model_dump() if isinstance(config, CompressionConfig) else dict(config or {})
        body = {"model": str(model), "config": given, "queue": queue, **({"name": name} if name else {})}
        return str(self.server.ask("POST", self.server.path("runs"), body, self.server.timeout + 60)["id"])

    def report(self, run_id: str) -> dict[str, Any]:
        """The run's report.json. Raises `ClientError` 404 while there is none."""
        return dict(self.server.ask("GET", self.server.path("runs", run_id, "report")))

    def push(self, name: str, *, run_id: str | None = None, **of_run: Any) -> Pusher:
        """A `Pusher` for a run that is worked on here; `of_run`: its `model` and `config`, where known."""
        return Pusher(self.server, name, run_id=run_id, **of_run)

    def _stream(self, run_id: str, after: int) -> Iterator[dict[str, Any]]:
        """Events, and {"standing": ...} between them."""
        socket = WebSocket(self.server, self.server.path("runs", run_id, "stream", after=after))
        try:
            for message in socket.messages():
                found = json.loads(message)
                if isinstance(found, list):
                    yield from found
                else:
                    yield found
        finally:
            socket.close()
