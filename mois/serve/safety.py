"""What every request passes before a server acts on it: token, host, origin, size and time."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import time
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from mois.errors import one_line
from mois.serve.refusals import Refusal

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOG = logging.getLogger("mois.serve")
LOOKS = ("/heartbeat", "/masks", "/preview")
"""Paths that change nothing, like a GET. A page asks several times a second, so the log has them only if they fail."""


@dataclass(frozen=True)
class Limits:
    """Bounds of a request.

    Attributes:
        body_bytes: Largest body, as it is sent.
        upload_s: Seconds in which the whole body must arrive.
        request_s: Seconds in which the answer must begin, once the body is there.
    """

    body_bytes: int = 1 << 30
    upload_s: float = 120.0
    request_s: float = 600.0


class Guard:
    """An ASGI application that passes on only requests which prove that they come from a client of this server.

    - The token stands in the header `Authorization: Bearer TOKEN`, or it is the first part of the path: /TOKEN/healthz.
    - `Host` names this server, so a foreign name that points to this machine does not work.
    - `Origin`, if there is one, is this server: a page of another site cannot act. No header allows other origins.
    - A body is refused before it is read if it says that it is too large, and while it is read if it is too large.
    - An error is one line of JSON, {"error": "...", "detail": "..."} with the same text twice, since some clients read
      `detail`. The log holds digests and no names.

    Args:
        app: The application.
        token: The secret of this server.
        hosts: Values of `Host` that name this server, such as 127.0.0.1:1527.
        limits: Bounds of a request.
    """

    def __init__(self, app: App, token: str, hosts: frozenset[str], limits: Limits | None = None) -> None:
        self._app = app
        self._token = token
        self._hosts = hosts
        self._limits = limits if limits is not None else Limits()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        answer = _Answer(send)
        begin = time.perf_counter()
        try:
            inner = self._checked(scope)
            body = await self._body(scope, receive)
            async with asyncio.timeout(self._limits.request_s) as until:
                answer.begun = lambda: until.reschedule(None)
                await self._app(inner, _once(body, receive), answer)
        except TimeoutError:
            await answer.refuse(504, "the answer took too long; the action may still be done.")
        except Refusal as refusal:
            await answer.refuse(refusal.status, refusal.text)
        except ValueError as error:  # of a session: one line for the reader
            await answer.refuse(400, one_line(str(error)))
        except Exception as error:
            LOG.error("%s", place_of(error))
            await answer.refuse(500, "the server made a mistake; its log says where.")
        took = time.perf_counter() - begin
        name = request_name(scope, self._token)
        looks = scope["method"] in ("GET", "HEAD") or name in LOOKS
        level = logging.DEBUG if looks and answer.status < 400 else logging.INFO
        LOG.log(level, "%s %s %d %.0f ms", scope["method"], name, answer.status, 1000 * took)

    def _checked(self, scope: Scope) -> Scope:
        """Return the request without its secret, once it has proved where it comes from."""
        headers = {name.lower(): value for name, value in scope["headers"]}
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if host not in self._hosts:
            raise Refusal(421, "this server has another name; use the address that it printed.")
        origin = headers.get(b"origin")
        site = headers.get(b"sec-fetch-site", b"none")
        own_origin = origin is None or origin.decode("latin-1").lower() in (f"http://{host}", f"https://{host}")
        if not own_origin or (site not in (b"none", b"same-origin") and scope["method"] != "GET"):
            raise Refusal(403, "a page of another site may not use this server.")
        kind, _, given = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        if kind.lower() == "bearer" and _same(given.strip(), self._token):
            return scope
        first, slash, rest = scope["path"].removeprefix("/").partition("/")
        if not (slash and _same(first, self._token)):
            raise Refusal(401, "the token is missing or wrong; use the address or the token that the server printed.")
        prefix = f"/{first}"
        raw = scope.get("raw_path", scope["path"].encode()).removeprefix(prefix.encode())
        return {**scope, "path": f"/{rest}", "raw_path": raw, "root_path": ""}

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """Return the body, unless it is too large or too slow."""
        most = self._limits.body_bytes
        too_large = Refusal(413, f"the body is larger than {most} bytes.")
        for name, value in scope["headers"]:
            if name.lower() == b"content-length" and not (value.isdigit() and int(value) <= most):
                raise too_large
            if name.lower() == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
                raise Refusal(415, "send the body without compression.")
        parts, size, more = [], 0, True
        try:
            async with asyncio.timeout(self._limits.upload_s):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refusal(400, "the client left before its body was whole.")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    more = bool(message.get("more_body", False))
                    if size > most:
                        raise too_large
        except TimeoutError:
            raise Refusal(408, "the body did not arrive in time.") from None
        return b"".join(parts)


class _Answer:
    """The answer to a request: sends it, and remembers its status."""

    def __init__(self, send: Send) -> None:
        self.status = 0
        self.begun: Callable[[], None] = lambda: None
        self._send = send

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = int(message["status"])
            self.begun()
            plain = [(b"x-content-type-options", b"nosniff"), (b"cross-origin-resource-policy", b"same-origin")]
            present = {name.lower() for name, _ in message.get("headers", [])}
            further = [*plain, (b"referrer-policy", b"no-referrer"), (b"cache-control", b"no-store")]
            headers = [*message.get("headers", []), *(pair for pair in further if pair[0] not in present)]
            message = {**message, "headers": headers}
        await self._send(message)

    async def refuse(self, status: int, text: str) -> None:
        """Answer with one line, unless the answer has begun."""
        if self.status:
            return
        self.begun = lambda: None
        body = error_body(text)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await self({"type": "http.response.start", "status": status, "headers": headers})
        await self({"type": "http.response.body", "body": body})


def error_body(text: str) -> bytes:
    """Return an error as one line of JSON."""
    return json.dumps({"error": text, "detail": text}).encode()


def request_name(scope: Scope, token: str) -> str:
    """Return the first part of a path for the log, without the token. The rest may hold names."""
    parts = [part for part in scope["path"].split("/") if part and not _same(part, token)]
    return f"/{parts[0][:40]}" if parts and parts[0].isidentifier() else "/"


def place_of(error: BaseException) -> str:
    """Return where an error arose, for the log: kind, file and line; its text, which may hold names, as a digest."""
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = f"{last[0].filename.rpartition('/')[2]}:{last[0].lineno}" if last else "?"
    return f"{type(error).__name__} at {where}, text {hashlib.sha256(str(error).encode()).hexdigest()[:8]}"


def _same(given: str, secret: str) -> bool:
    return hmac.compare_digest(given.encode(), secret.encode())


def _once(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the whole body once, and then waits for the end of the connection."""
    given = False

    async def next_message() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return next_message
