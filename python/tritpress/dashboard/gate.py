"""The guard before every request of a server: pages, their WebSockets, their resources, and the API alike.

It stands where the server looks for a handler, so that no route, present or future, is reached around it.
"""

from __future__ import annotations

import html
import json
import time
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from tornado import web
from tornado.httputil import HTTPServerRequest

from tritpress.dashboard.security import Guard, Refusal

API = "/api/"

API_BODY = 8 << 20
"""Bytes that a request to the API may carry."""

PAGE_BODY = 64 << 10
"""Bytes that any other request may carry; pages send what they have over their WebSocket."""

DRAINED = 128 << 20
"""Bytes of an oversize request that are read and thrown away, so that its sender can hear why."""

LOGIN = "/login"

LOGIN_TRIES = 10
"""Wrong passwords a minute before the form answers 429."""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>tritpress</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 0; min-height: 100vh; display: grid;
  place-items: center; background: Canvas; color: CanvasText; }}
main {{ max-width: 34rem; padding: 2rem 1.5rem; }}
h1 {{ font-size: 1.35rem; margin: 0 0 .5rem; }}
code {{ font-family: ui-monospace, monospace; font-size: .9em; overflow-wrap: anywhere; }}
form {{ display: flex; flex-wrap: wrap; gap: .6rem; align-items: end; margin-top: 1rem; }}
label {{ display: grid; gap: .25rem; }}
input, button {{ font: inherit; padding: .45rem .7rem; }}
.bad {{ font-weight: 600; }}
</style></head><body><main><h1>{title}</h1>{body}</main></body></html>"""

TOKEN_BODY = """<p>This dashboard can start and stop runs, so it asks for a token. The address that carries
it was printed in the terminal where <code>tritpress dashboard</code> was started:</p>
<p><code>{example}</code></p>
<p>Open that address once; this browser then remembers it until the server ends.</p>"""

PASSWORD_BODY = """<p>This dashboard can start and stop runs, so it asks who you are.</p>{note}
<form method="post" action="/login"><label>Password
<input type="password" name="password" autocomplete="current-password" required autofocus></label>
<input type="hidden" name="next" value="{next}"><button>Sign in</button></form>"""

CROSS_BODY = """<p>The link came from another site. Such requests are not answered by themselves, but you
may go on:</p><p><a href="{next}">Open the dashboard</a></p>"""

MOVED_BODY = """<meta http-equiv="refresh" content="0; url={next}">
<p><a href="{next}">Open the dashboard</a></p>"""


@web.stream_request_body
class Answer(web.RequestHandler):
    """Answers in place of what was asked for. A body is taken in and thrown away."""

    def initialize(
        self, guard: Guard, status: int, sentence: str, page: str = "", to: str = "", cookie: bool = False
    ) -> None:
        self.guard, self.status, self.sentence = guard, status, sentence
        self.page, self.to, self.cookie = page, to, cookie

    def data_received(self, chunk: bytes) -> None:
        return None

    def check_xsrf_cookie(self) -> None:
        return None

    def compute_etag(self) -> None:
        return None

    def answer(self, *_: Any) -> None:
        self.set_status(self.status)
        self.set_header("Cache-Control", "no-store")
        self.set_header("Referrer-Policy", "same-origin")  # with "no-referrer" a form has no Origin either
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; "
                        "form-action 'self'; frame-ancestors 'none'")  # fmt: skip
        if self.status == 401:
            self.set_header("WWW-Authenticate", 'Bearer realm="tritpress"')
        if self.cookie:
            set_cookie(self, self.guard)
        if self.to:
            self.set_header("Location", self.to)
        if self.page:
            self.finish(self.page)
        else:
            self.set_header("Content-Type", "application/json; charset=UTF-8")
            self.finish(json.dumps({"error": self.sentence}))

    get = post = put = delete = head = options = patch = answer


class Login(web.RequestHandler):
    """The form of `--password`."""

    tries: list[float] = []  # noqa: RUF012 (shared by design: when wrong passwords came)

    def initialize(self, guard: Guard) -> None:
        self.guard = guard

    def check_xsrf_cookie(self) -> None:
        return None  # the guard has refused foreign origins

    def get(self) -> None:
        self.redirect("/")

    def post(self) -> None:
        now = time.monotonic()
        self.tries[:] = [at for at in self.tries if now - at < 60]
        to = local_path(self.get_body_argument("next", "/"))
        if len(self.tries) >= LOGIN_TRIES:
            self._again(429, to, "There were too many wrong passwords. Try again in a minute.")
        elif self.guard.is_password(self.get_body_argument("password", "", strip=False)):
            set_cookie(self, self.guard)
            self.redirect(to, status=303)
        else:
            self.tries.append(now)
            self._again(401, to, "That was not the password.")

    def _again(self, status: int, to: str, sentence: str) -> None:
        self.set_status(status)
        self.set_header("Cache-Control", "no-store")
        self.finish(password_page(to, sentence))


def install(application: web.Application, guard: Guard) -> None:
    """Put `guard` before every request to `application`."""
    route = application.find_handler

    def find_handler(request: HTTPServerRequest, **kwargs: Any) -> Any:
        found = look(request, guard)
        if found is None:
            return route(request, **kwargs)
        kind, arguments = found
        return application.get_handler_delegate(request, kind, {"guard": guard, **arguments})

    application.find_handler = find_handler  # type: ignore[method-assign]


def look(request: HTTPServerRequest, guard: Guard) -> tuple[type[web.RequestHandler], dict[str, Any]] | None:
    """None when the request may pass, else what answers it and with which arguments."""
    api = is_api(request)
    too_large = limit_body(request, API_BODY if api else PAGE_BODY)
    if too_large is not None:
        return Answer, {"status": 413, "sentence": too_large}
    refusal = guard.foreign(request.headers)
    entering = _entering(request, guard) if refusal is None or refusal.cross_site else None
    if entering is not None:
        return entering
    if refusal is not None:
        return Answer, _refused(request, refusal, api)
    if guard.password is not None and request.path == LOGIN:
        return Login, {}
    if guard.admits(request.headers, {key: morsel.value for key, morsel in request.cookies.items()}):
        return None
    sentence = "this needs the token that the server printed at its start: `Authorization: Bearer TOKEN`"
    page = "" if api or not wants_page(request) else _sign_in_page(request, guard)
    return Answer, {"status": 401, "sentence": sentence, "page": page}


def is_api(request: HTTPServerRequest) -> bool:
    """Whether the request is to the API."""
    return request.path.startswith(API)


def wants_page(request: HTTPServerRequest) -> bool:
    """Whether a person will see the answer."""
    upgrade = request.headers.get("Upgrade", "").lower() == "websocket"
    return request.method == "GET" and not upgrade and "text/html" in request.headers.get("Accept", "")


def limit_body(request: HTTPServerRequest, limit: int) -> str | None:
    """Hold the request's body to `limit` bytes; the sentence that says so when it announced more."""
    try:
        length = int(request.headers.get("Content-Length", "0"))
    except ValueError:
        length = 0  # the server refuses it by itself
    over = length > limit
    connection: Any = request.connection
    if hasattr(connection, "set_max_body_size"):
        connection.set_max_body_size(DRAINED if over else limit)
    return f"the request has {length:,} bytes; at most {limit:,} are taken" if over else None


def set_cookie(handler: web.RequestHandler, guard: Guard) -> None:
    """Let this browser in from now on."""
    handler.set_cookie(
        guard.cookie,
        guard.cookie_value,
        httponly=True,
        samesite="Strict",
        secure=handler.request.protocol == "https",
        path="/",
    )


def local_path(to: str) -> str:
    """`to` when it is a path on this server, else "/"."""
    plain = to.startswith("/") and not to.startswith(("//", "/\\")) and to.isprintable() and "\\" not in to
    return to if plain else "/"


def password_page(to: str, note: str = "") -> str:
    """The form that asks for the password."""
    said = f'<p class="bad" role="alert">{html.escape(note)}</p>' if note else ""
    return PAGE.format(title="Sign in", body=PASSWORD_BODY.format(note=said, next=html.escape(to)))


def _entering(
    request: HTTPServerRequest, guard: Guard
) -> tuple[type[web.RequestHandler], dict[str, Any]] | None:
    """The way in with `?token=` in the address: a cookie, and the same address without the token."""
    if request.method != "GET" or is_api(request) or "token" not in request.query_arguments:
        return None
    if request.headers.get("Upgrade") or not guard.is_token(request.arguments["token"][-1].decode("latin-1")):
        return None
    query = [(key, value) for key, value in parse_qsl(request.query, True) if key != "token"]
    to = local_path(request.path + (f"?{urlencode(query)}" if query else ""))
    if request.headers.get("Sec-Fetch-Site", "none") in ("none", "same-origin"):
        return Answer, {"status": 302, "sentence": "", "page": " ", "to": to, "cookie": True}
    # Along a redirect the browser would still take the other site for the one who asks: no cookie.
    page = PAGE.format(title="tritpress", body=MOVED_BODY.format(next=html.escape(to)))
    return Answer, {"status": 200, "sentence": "", "page": page, "cookie": True}


def _refused(request: HTTPServerRequest, refusal: Refusal, api: bool) -> dict[str, Any]:
    page = ""
    if not api and wants_page(request):
        if refusal.cross_site:
            body = CROSS_BODY.format(next=html.escape(local_path(request.uri or "/")))
        else:
            body = f"<p>{html.escape(refusal.sentence)}.</p>"
        page = PAGE.format(title="Not answered", body=body)
    return {"status": refusal.status, "sentence": refusal.sentence, "page": page}


def _sign_in_page(request: HTTPServerRequest, guard: Guard) -> str:
    if guard.password is not None:
        return password_page(local_path(request.uri or "/"))
    host = urlsplit(f"//{request.host}").netloc
    example = f"http://{html.escape(host)}/dashboard?token=…"
    return PAGE.format(title="This page needs its token", body=TOKEN_BODY.format(example=example))
