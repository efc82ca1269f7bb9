"""Access control for a server: host names, origins, passwords, keys, cookies, and request sizes.

One ASGI middleware wraps the whole application, Gradio's own routes included, so that no route can
be forgotten.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import logging
import re
import secrets
import socket
from asyncio import sleep
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vqa_app.serving.csp import with_security_headers
from vqa_app.serving.openai_errors import API_PATH, ApiError

log = logging.getLogger(__name__)

COOKIE = "vqa_browser"
_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")
WRONG_PASSWORD_SECONDS = 0.5
"""Seconds until a wrong password is answered, which slows down guessing."""
MAX_WRONG_PASSWORDS = 8
"""Wrong passwords of one address that may be pending; further attempts are refused unchecked."""
_OPEN_PATHS = ("/healthz", "/readyz")
METRICS_PATH = "/metrics"


@dataclass(frozen=True)
class AccessRules:
    """What the guard allows."""

    hosts: frozenset[str] = frozenset()
    """Host names to answer to. `localhost`, this machine's name and IP addresses are always
    allowed: DNS rebinding needs a name."""
    users: Mapping[str, str] = field(default_factory=dict)
    """Passwords by user. If empty, no password is needed, and each browser is its own owner. On
    paths of OpenAI's API and of its counters, whose clients send keys only, `ann:secret` is the key
    of a user."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """API keys by name. If empty, no key is needed."""
    max_body: int = 32 * 2**20
    """Size limit of a request body, in bytes."""
    larger: Mapping[str, int] = field(default_factory=dict)
    """Other size limits, in bytes, by path prefix: for uploads."""
    root_path: str = ""
    """Path under which a proxy shows the page, like `/vqa`; the cookie is valid for it. Requests
    may have it or not, so that the address works on this machine too."""
    reachable: re.Pattern[str] | None = None
    """Pattern that a whole path must match; any other path gets 404. None allows all paths."""


def machine_hosts(extra: Iterable[str] = ()) -> frozenset[str]:
    """Return the names of this machine and the given ones, in lower case."""
    return frozenset(name.lower() for name in ("localhost", socket.gethostname(), *extra))


class Guard:
    """ASGI middleware that refuses forbidden requests and identifies the owner of the others.

    It sets `scope["state"]["owner"]` to `user:<name>`, `key:<name>` or `browser:<hash of the
    cookie>`, or to "" for a request with none. Only the hash is stored, never the cookie.

    Args:
        app: The application to protect.
        rules: What is allowed.
    """

    def __init__(self, app: ASGIApp, rules: AccessRules) -> None:
        self.app = app
        self.rules = rules
        self._hosts = machine_hosts(rules.hosts)
        self._wrong: Counter[str] = Counter()
        """Number of wrong passwords that are pending, by client address."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        scope = self._without_root_path(scope)
        headers = Headers(scope=scope)
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            if refusal.status_code == 401 and "authorization" in headers:
                await self._delay_wrong_password(_address(scope, headers))
            await refusal(scope, receive, with_security_headers(send, {}))
            return
        user = self._user(scope, headers)
        token = _token(headers)
        owner = user or (f"browser:{_digest(token)}" if token else "")
        scope.setdefault("state", {})["owner"] = owner
        new = {} if token or user or scope["type"] != "http" else self._new_cookie(scope)
        body = _Body(receive, self._limit(scope))
        await self.app(scope, body.receive, with_security_headers(send, new))

    async def _delay_wrong_password(self, address: str) -> None:
        """Delay the answer to a wrong password without delaying anyone else."""
        log.warning("Wrong password or key from %s.", address or "this machine or its proxy")
        if not address:
            await sleep(WRONG_PASSWORD_SECONDS)
            return
        self._wrong[address] += 1
        try:
            await sleep(WRONG_PASSWORD_SECONDS)
        finally:
            self._wrong[address] -= 1
            if not self._wrong[address]:
                del self._wrong[address]

    def _without_root_path(self, scope: Scope) -> Scope:
        """Remove the root path from a request's path, if a path of the application is left.

        Paths of our own may begin alike: with the root path `/vqa`, a proxy that removes it sends
        `/vqa/pictures`, and one that does not `/vqa/vqa/pictures`.
        """
        root, path = self.rules.root_path, scope["path"]
        if not root or not path.startswith(f"{root}/"):
            return scope
        rest = path.removeprefix(root)
        if self.rules.reachable and not self.rules.reachable.fullmatch(rest):
            return scope
        return {**scope, "path": rest, "raw_path": quote(rest).encode()}

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        path = scope["path"]
        if not self._host_allowed(headers.get("host", "")):
            return _refuse(
                path,
                421,
                "This server does not answer to this host name. Start it with --allow-host NAME"
                " if the name is correct.",
            )
        if not _same_origin(headers):
            return _refuse(path, 403, "Requests from other sites are refused.")
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > self._limit(scope):
            return _refuse(path, 413, "The request is too large.")
        if (self.rules.users or self.rules.keys) and path not in _OPEN_PATHS:
            if self._wrong[_address(scope, headers)] >= MAX_WRONG_PASSWORDS:  # even a correct one
                return _refuse(path, 429, "Too many wrong passwords at once.")
            if self._user(scope, headers) is None:
                basic = self.rules.users and not API_PATH.fullmatch(path)
                return _refuse(
                    path,
                    401,
                    "Please sign in." if basic else "Send a valid API key of this server.",
                    'Basic realm="VQA chat", charset="UTF-8"' if basic else "Bearer",
                )
        if self.rules.reachable and not self.rules.reachable.fullmatch(path):
            return PlainTextResponse("Not found.\n", 404)
        return None

    def _limit(self, scope: Scope) -> int:
        path = scope["path"]
        sizes = [size for start, size in self.rules.larger.items() if path.startswith(start)]
        return max(sizes, default=self.rules.max_body)

    def _host_allowed(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        except ValueError:
            return False
        if name in self._hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _user(self, scope: Scope, headers: Headers) -> str | None:
        """Return who sends a correct password or key."""
        scheme, _, value = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "basic" and self.rules.users:
            try:
                return self._check_password(base64.b64decode(value, validate=True).decode())
            except (binascii.Error, UnicodeDecodeError):
                return None
        if scheme.lower() != "bearer":
            return None
        if self.rules.users and (
            API_PATH.fullmatch(scope["path"]) or scope["path"] == METRICS_PATH
        ):
            return self._check_password(value)
        found = None
        for name, key in self.rules.keys.items():  # all, so that the time reveals nothing
            if hmac.compare_digest(_digest(key), _digest(value)):
                found = f"key:{name}"
        return found

    def _check_password(self, entry: str) -> str | None:
        """Return the owner for `user:password`."""
        name, _, password = entry.partition(":")
        # Always compare a password, so that the response time does not reveal which users exist.
        known = name in self.rules.users
        right = hmac.compare_digest(_digest(self.rules.users.get(name, "")), _digest(password))
        return f"user:{name}" if known and right else None

    def _new_cookie(self, scope: Scope) -> dict[str, str]:
        if scope["method"] != "GET":
            return {}
        secure = "; Secure" if scope.get("scheme") == "https" else ""
        value = (
            f"{COOKIE}={secrets.token_urlsafe(32)}; Path={self.rules.root_path or '/'};"
            f" Max-Age=31536000; HttpOnly; SameSite=Lax{secure}"
        )
        return {"set-cookie": value}


def _refuse(path: str, status: int, message: str, authenticate: str = "") -> Response:
    """Return a refusal, in OpenAI's form on paths of its API."""
    headers = {"www-authenticate": authenticate} if authenticate else {}
    if API_PATH.fullmatch(path):
        code = "invalid_api_key" if status == 401 else None
        return ApiError(status, message, code=code, headers=headers).response()
    return PlainTextResponse(f"{message}\n", status, headers)


def _same_origin(headers: Headers) -> bool:
    """Return whether a request comes from this server's page, or from a program (no page at all).

    Behind a proxy, this needs the browser's own Host header (`proxy_set_header Host $http_host`).
    """
    origin = headers.get("origin")
    if origin is not None:
        try:
            return urlsplit(origin).netloc.lower() == headers.get("host", "").lower()
        except ValueError:  # malformed, like http://[
            return False
    # Browsers send no Origin with plain navigations, but mark them as cross-site here.
    site = headers.get("sec-fetch-site", "same-origin")
    return site != "cross-site" or headers.get("sec-fetch-mode") == "navigate"


def _address(scope: Scope, headers: Headers) -> str:
    """Return the client's address, or "" if it is unknown.

    A loopback address belongs to a proxy on this machine, which names the client in
    `X-Forwarded-For`.
    """
    address = (scope.get("client") or ("",))[0]
    try:
        if not ipaddress.ip_address(address).is_loopback:
            return address
    except ValueError:
        pass
    return headers.get("x-forwarded-for", "").rpartition(",")[2].strip()[:50]


def _token(headers: Headers) -> str | None:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return None
    return found.value if found and _TOKEN.fullmatch(found.value) else None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class _Body:
    """Enforces the size limit on a body that declares no length, or a false one."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive, self._left = receive, limit

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._left -= len(message.get("body", b""))
            if self._left < 0:
                raise HTTPException(413, "The request is too large.")
        return message
