"""Alerts on their way out of a run: kept in `RUN/outbox/` until a webhook or a command has taken them.

An entry is written, flushed and renamed before anything is sent and removed after it was taken, so that a
crash loses none; one may come twice, under the same `Tritpress-Delivery`. Nothing here stops a run.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import secrets
import shlex
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tritpress.config import CompressionConfig
from tritpress.events.schema import encode
from tritpress.runs.directory import RunDirectory

SECRET = "TRITPRESS_WEBHOOK_SECRET"
"""Environment variable with the key of the signatures."""

HTTP_TIMEOUT = 10.0
COMMAND_TIMEOUT = 30.0
LAST_TRY = 3.0
"""Seconds that a worker at its end may spend on what is not delivered yet."""

LONGEST_WAIT = 300.0
"""Seconds at most between two tries; the first waits are 1, 2, 4, ..."""


@dataclass
class Entry:
    """One alert for one receiver (`webhook` or `command`)."""

    id: str
    to: str
    body: str  # JSON, the same bytes at every try
    t: float
    tries: int = 0
    next_try: float = 0.0
    error: str | None = None
    path: Path = field(default=Path(), compare=False)


class Outbox:
    """The entries of one run, on disk."""

    def __init__(self, run: RunDirectory) -> None:
        self.run = run
        self.folder = run.path / "outbox"

    def put(self, to: str, alert: dict[str, Any]) -> Entry:
        """Keep an alert for that receiver; it is on the disk when this returns."""
        now = time.time()
        name = f"{time.time_ns():020d}-{secrets.token_hex(4)}"
        body = encode({"id": name, "run": self.run.id, "t": now, **alert})
        entry = Entry(name, to, body, now)
        self.folder.mkdir(exist_ok=True)
        self._write(entry)
        return entry

    def entries(self) -> list[Entry]:
        """All that wait, oldest first; files that are none are passed over."""
        found = []
        for path in sorted(self.folder.glob("*.json")):
            try:
                values = json.loads(path.read_bytes())
                entry = Entry(
                    id=str(values["id"]),
                    to=str(values["to"]),
                    body=str(values["body"]),
                    t=float(values["t"]),
                    tries=int(values.get("tries") or 0),
                    next_try=float(values.get("next_try") or 0.0),
                    error=values.get("error"),
                    path=path,
                )
            except (OSError, ValueError, KeyError, TypeError):
                continue
            found.append(entry)
        return found

    def taken(self, entry: Entry) -> None:
        """The receiver has it."""
        (self.folder / f"{entry.id}.json").unlink(missing_ok=True)

    def failed(self, entry: Entry, error: str) -> None:
        """Try again later: after 1, 2, 4 ... seconds."""
        entry.tries += 1
        entry.error = error
        entry.next_try = time.time() + min(2.0 ** (entry.tries - 1), LONGEST_WAIT)
        self._write(entry)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the outbox: a worker and a command line do not send the same entry at once."""
        self.folder.mkdir(exist_ok=True)
        with open(self.folder / "lock", "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _write(self, entry: Entry) -> None:
        path = self.folder / f"{entry.id}.json"
        temporary = path.with_suffix(".tmp")
        values = {key: getattr(entry, key) for key in ("id", "to", "body", "t", "tries", "next_try", "error")}
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(encode(values))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        entry.path = path


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """What `Tritpress-Signature` holds: the HMAC-SHA256 of `timestamp.body`, in hexadecimal."""
    return (
        "sha256="
        + hmac.new(
            secret.encode("utf-8"), timestamp.encode("ascii") + b"." + body, hashlib.sha256
        ).hexdigest()
    )


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """An alert goes to the address that was given and nowhere else."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def post(url: str, entry: Entry, secret: str | None, timeout: float = HTTP_TIMEOUT) -> str | None:
    """Post an entry; None when the receiver took it (2xx), else why not."""
    timestamp, body = str(int(time.time())), entry.body.encode("utf-8")
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "tritpress",
        "Tritpress-Delivery": entry.id,
        "Tritpress-Timestamp": timestamp,
    }
    if secret:
        headers["Tritpress-Signature"] = signature(secret, timestamp, body)
    request = urllib.request.Request(url, data=body, headers=headers, method="POST")
    try:
        with urllib.request.build_opener(_NoRedirect()).open(request, timeout=timeout) as answer:
            answer.read(1024)
            return None if 200 <= answer.status < 300 else f"the webhook answered {answer.status}"
    except urllib.error.HTTPError as error:
        error.close()
        return f"the webhook answered {error.code}"
    except Exception as error:  # whatever a foreign server or a bad address makes of it
        return f"the webhook cannot be reached: {getattr(error, 'reason', None) or error}"


def call(command: str, entry: Entry, timeout: float = COMMAND_TIMEOUT) -> str | None:
    """Start a command, no shell, with the entry on its stdin; None when it ended with 0, else why not."""
    environment = {key: value for key, value in os.environ.items() if key != SECRET}
    try:
        process = subprocess.Popen(
            shlex.split(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        return f"the command cannot be started: {error}"
    try:
        process.communicate(entry.body.encode("utf-8"), timeout=timeout)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"the command took more than {timeout:g} s"
    except OSError as error:
        process.wait()
        return f"the command cannot be given the alert: {error}"
    return None if process.returncode == 0 else f"the command ended with {process.returncode}"


class Courier:
    """Brings the entries of one run to where its configuration says."""

    def __init__(
        self,
        run: RunDirectory,
        config: CompressionConfig,
        say: Callable[[str], None] | None = None,
        secret: str | None = None,
    ) -> None:
        self.outbox = Outbox(run)
        self.webhook, self.command = config.alert_webhook, config.alert_command
        self.secret = secret if secret is not None else os.environ.get(SECRET)
        self.say = say or (lambda _: None)
        self.wake = threading.Event()
        self._troubled: set[str] = set()

    @property
    def receivers(self) -> list[str]:
        given = {"webhook": self.webhook, "command": self.command}
        return [name for name, value in given.items() if value]

    def take(self, alert: dict[str, Any]) -> None:
        """Keep an alert for every receiver and wake the thread that sends."""
        for to in self.receivers:
            try:
                self.outbox.put(to, alert)
            except OSError as error:
                print(f"cannot keep an alert in {self.outbox.folder}: {error}", file=sys.stderr)
        self.wake.set()

    def send(self, everything: bool = False, until: float | None = None) -> tuple[int, int]:
        """Send what is due (or everything), one after the other; how many were taken and how many were not.

        Nothing is begun after the monotonic time `until`.
        """
        taken = failed = 0
        if not self.outbox.folder.is_dir():
            return 0, 0
        for waiting in self.outbox.entries():
            if not everything and waiting.next_try > time.time():
                continue
            left = HTTP_TIMEOUT if until is None else until - time.monotonic()
            if left <= 0:
                break
            with self.outbox.alone():
                if not waiting.path.exists():  # another process was faster
                    continue
                error = self._deliver(waiting, left if until is not None else None)
                if error is None:
                    self.outbox.taken(waiting)
                    taken += 1
                else:
                    self.outbox.failed(waiting, error)
                    failed += 1
            self._tell(waiting, error)
        return taken, failed

    def work(self, ended: threading.Event) -> None:
        """Send until `ended`, then try what is left once more. The thread of a worker."""
        while not ended.is_set():
            self._send_safely()
            self.wake.clear()
            self.wake.wait(0.2)
        self._send_safely(everything=True, until=time.monotonic() + LAST_TRY)

    def _send_safely(self, **options: Any) -> None:
        try:
            self.send(**options)
        except Exception as error:
            print(f"cannot send alerts: {error!r}", file=sys.stderr)

    def _deliver(self, entry: Entry, left: float | None) -> str | None:
        if entry.to == "webhook" and self.webhook:
            return post(self.webhook, entry, self.secret, min(HTTP_TIMEOUT, left or HTTP_TIMEOUT))
        if entry.to == "command" and self.command:
            return call(self.command, entry, min(COMMAND_TIMEOUT, left or COMMAND_TIMEOUT))
        return f"the run has no {entry.to}"

    def _tell(self, entry: Entry, error: str | None) -> None:
        """Say once that a receiver does not take alerts, and once that it does again."""
        if error is not None and entry.to not in self._troubled:
            self._troubled.add(entry.to)
            self.say(f"An alert waits in the outbox: {error}. It is sent again, later and later.")
        elif error is None and entry.to in self._troubled:
            self._troubled.discard(entry.to)
            self.say(f"The {entry.to} takes alerts again.")
