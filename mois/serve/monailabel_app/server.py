"""Starts the server of MONAI Label with our app, and closes what its own settings leave open.

The server's package is not imported before `application`: it lies in an environment of its own, made by `make viewers`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import io
import logging
import re
import shutil
import sys
import tempfile
import types
from collections.abc import AsyncIterator, Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from fastapi import FastAPI
from starlette.background import BackgroundTasks
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from mois.errors import one_line
from mois.files.json_records import parse_json
from mois.serve.monailabel_app.images import Images, checked_id
from mois.serve.refusals import Refusal
from mois.serve.running import one_line_errors
from mois.serve.safety import App, Receive, Scope, Send, error_body

UPLOADS = ".uploads"
"""Folder, beside the images, of files on their way. It is emptied when the server starts."""
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
        ("PUT", r"/session/"),
        ("GET DELETE", r"/session/[0-9a-f-]{36}"),
        ("GET", r"/train/"),
    )
    for method in methods.split()
]
"""What the clients of MONAI Label need. The rest of the server (logs, proxies, archives, trainings) is not reached."""
NAMES = ("image", "label", "id", "tag", "session_id")
"""Parameters of an address that the server makes a path of."""


def is_installed() -> bool:
    """Return whether the server of MONAI Label is in this environment."""
    return find_spec("monailabel") is not None


def application(images: Images) -> App:
    """Return the server of MONAI Label as an ASGI application, for one folder of images."""
    sys.modules.setdefault("pydicom_seg", types.ModuleType("pydicom_seg"))  # it needs numpy 1, for DICOM stores alone
    home = str(images.folder)
    uploads = images.folder / UPLOADS
    if uploads.is_symlink():
        raise ValueError(f"{uploads} is a link; remove it.")
    shutil.rmtree(uploads, ignore_errors=True)
    uploads.mkdir(mode=0o700)
    _settings(home, uploads)
    importlib.import_module("mois.serve.monailabel_app.app").LesionApp.served[home] = images
    tempfile.tempdir = str(uploads)  # the server writes uploads and answers there
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its rule for other sites, which is removed below
        app = importlib.import_module("monailabel.app").app
    logging.getLogger("monailabel").setLevel(logging.CRITICAL)  # its lines name images
    app.user_middleware.clear()  # its rule lets every page of a browser in
    app.router.lifespan_context = _lifespan
    one_line_errors(app)
    for kind in ("MONAILabelException", "ImageNotFoundException", "LabelNotFoundException"):
        app.add_exception_handler(getattr(importlib.import_module("monailabel.interfaces.exception"), kind), _refused)
    app.add_exception_handler(HTTPException, _refused)
    _use_threads(app)
    return only_known(app)


def _settings(home: str, uploads: Path) -> None:
    """Give the server its folder and app, and switch off what our app does not use."""
    settings = importlib.import_module("monailabel.config").settings
    values = {
        "APP_DIR": str(Path(__file__).parent),
        "STUDIES": home,
        "APP_CONF": {},
        "SESSION_PATH": str(uploads / "sessions"),
        "SESSIONS": True,
        **dict.fromkeys(("TASKS_TRAIN", "TASKS_SCORING", "TASKS_BATCH_INFER", "AUTO_UPDATE_SCORING"), False),
    }
    for name, value in values.items():
        setattr(settings, f"MONAI_LABEL_{name}", value)


@contextlib.asynccontextmanager
async def _lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Make the app before the first request. A folder or model that cannot be used ends the start."""
    importlib.import_module("monailabel.interfaces.utils.app").app_instance().server_mode(True)
    yield


def _refused(_: Request, error: Exception) -> Response:
    """Answer a refusal of the server in one line; its own status for bad requests is 500."""
    status = getattr(error, "status_code", 400)
    text = getattr(error, "detail", "") or getattr(error, "msg", "") or str(error)
    return Response(error_body(one_line(str(text))), 400 if status >= 500 else status, media_type="application/json")


def _use_threads(app: FastAPI) -> None:
    """Run the long requests in threads: the server's own routes stop all other requests meanwhile."""
    endpoints = {name: importlib.import_module(f"monailabel.endpoints.{name}") for name in _OWN_MODULES}
    before = len(app.router.routes)
    for method, path, module, function in _OWN_ROUTES:
        app.add_api_route(path, _checked(getattr(endpoints[module], function)), methods=[method])
    own = len(app.router.routes) - before
    app.router.routes[:] = app.router.routes[-own:] + app.router.routes[:-own]  # the first that fits answers


_OWN_ROUTES = (
    ("POST", "/infer/{model}", "infer", "run_inference"),
    ("PUT", "/datastore/label", "datastore", "save_label"),
    ("PUT", "/datastore/image", "datastore", "add_image"),
    ("PUT", "/datastore/", "datastore", "add_image"),
    ("POST", "/activelearning/{strategy}", "activelearning", "sample"),
    ("PUT", "/session/", "session", "create_session"),
)
_OWN_MODULES = sorted({module for _, _, module, _ in _OWN_ROUTES})


def _checked(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """Return an endpoint of the server that checks its parameters, and removes its files if it fails."""

    @functools.wraps(endpoint)
    def checked(**given: Any) -> Any:
        params = given.get("params")
        if isinstance(params, str):
            params = parse_json(params or "{}", "params")
        if params is not None and not isinstance(params, dict):
            raise ValueError("params must be a JSON object.")
        if isinstance(params, dict) and (own := {"model", "strategy", "session", "opened"} & params.keys()):
            raise ValueError(f"params must not have {sorted(own)[0]}; it is part of the address.")
        if endpoint.__name__ == "run_inference" and (given.get("file") or given.get("label")):
            raise ValueError("a task takes no file; upload the image first.")
        if given.get("uncompress"):
            raise ValueError("archives are not taken; upload the image itself.")
        try:
            return endpoint(**given)
        except BaseException:
            for given_task in (value for value in given.values() if isinstance(value, BackgroundTasks)):
                for task in given_task.tasks:  # removal of temporary files, which would follow the answer
                    task.func(*task.args, **task.kwargs)
            raise

    checked.__signature__ = inspect.signature(endpoint)  # type: ignore[attr-defined]
    return checked


def only_known(app: App) -> App:
    """Return an application that answers the routes of clients alone, and refuses names that lead out of the folder."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if not any(method == scope["method"] and path.fullmatch(scope["path"]) for method, path in ROUTES):
                raise Refusal(404, "this path or method does not exist.")
            for name, value in parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True):
                if name == "image" and scope["path"].startswith("/session/"):
                    raise Refusal(404, "an image that was sent is not sent back.")
                if name in NAMES and value:
                    checked_id(value, name)
        await app(scope, receive, send)

    return guarded
