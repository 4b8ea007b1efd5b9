"""A server for one person on this machine: loopback only, a token that works once, then a cookie."""

import contextlib
import secrets
import socket
import webbrowser
from collections.abc import Callable
from importlib import resources

import uvicorn
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from datablame.errors import RequestError, problem

HOST = "127.0.0.1"
_OWN = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""Pages of ours run and load what this server serves, and nothing else."""
_HEADERS = {
    "Content-Security-Policy": _OWN,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def serve(app: ASGIApp, *, methods: frozenset[str], port: int, browser: bool, say: Callable[[str], None]) -> None:
    """Serve until the person interrupts; `say` gets the address, whose token works once.

    Raises RequestError where the port cannot be used.
    """
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    with listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((HOST, port))
            listening.listen()
        except (OSError, OverflowError) as error:
            raise RequestError(problem("view", "port taken", port=port, error=error)) from None
        port, token = listening.getsockname()[1], secrets.token_urlsafe(24)
        address = f"http://{HOST}:{port}/?token={token}"
        config = uvicorn.Config(
            guarded(app, port, token, methods),
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=1,
        )
        # Ctrl-C is how one stops looking.
        with contextlib.suppress(KeyboardInterrupt):
            say(address)
            if browser:
                webbrowser.open(address)
            uvicorn.Server(config).run(sockets=[listening])


def guarded(app: ASGIApp, port: int, token: str, methods: frozenset[str]) -> ASGIApp:
    """The app for who has the token, and afterwards for that browser alone; everybody else gets one sentence."""
    hosts, cookie, session = (f"{HOST}:{port}", f"localhost:{port}"), f"datablame-{port}", secrets.token_urlsafe(24)
    unused = [token]

    def refusal(request: Request) -> str | None:
        host, origins = request.headers.getlist("host"), request.headers.getlist("origin")
        if len(host) != 1 or host[0] not in hosts:
            return "This server answers to its own address only."
        if any(origin != f"http://{host[0]}" for origin in origins):
            return "This server does not answer to other pages."
        if request.method not in methods:
            return "This server does not know that method."
        if request.method == "POST" and not (origins and _is_json(request.headers)):
            return "This server takes JSON from its own page only."
        return None

    def admitted(request: Request) -> Response | None:
        """What sends a browser with the token on, with its cookie; None for any other."""
        given = request.query_params.get("token", "")
        if request.method != "GET" or not unused or not secrets.compare_digest(given.encode(), unused[0].encode()):
            return None
        unused.clear()
        response = RedirectResponse("/", 303)
        response.set_cookie(cookie, session, httponly=True, samesite="strict")
        return response

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        request = Request(scope)
        answer: ASGIApp | None
        if (why := refusal(request)) is not None:
            answer = PlainTextResponse(why, 403)
        elif secrets.compare_digest(request.cookies.get(cookie, "").encode(), session.encode()):
            answer = app
        elif (answer := admitted(request)) is None:
            answer = PlainTextResponse("Open the address that datablame printed; its token works once.", 403)
        await answer(scope, receive, with_headers)

    return guard


def _is_json(headers: Headers) -> bool:
    return headers.get("content-type", "").partition(";")[0].strip() == "application/json"


def style() -> Response:
    """The style of the report's page and what these pages add."""
    texts = (
        resources.files(package).joinpath(name).read_text(encoding="utf-8")
        for package, name in (("datablame.report", "page/page.css"), ("datablame.view", "templates/view.css"))
    )
    return Response("\n".join(texts), media_type="text/css")


def no_icon() -> Response:
    """What a browser asks for unasked."""
    return Response(status_code=204)


def script(name: str) -> Response:
    """A script of these pages."""
    text = resources.files("datablame.view").joinpath("templates", name).read_text(encoding="utf-8")
    return Response(text, media_type="text/javascript")
