"""Runs a server: its address, its token, and its end."""

from __future__ import annotations

import hashlib
import ipaddress
import logging
import os
import secrets
import socket
from collections.abc import Callable
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from mois.errors import one_line
from mois.serve.refusals import Refusal
from mois.serve.safety import LOG, App, Guard, Limits, error_body, place_of

LOOPBACK = "127.0.0.1"
FIRST_PORT, PORTS = 20_000, 12_000
"""Ports below those that systems give to outgoing connections."""


def token_of(studies: Path) -> str:
    """Return the secret of the servers of a folder. It is made once, and only this user can read its file."""
    file = studies / "token"
    studies.mkdir(mode=0o700, parents=True, exist_ok=True)
    if file.is_symlink():
        raise ValueError(f"{file} is a link; remove it.")
    try:
        made = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        token = file.read_text(encoding="ascii", errors="replace").strip()
        if len(token) < 20 or not token.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"{file} holds no token; remove it to have one made.") from None
        return token
    with os.fdopen(made, "w", encoding="ascii") as opened:
        token = secrets.token_urlsafe(24)
        opened.write(f"{token}\n")
    return token


def bound_socket(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address; port 0 takes a free one.

    Raises:
        ValueError: If the address is taken or is none of this machine, or it stands for all addresses.
    """
    if host in ("", "0.0.0.0", "::", "*"):
        raise ValueError(f"host={host!r} stands for all addresses; name the one address that clients use.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Only of a socket that names its protocol does asyncio switch off the wait of 40 ms for more to send.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise ValueError(f"{host}:{port} cannot be used ({error.strerror}); choose another port.") from error
    return listening


def scan_socket(key: str) -> socket.socket:
    """Return a socket of this machine for a scan: always the same port, so that an open page finds it after a restart.

    Args:
        key: Name of the scan's folder. If another program has its port, a free one is taken.
    """
    port = FIRST_PORT + int(hashlib.sha256(key.encode()).hexdigest(), 16) % PORTS
    try:
        return bound_socket(LOOPBACK, port)
    except ValueError:
        return bound_socket(LOOPBACK, 0)


def is_loopback(host: str) -> bool:
    """Return whether only programs of this machine can reach an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def names_of(host: str, port: int) -> frozenset[str]:
    """Return the values of the header `Host` that name this server."""
    shown = f"[{host}]" if ":" in host else host
    also = ("127.0.0.1", "localhost", "[::1]") if is_loopback(host) else ()
    return frozenset(f"{name}:{port}".lower() for name in (shown, *also))


def plain_app(title: str) -> FastAPI:
    """Return an application without pages about itself, whose errors are one line of JSON."""
    app = FastAPI(title=title, docs_url=None, redoc_url=None, openapi_url=None)
    one_line_errors(app)
    return app


def one_line_errors(app: FastAPI) -> None:
    """Make every error of an application one line of JSON."""
    for kind in (Refusal, ValueError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, _answer_error)


async def _answer_error(_request: Request, error: Exception) -> Response:
    if isinstance(error, Refusal):
        return _line(error.status, error.text)
    if isinstance(error, RequestValidationError):
        return _line(422, "the request cannot be read; see the protocol for what this path takes.")
    if isinstance(error, HTTPException):
        return _line(error.status_code, "this path or method does not exist.")
    if isinstance(error, ValueError):  # of a session: one line for the reader
        return _line(400, one_line(str(error)))
    LOG.error("%s", place_of(error))
    return _line(500, "the server made a mistake; its log says where.")


def _line(status: int, text: str) -> Response:
    return Response(error_body(text), status, media_type="application/json")


def serve(
    app: App,
    listening: socket.socket,
    token: str,
    *,
    limits: Limits | None = None,
    ended: Callable[[], None] | None = None,
) -> None:
    """Serve an application until it is interrupted.

    Args:
        app: The application, as FastAPI makes it.
        listening: Where, from `bound_socket`.
        token: The secret that requests must show.
        limits: Bounds of a request.
        ended: Called after the last request.
    """
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    host, port = listening.getsockname()[:2]
    guarded = Guard(app, token, names_of(host, port), limits)
    settings = uvicorn.Config(
        guarded, log_config=None, log_level="warning", access_log=False, server_header=False, timeout_keep_alive=30
    )
    try:
        uvicorn.Server(settings).run([listening])
    finally:
        if ended is not None:
            ended()
