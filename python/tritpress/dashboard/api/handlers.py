"""The requests of the API: JSON in, JSON out, errors as {"error": a sentence}."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tornado import web

from tritpress.dashboard import webhooks
from tritpress.dashboard.api.errors import ApiError, disk_is_full
from tritpress.dashboard.api.pushed import push
from tritpress.dashboard.api.seek import offset_after, read_lines
from tritpress.dashboard.folders import refused
from tritpress.dashboard.gate import API_BODY
from tritpress.dashboard.security import TOKEN_VARIABLE, Guard
from tritpress.dashboard.store import RunStore
from tritpress.errors import InputError, TritpressError, UsageError
from tritpress.events.schema import encode
from tritpress.runs.directory import REMOTE, RUN_ID, RunDirectory
from tritpress.runs.history import RunIndex, run_state, summary

log = logging.getLogger(__name__)

THREADS = ThreadPoolExecutor(8, thread_name_prefix="tritpress-api")

WAITING = ThreadPoolExecutor(32, thread_name_prefix="tritpress-api-wait")
"""For what waits on a worker: it must not keep reads from being answered."""

EVENTS, EVENTS_MOST = 1000, 10_000
"""Events in one answer: by default, and at most."""

ANSWER = 8 << 20
"""Bytes of events in one answer, about."""

WAIT_MOST = 60.0
"""Seconds that a command's answer may be waited for."""

NAME = 200


class Handler(web.RequestHandler):
    """What all requests share: the guard, the way to a run, work beside the loop, errors in JSON."""

    def initialize(self, runs_dir: Path, guard: Guard | None) -> None:
        self.store = RunStore(runs_dir)  # for its `path_of`: it reads nothing by itself
        self.guard = guard

    def prepare(self) -> Any:
        check_guard(self)

    def check_xsrf_cookie(self) -> None:
        return None  # the guard has refused foreign origins

    def compute_etag(self) -> None:
        return None

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        body, status = error_answer(status_code, kwargs.get("exc_info"))
        self.set_status(status)
        if status == 401:
            self.set_header("WWW-Authenticate", 'Bearer realm="tritpress"')
        self.answer(body)

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        if not isinstance(value, ApiError | TritpressError | web.HTTPError):
            log.error("%s %s", self.request.method, self.request.path, exc_info=(typ, value, tb))

    def answer(self, value: Any, status: int | None = None) -> None:
        """Send `value` as JSON."""
        if status is not None:
            self.set_status(status)
        self.set_header("Content-Type", "application/json; charset=UTF-8")
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.finish(encode(value))

    def run_of(self, run_id: str) -> RunDirectory:
        """The run of that id; 400 for what can be no id, 404 when there is none."""
        return find(self.store, run_id)

    def body(self, *keys: str) -> dict[str, Any]:
        """The JSON object that was sent; 415, 413 and 400 for anything else, and for keys not in `keys`."""
        kind = self.request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise ApiError(415, "send JSON: Content-Type: application/json")
        if len(self.request.body) > API_BODY:
            size = len(self.request.body)
            raise ApiError(413, f"the request has {size:,} bytes; at most {API_BODY:,} are taken")
        try:
            found = json.loads(self.request.body)
        except (ValueError, RecursionError):
            raise ApiError(400, "the body is no JSON") from None
        if not isinstance(found, dict):
            raise ApiError(400, "the body must be a JSON object")
        unknown = sorted(found.keys() - set(keys)) if keys else []
        if unknown:
            raise ApiError(400, f"unknown key {unknown[0]!r}; known are {', '.join(keys)}")
        return found

    def whole(self, name: str, default: int, least: int, most: int) -> int:
        """A whole number of the query; 400 for anything else."""
        return whole_number(self, name, default, least, most)


class Runs(Handler):
    """All runs; start one."""

    async def get(self) -> None:
        self.answer({"runs": await beside(index_of(self.store.runs_dir).list)})

    async def post(self) -> None:
        body = self.body("model", "config", "name", "queue")
        self.answer(await beside(start, self.store.runs_dir, body, threads=WAITING), 201)


class Run(Handler):
    """The folded state of one run."""

    async def get(self, run_id: str) -> None:
        self.answer(await beside(state_of, self.run_of(run_id)))


class Events(Handler):
    """Events after a number as JSON lines; or push some."""

    async def get(self, run_id: str) -> None:
        run = self.run_of(run_id)
        after = self.whole("after", 0, 0, 2**53)
        limit = self.whole("limit", EVENTS, 1, EVENTS_MOST)
        lines, more = await beside(events_after, run.events_path, after, limit)
        self.set_header("Content-Type", "application/x-ndjson; charset=UTF-8")
        self.set_header("Cache-Control", "no-store")
        self.set_header("Tritpress-More", "true" if more else "false")
        self.finish(b"\n".join(lines) + (b"\n" if lines else b""))

    async def post(self, run_id: str) -> None:
        valid_id(run_id)
        self.answer(await beside(push, self.store.runs_dir, run_id, self.body()))


class Commands(Handler):
    """A command to the run's worker."""

    async def post(self, run_id: str) -> None:
        run = self.run_of(run_id)
        body = self.body("command", "args", "wait")
        wait = body.get("wait", 0)
        if isinstance(wait, bool) or not isinstance(wait, int | float) or not 0 <= wait <= WAIT_MOST:
            raise ApiError(400, f"'wait' is a number of seconds from 0 to {WAIT_MOST:.0f}")
        if not isinstance(body.get("args", {}), dict) or not isinstance(body.get("command"), str):
            raise ApiError(400, 'a command is {"command": its name, "args": an object}')
        sent = await beside(command, run, body["command"], body.get("args", {}), threads=WAITING)
        ack = await acknowledged(run, sent["id"], wait) if sent["id"] and wait else None
        self.answer({**sent, "ack": ack}, 200 if ack is not None or not sent["id"] else 202)


class Report(Handler):
    """report.json of a finished run."""

    async def get(self, run_id: str) -> None:
        run = self.run_of(run_id)
        try:
            data = await beside(run.report_path.read_bytes)
        except FileNotFoundError:
            raise ApiError(404, f"run {run.id} has no report (yet)") from None
        self.set_header("Content-Type", "application/json; charset=UTF-8")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.finish(data)


class Missing(Handler):
    """Whatever else is asked of the API."""

    def prepare(self) -> None:
        check_guard(self)
        raise ApiError(404, f"the API has no {self.request.path[:200]}")


def check_guard(handler: web.RequestHandler) -> None:
    """Let pass what the guard admits.

    Without a guard (a bare `panel serve`) the token comes from the environment, and with none nothing passes.
    """
    guard: Guard | None = handler.guard  # type: ignore[attr-defined]
    if guard is None:
        token = os.environ.get(TOKEN_VARIABLE)
        if not token:
            raise ApiError(401, f"this server has no token: it takes one from {TOKEN_VARIABLE} at its start")
        guard = Guard(token, 0, loopback=False)
    request = handler.request
    refusal = guard.foreign(request.headers)
    if refusal is not None:
        raise ApiError(refusal.status, refusal.sentence)
    if not guard.admits(request.headers, {key: morsel.value for key, morsel in request.cookies.items()}):
        raise ApiError(401, "this needs the token: `Authorization: Bearer TOKEN`")


def error_answer(status: int, exc_info: Any) -> tuple[dict[str, Any], int]:
    """The body and the status that stand for an exception."""
    error = exc_info[1] if exc_info else None
    if isinstance(error, ApiError):
        return error.body, error.status
    if disk_is_full(error):
        return {"error": "the disk is full: nothing could be kept"}, 507
    if isinstance(error, UsageError | InputError):
        return {"error": str(error)}, 400
    if isinstance(error, TritpressError):
        return {"error": str(error)}, 409
    if isinstance(error, web.HTTPError):
        return {"error": error.log_message or error.reason or f"HTTP {status}"}, status
    return {"error": "the server failed; its log says more"}, 500


async def beside(work: Callable[..., Any], *arguments: Any, threads: ThreadPoolExecutor = THREADS) -> Any:
    """Do what touches the disk beside the server's loop."""
    return await asyncio.get_running_loop().run_in_executor(threads, work, *arguments)


def whole_number(handler: web.RequestHandler, name: str, default: int, least: int, most: int) -> int:
    text = handler.get_query_argument(name, None)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 16 or not least <= int(text) <= most:
        raise ApiError(400, f"{name!r} is a whole number from {least:,} to {most:,}")
    return int(text)


def valid_id(run_id: str) -> str:
    """`run_id` when it can be one, else 400."""
    if not RUN_ID.fullmatch(run_id):
        raise ApiError(400, "a run's id holds letters, digits, '.', '_' and '-' only")
    return run_id


def find(store: RunStore, run_id: str) -> RunDirectory:
    path = store.path_of(valid_id(run_id))
    if path is None:
        raise ApiError(404, f"there is no run {run_id!r}")
    return RunDirectory(path)


@functools.cache
def index_of(runs_dir: Path) -> RunIndex:
    """The one index of that folder for all requests: it reads again only what changed."""
    return RunIndex(runs_dir)


def state_of(run: RunDirectory) -> dict[str, Any]:
    """The folded state with the run's id, whether its worker lives, and where that is."""
    state = run_state(run)
    short = summary(run)
    of_run = ("id", "alive", "status", "name", "tags", "note", "origin")
    return {**state, **{key: short[key] for key in of_run}}


def events_after(path: Path, after: int, limit: int) -> tuple[list[bytes], bool]:
    """Lines of the events after number `after`, and whether there are more than these."""
    lines, offset = read_lines(path, offset_after(path, after), limit, ANSWER)
    return lines, bool(lines) and offset < path.stat().st_size


def start(runs_dir: Path, body: dict[str, Any]) -> dict[str, Any]:
    """Start a run; what it writes lies in its own folder."""
    from tritpress.config import UNSAFE_OVER_API, make_config
    from tritpress.runs.launch import launch

    model, values, name = body.get("model"), body.get("config", {}), body.get("name")
    if not isinstance(model, str) or not model:
        raise ApiError(400, "'model' must be the path of a model directory on the server's machine")
    if not isinstance(values, dict):
        raise ApiError(400, "'config' must be a JSON object of configuration fields")
    if unsafe := sorted(UNSAFE_OVER_API & values.keys()):
        raise ApiError(403, f"{unsafe[0]} starts a program: it can be set on the command line alone")
    if name is not None and (not isinstance(name, str) or not name.strip() or len(name) > NAME):
        raise ApiError(400, f"'name' must be a text of at most {NAME} characters")
    try:
        config, title = make_config(values), name.strip() if name else None
        if (why := refused(model, config) or webhooks.refusal(config)) is not None:
            raise ApiError(403, why)
        run = launch(model, None, config, runs_dir, name=title, queue=body.get("queue") is True)
    except (ValueError, OSError) as error:  # a path with a NUL, one that is too long
        if disk_is_full(error):
            raise
        raise ApiError(400, f"the run cannot be started: {error}") from None
    return {"id": run.id}


def command(run: RunDirectory, name: str, args: dict[str, Any]) -> dict[str, Any]:
    """Send a command, or start a worker again on a run that has none and is to be resumed."""
    from tritpress.runs.commands import COMMANDS, send
    from tritpress.runs.launch import resume
    from tritpress.runs.liveness import is_alive

    if name not in COMMANDS:
        raise ApiError(400, f"unknown command {name[:40]!r}: a run takes {', '.join(COMMANDS)}")
    if name == "resume" and not is_alive(run) and run.read_run().get("origin") != REMOTE:
        try:
            resume(run)
        except (InputError, UsageError) as error:  # not what was asked, but how the run or its model stands
            raise ApiError(409, str(error)) from None
        return {"run": run.id, "command": name, "id": None, "resumed": True}
    return {"run": run.id, "command": name, "id": send(run, name, **args)}


async def acknowledged(run: RunDirectory, command_id: str, wait: float) -> dict[str, Any] | None:
    """The worker's answer to that command, or None when it did not come in time."""
    from tritpress.runs.commands import wait_ack

    return await beside(wait_ack, run, command_id, wait, threads=WAITING)
