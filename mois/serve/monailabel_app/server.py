"""Starts the server of MONAI Label with our app, and closes what its own settings leave open.

The server's package is not imported before `serve`: it lies in an environment of its own, made by `make viewers`.
"""

from __future__ import annotations

import importlib
import logging
import re
import sys
import tempfile
import types
from collections.abc import Awaitable, Callable, MutableMapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from mois.serve.monailabel_app.studies import Studies, checked_id

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

ROUTES = [
    (method, re.compile(path))
    for methods, path in (
        ("GET", r"/info/"),
        ("GET PUT", r"/datastore/"),
        ("GET HEAD PUT", r"/datastore/image"),
        ("GET HEAD PUT", r"/datastore/label"),
        ("GET", r"/datastore/(image|label)/info"),
        ("POST", r"/activelearning/[^/]+"),
        ("POST", r"/infer/[^/]+"),
        ("GET", r"/train/"),
    )
    for method in methods.split()
]
"""What the clients of MONAI Label need. The rest of the server (logs, proxies, archives, trainings) is not reached."""
NAMES = ("image", "label", "id", "tag")
"""Parameters of an address that the server makes a path of."""


def is_installed() -> bool:
    """Return whether the server of MONAI Label is in this environment."""
    return find_spec("monailabel") is not None


def application(studies: Studies) -> Application:
    """Return the server of MONAI Label as an ASGI application, for one folder of scans."""
    sys.modules.setdefault("pydicom_seg", types.ModuleType("pydicom_seg"))  # it needs numpy 1, for DICOM stores alone
    settings = importlib.import_module("monailabel.config").settings
    home = str(studies.folder)
    settings.MONAI_LABEL_APP_DIR, settings.MONAI_LABEL_STUDIES = str(Path(__file__).parent), home
    settings.MONAI_LABEL_APP_CONF = {}
    for name in ("TASKS_TRAIN", "TASKS_SCORING", "TASKS_BATCH_INFER", "AUTO_UPDATE_SCORING", "SESSIONS"):
        setattr(settings, f"MONAI_LABEL_{name}", False)
    spool = studies.folder / ".uploads"
    spool.mkdir(exist_ok=True)
    tempfile.tempdir = str(spool)  # the server writes uploads and answers there
    importlib.import_module("mois.serve.monailabel_app.app").LesionApp.studies_of[home] = studies
    app = importlib.import_module("monailabel.app").app
    for name in ("monailabel", "root"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # its lines name images
    app.user_middleware.clear()  # its rule lets every page of a browser in
    _answer_in_one_line(app)
    _outside_the_loop(app)
    return only_known(app)


def _outside_the_loop(app: Any) -> None:
    """Run long requests in threads: the server's own routes stop all other requests meanwhile."""
    endpoints = "monailabel.endpoints"
    infer = importlib.import_module(f"{endpoints}.infer").run_inference
    save = importlib.import_module(f"{endpoints}.datastore").save_label
    app.add_api_route("/infer/{model}", infer, methods=["POST"])
    app.add_api_route("/datastore/label", save, methods=["PUT"])
    app.router.routes[:] = app.router.routes[-2:] + app.router.routes[:-2]  # the first that fits answers


def _answer_in_one_line(app: Any) -> None:
    """Answer a refused request with status 400 and its reason."""
    responses = importlib.import_module("starlette.responses")
    refused = importlib.import_module("monailabel.interfaces.exception").MONAILabelException
    not_found = importlib.import_module("monailabel.interfaces.exception").ImageNotFoundException

    def answer(_: object, error: Exception) -> Any:
        reason = str(getattr(error, "msg", "") or error).splitlines()
        return responses.JSONResponse({"error": reason[0] if reason else "the request was refused"}, 400)

    for kind in (ValueError, refused, not_found):
        app.add_exception_handler(kind, answer)


def only_known(app: Application) -> Application:
    """Return an application that answers the routes of clients alone, and refuses names that lead out of the folder."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        reason = _refusal(scope)
        if reason is None:
            await app(scope, receive, send)
            return
        status, line = reason
        body = b'{"error": "%s"}' % line.replace("\\", "/").replace('"', "'").encode("ascii", "replace")
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return guarded


def _refusal(scope: Scope) -> tuple[int, str] | None:
    """Return status and reason if a request is refused."""
    if not any(method == scope["method"] and path.fullmatch(scope["path"]) for method, path in ROUTES):
        return 404, "there is no such address"
    try:
        for name, value in parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True):
            if name in NAMES and value:
                checked_id(value, name)
    except ValueError as error:
        return 400, str(error)
    return None


def serve(studies: Studies, host: str, port: int) -> None:
    """Serve a folder of scans until the process is ended."""
    uvicorn = importlib.import_module("uvicorn")
    uvicorn.run(application(studies), host=host, port=port, access_log=False, log_level="warning", lifespan="on")
