"""What every request passes before it is looked at: hosts and sites that may ask, the token, and headers of every answer."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from autoseg.issues import Issue

LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
"""Names under which a service that only this machine reaches may be asked: a page of another site that has its own name lead here, asks by that."""
OPEN_PATHS = ("/", "/docs", "/openapi.json", "/health", "/static/")
"""What needs no token: nothing of it is about an image or a model. The last is a folder."""
READING = ("GET", "HEAD", "OPTIONS")
SAME_SITE = ("same-origin", "none")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; connect-src 'self' data: blob:; "
    "font-src 'self' data:; worker-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""A browser loads nothing from elsewhere, whatever a page asks for. NiiVue sets styles, and keeps its letters in data URLs."""
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a service that listens there."""
    try:
        return host == "localhost" or ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def refusal(method: str, path: str, headers: Headers, *, token: str | None, is_local: bool) -> Issue | None:
    """Why a request is not looked at, if it is not."""
    host = headers.get("host", "")
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    if is_local and token is None and name.lower() not in LOCAL_NAMES:
        message, fix = f"asked as {name[:80]!r}, but it serves this machine only", f"ask as {LOCAL_NAMES[0]}"
        return Issue(code="serve.other_host", where="Host", message=message, fix=fix)
    if method not in READING and headers.get("sec-fetch-site", "none") not in SAME_SITE:
        message, fix = "asked by a page of another site", "use the page of the service itself"
        return Issue(code="serve.other_site", where="Sec-Fetch-Site", message=message, fix=fix)
    is_open = path in OPEN_PATHS or path.startswith(OPEN_PATHS[-1])
    given = headers.get("authorization", "").partition(" ")[2].strip()
    if token is not None and not is_open and not hmac.compare_digest(given.encode(), token.encode()):
        fix = "send the header Authorization: Bearer TOKEN"
        return Issue(code="serve.no_token", where="Authorization", message="no token, or another one", fix=fix)
    return None


@dataclass(frozen=True, slots=True)
class Guard:
    """Refuses what `refusal` says, and adds `HEADERS` to every answer."""

    app: ASGIApp
    answer: Callable[[Issue], ASGIApp]
    """The answer to a request that is refused."""
    token: str | None
    is_local: bool

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        found = refusal(scope["method"], scope["path"], Headers(scope=scope), token=self.token, is_local=self.is_local)
        await (self.app if found is None else self.answer(found))(scope, receive, send_with_headers)
