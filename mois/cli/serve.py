"""`mois serve`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mois.cli.extras import need_extra
from mois.cli.messages import say, say_working
from mois.cli.typed_bundles import served_models

if TYPE_CHECKING:
    from mois.serve.served_models import ServedModels

VIEWERS_ENVIRONMENT = Path(__file__).parents[2] / ".venv-viewers"
"""Environment of the server of MONAI Label, made by `make viewers`."""


def serve(
    viewer: Literal["monailabel", "nninteractive"],
    studies: Path = Path("studies"),
    bundle: list[str] | Path | None = None,
    port: int | None = None,
    host: str = "127.0.0.1",
    pixel_mm: float | None = None,
    memory_gib: float = 4.0,
    device: str = "auto",
    trust: list[str] | None = None,
) -> None:
    """Serve scans to a viewer, such as 3D Slicer. No medical device.

    Args:
        viewer: Program that the server speaks to: monailabel, or nninteractive (3D Slicer's extension nnInteractive).
        studies: monailabel: folder of the scans: NIfTI, NRRD or MHA files. Sessions and saved labels are written there,
            too. nninteractive: folder of sessions; it is made if it is missing.
        bundle: The model: folder `bundle` of a training. By default, or with the word shipped, the shipped model, which
            was not trained for your lesions. nninteractive: --bundle TYPE=DIR several times, for several types of
            lesions, of which the first is that of plain clients.
        port: Port of the server; by default 8000 (monailabel) or 1527 (nninteractive).
        host: Address of the server; by default, only programs on this machine reach it.
        pixel_mm: Pixel size of the shipped model, by default 1.5 mm: the median lesion should be ten pixels across or
            more. A bundle has its own.
        memory_gib: Features that all scans keep in memory together, in GiB.
        device: Device such as cpu or cuda; auto takes an accelerator if there is one.
        trust: Modules of others whose classes the bundle may name, such as my_module.

    Raises:
        ValueError: If the folder is missing, the bundle cannot be used, or the server of the viewer is not installed.
    """
    need_extra("serve", "fastapi", "uvicorn", "blosc2")
    if viewer == "nninteractive":
        say_working("loading the model")
        models = served_models(bundle, pixel_mm, device, trust or ())
        _serve_nninteractive(studies, models, 1527 if port is None else port, host, memory_gib)
        return
    port = 8000 if port is None else port
    from mois.serve.monailabel_app.server import is_installed

    if not is_installed():
        _go_on_in_the_environment_of_viewers()
    if not studies.is_dir():
        raise ValueError(f"studies={studies}: there is no such folder; make it, and put scans into it.")
    say_working("loading the model")
    models = served_models(bundle, pixel_mm, device, trust or ())
    if models.further:
        raise ValueError("the server of MONAI Label serves one type of lesions; give one --bundle.")
    _serve_monailabel(studies.resolve(), models, memory_gib, host, port)


def _serve_monailabel(studies: Path, models: ServedModels, memory_gib: float, host: str, port: int) -> None:
    """Serve the images of a folder through the server of MONAI Label."""
    from mois.serve.host import Host
    from mois.serve.monailabel_app.images import Images
    from mois.serve.monailabel_app.server import application
    from mois.serve.running import bound_socket, token_of
    from mois.serve.running import serve as serve_app

    listening = bound_socket(host, port)
    sessions = Host(studies / "sessions", models, memory_gib)
    images = Images(studies, sessions)
    token = token_of(sessions.studies)
    app = application(images)
    say(f"MONAI Label server: http://{host}:{listening.getsockname()[1]}/{token}")
    say("Give this address to 3D Slicer. It holds a secret. Ctrl-C ends the server.")
    serve_app(app, listening, token, ended=sessions.close)


def _serve_nninteractive(studies: Path, models: ServedModels, port: int, address: str, memory_gib: float) -> None:
    """Serve the protocol of nnInteractive."""
    try:
        from mois.serve.host import Host
        from mois.serve.nninteractive.routes import nninteractive_app
        from mois.serve.running import bound_socket, token_of
        from mois.serve.running import serve as serve_app
    except ImportError as error:
        raise ValueError(f"{error.name} is not installed; install the server: pip install 'mois[serve]'") from error

    listening = bound_socket(address, port)
    token = token_of(studies)
    served = Host(studies, models, memory_gib)
    url = f"http://{address}:{listening.getsockname()[1]}"
    say(f"nnInteractive server: {url}, API key {token}; or address {url}/{token} without a key; Ctrl-C ends it")
    serve_app(nninteractive_app(served), listening, token, ended=served.close)


def _go_on_in_the_environment_of_viewers() -> None:
    """Replace this process by the same command in the environment of viewers.

    Raises:
        ValueError: If there is no such environment.
    """
    python = VIEWERS_ENVIRONMENT / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists() or Path(sys.prefix) == VIEWERS_ENVIRONMENT:
        raise ValueError(
            "the server of MONAI Label is not installed; make its environment, in a checkout of MOIS: make viewers"
        )
    os.execv(python, [str(python), "-m", "mois.cli", *sys.argv[1:]])
