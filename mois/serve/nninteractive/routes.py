"""The paths of nnInteractive 2.6, as its official client calls them, and a few more with the same lease."""

import json
import threading
from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, Header, Request
from fastapi.responses import FileResponse, Response
from pydantic import BaseModel, Field

from mois.serve.host import Host
from mois.serve.nninteractive.client import Client, Patch
from mois.serve.nninteractive.leases import Lease, Leases
from mois.serve.nninteractive.wire import MOST_VOXELS, pack, unpack
from mois.serve.refusals import Refusal
from mois.serve.running import plain_app

META, LEASE = "X-Meta", "X-Lease-Token"
IDLE_S, SILENT_S, MOST_CLIENTS = 3600.0, 120.0, 8

CAPABILITIES: dict[str, Any] = {
    "supported_interactions": {
        "points": True, "bbox2d": True, "bbox3d": False, "scribble": True, "lasso": True, "initial_seg": True,
        "point": True, "bbox": True,
    },
    "channel_mapping": {
        "initial_seg": 0, "prev_seg": 0, "bbox": [1, 2], "lasso": [1, 2], "point": [3, 4], "points": [3, 4],
        "scribble": [5, 6],
    },
    "num_interaction_channels": 7,
    "supports_initial_label": True,
    "supports_zero_shot_label_refinement": False,
    "preferred_scribble_thickness": [1, 1, 1],
    "interaction_decay": 1.0,
    "inference_session_version": 2,
    "license": "Apache-2.0",
    "supports_undo": True,
    "do_autozoom": False,
}  # fmt: skip
"""What the client asks for at its start."""

Box = list[Annotated[list[int], Field(min_length=2, max_length=2)]]


class _Buffer(BaseModel):
    shape: Annotated[list[int], Field(max_length=4)]
    dtype: str = "uint8"


class _Prompt(BaseModel):
    include_interaction: bool
    run_prediction: bool = True


class _Point(_Prompt):
    coordinates: Annotated[list[float], Field(max_length=4)]


class _Bbox(_Prompt):
    bbox_coords: Annotated[Box, Field(max_length=4)]


class _Drawn(_Prompt):
    interaction_bbox: Annotated[Box, Field(max_length=4)] | None = None


class _Mask(BaseModel):
    run_prediction: bool = False


class _Image(BaseModel):
    image_properties: dict[str, Any] = {}


class _Lesion(BaseModel):
    lesion: Annotated[int, Field(gt=0, lt=2**31)] | None = None


class _Type(BaseModel):
    type: Annotated[str, Field(max_length=40)]


class _Count(BaseModel):
    count: Annotated[int, Field(gt=0, le=100)] = 1


class _Result(BaseModel):
    affine: list[list[float]] | None = None


class _Propagation:
    """The share that is done, and the wish to cancel."""

    def __init__(self) -> None:
        self.share = 1.0
        self.cancel = threading.Event()

    def progress(self, share: float) -> None:
        self.share = share


class _AtWork:
    """A client with its propagation."""

    def __init__(self, host: Host, number: int) -> None:
        self.client = Client(host, f"client {number}")
        self.propagation = _Propagation()


def nninteractive_app(
    host: Host,
    *,
    idle_s: float = IDLE_S,
    silent_s: float = SILENT_S,
    most_clients: int = MOST_CLIENTS,
    most_voxels: int = MOST_VOXELS,
) -> FastAPI:
    """Return the application.

    Args:
        host: The host of all sessions.
        idle_s: A lease ends after so many seconds without an action.
        silent_s: A lease ends after so many seconds without any request.
        most_clients: Largest number of leases.
        most_voxels: Largest number of voxels of an image.
    """
    app = plain_app("mois: nnInteractive")
    leases: Leases[_AtWork] = Leases(most_clients, idle_s, silent_s, lambda work: work.client.leave())
    _add_leases(app, host, leases)
    at_work = _acting(leases)
    _add_images(app, at_work, most_voxels)
    _add_prompts(app, at_work)
    _add_drawings(app, at_work, most_voxels)
    _add_propagation(app, at_work)
    _add_lesions(app, at_work)
    return app


AtWork = Callable[..., Lease[_AtWork]]


def _acting(leases: Leases[_AtWork]) -> AtWork:
    def at_work(x_lease_token: Annotated[str, Header()] = "") -> Lease[_AtWork]:
        return leases.of(x_lease_token, acts=True)

    return at_work


async def _body(request: Request) -> bytes:
    return await request.body()


def _meta(kind: type[BaseModel]) -> Callable[[Request], Any]:
    """Return what reads the header beside an array."""

    def read(request: Request) -> Any:
        try:
            return kind.model_validate(json.loads(request.headers.get(META, "{}")))
        except (ValueError, RecursionError) as error:
            raise Refusal(422, f"the header {META} cannot be read; see the protocol.") from error

    return read


def _answer(patch: Patch) -> Response:
    """Return what changed in the buffer, as the client applies it."""
    meta = {"ran_prediction": patch.ran, "bbox": patch.box}
    body = b"" if patch.voxels is None else pack(patch.voxels)
    return Response(body, media_type="application/octet-stream", headers={META: json.dumps(meta)})


def _add_leases(app: FastAPI, host: Host, leases: Leases[_AtWork]) -> None:
    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/capabilities")
    def capabilities() -> dict[str, Any]:
        return CAPABILITIES

    @app.post("/claim")
    def claim() -> dict[str, Any]:
        lease = leases.claim(lambda number: _AtWork(host, number))
        return {
            "lease_token": lease.token,
            "idle_timeout_seconds": leases.idle_s,
            "liveness_timeout_seconds": leases.silent_s,
        }

    @app.post("/release")
    def release(x_lease_token: Annotated[str, Header()] = "") -> dict[str, str]:
        leases.release(x_lease_token)
        return {"status": "released"}

    @app.post("/heartbeat")
    @app.get("/lease_status")
    def lease_status(x_lease_token: Annotated[str, Header()] = "") -> dict[str, float]:
        lease = leases.of(x_lease_token, acts=False)
        return {"remaining_seconds": leases.left_s(lease), "idle_timeout_seconds": leases.idle_s}


def _add_images(app: FastAPI, at_work: AtWork, most_voxels: int) -> None:
    @app.post("/set_image")
    def set_image(
        lease: Annotated[Lease[_AtWork], Depends(at_work)],
        meta: Annotated[_Image, Depends(_meta(_Image))],
        body: Annotated[bytes, Depends(_body)],
    ) -> dict[str, Any]:
        image = unpack(body, 4, most_voxels)
        with lease.lock:
            client = lease.held.client
            client.set_image(image, meta.image_properties)
            seat = client.seat
            return {
                "original_image_shape": list(image.shape),
                "role": seat.role,
                "writer": seat.writer,
                "lesions": len(client.lesions()),
                "actions": client.actions,
            }

    @app.post("/set_target_buffer")
    def set_target_buffer(lease: Annotated[Lease[_AtWork], Depends(at_work)], given: _Buffer) -> dict[str, str]:
        with lease.lock:
            lease.held.client.set_buffer(given.shape)
        return {"status": "ok"}

    @app.post("/set_do_autozoom", dependencies=[Depends(at_work)])
    def set_do_autozoom() -> dict[str, str]:
        return {"status": "ok"}  # a scan is always seen whole


def _add_prompts(app: FastAPI, at_work: AtWork) -> None:
    @app.post("/reset_interactions")
    def reset_interactions(lease: Annotated[Lease[_AtWork], Depends(at_work)]) -> dict[str, str]:
        with lease.lock:
            lease.held.client.reset()
        return {"status": "ok"}

    @app.post("/undo")
    def undo(lease: Annotated[Lease[_AtWork], Depends(at_work)]) -> Response:
        with lease.lock:
            return _answer(lease.held.client.undo())

    @app.post("/predict")
    def predict(lease: Annotated[Lease[_AtWork], Depends(at_work)]) -> Response:
        with lease.lock:
            return _answer(lease.held.client.predict())

    @app.post("/add_point_interaction")
    def add_point(lease: Annotated[Lease[_AtWork], Depends(at_work)], given: _Point) -> Response:
        with lease.lock:
            client = lease.held.client
            return _answer(client.point(given.coordinates, given.include_interaction, given.run_prediction))

    @app.post("/add_bbox_interaction")
    def add_bbox(lease: Annotated[Lease[_AtWork], Depends(at_work)], given: _Bbox) -> Response:
        with lease.lock:
            client = lease.held.client
            return _answer(client.box(given.bbox_coords, given.include_interaction, given.run_prediction))


def _add_drawings(app: FastAPI, at_work: AtWork, most_voxels: int) -> None:
    @app.post("/add_initial_seg_interaction")
    def add_initial_seg(
        lease: Annotated[Lease[_AtWork], Depends(at_work)],
        meta: Annotated[_Mask, Depends(_meta(_Mask))],
        body: Annotated[bytes, Depends(_body)],
    ) -> Response:
        mask = unpack(body, 3, most_voxels)
        with lease.lock:
            return _answer(lease.held.client.mask(mask, meta.run_prediction))

    @app.post("/add_{kind}_interaction")
    def add_drawing(
        kind: Literal["scribble", "lasso"],
        lease: Annotated[Lease[_AtWork], Depends(at_work)],
        meta: Annotated[_Drawn, Depends(_meta(_Drawn))],
        body: Annotated[bytes, Depends(_body)],
    ) -> Response:
        drawn = unpack(body, 3, most_voxels)
        with lease.lock:
            client = lease.held.client
            draw = client.scribble if kind == "scribble" else client.lasso
            return _answer(draw(drawn, meta.interaction_bbox, meta.include_interaction, meta.run_prediction))


def _add_propagation(app: FastAPI, at_work: AtWork) -> None:
    """Add the paths of a propagation. It holds no lock, so that its client can click meanwhile."""

    @app.post("/propagate")
    def propagate(lease: Annotated[Lease[_AtWork], Depends(at_work)]) -> dict[str, Any]:
        work = lease.held
        work.propagation = here = _Propagation()
        found = work.client.propagate(here.progress, here.cancel.is_set)
        return {"found": found, "lesions": work.client.lesions()}

    @app.get("/progress")
    def progress(lease: Annotated[Lease[_AtWork], Depends(at_work)]) -> dict[str, float]:
        return {"share": lease.held.propagation.share}

    @app.post("/cancel")
    def cancel(lease: Annotated[Lease[_AtWork], Depends(at_work)]) -> dict[str, str]:
        lease.held.propagation.cancel.set()
        return {"status": "ok"}


def _add_lesions(app: FastAPI, at_work: AtWork) -> None:
    """Add the paths that the protocol lacks."""

    @app.post("/accept")
    def accept(lease: Annotated[Lease[_AtWork], Depends(at_work)], given: _Lesion) -> Response:
        with lease.lock:
            return _answer(lease.held.client.judge("accept", given.lesion))

    @app.post("/reject")
    def reject(lease: Annotated[Lease[_AtWork], Depends(at_work)], given: _Lesion) -> Response:
        with lease.lock:
            return _answer(lease.held.client.judge("reject", given.lesion))

    @app.post("/select")
    def select(lease: Annotated[Lease[_AtWork], Depends(at_work)], given: _Lesion) -> Response:
        with lease.lock:
            return _answer(lease.held.client.select(given.lesion or 0))

    @app.get("/lesions")
    def lesions(lease: Annotated[Lease[_AtWork], Depends(at_work)]) -> dict[str, Any]:
        client = lease.held.client
        return {
            "current": client.lesion,
            "writer": client.seat.writer,
            "actions": client.actions,
            "lesions": client.lesions(),
            **client.types(),
        }

    @app.post("/use")
    def use(lease: Annotated[Lease[_AtWork], Depends(at_work)], given: _Type) -> dict[str, Any]:
        with lease.lock:
            lease.held.client.use(given.type)
            return lease.held.client.types()

    @app.post("/suggest")
    def suggest(lease: Annotated[Lease[_AtWork], Depends(at_work)], given: _Count) -> dict[str, Any]:
        return {"suggestions": lease.held.client.suggestions(given.count)}

    @app.post("/result")
    def result(lease: Annotated[Lease[_AtWork], Depends(at_work)], given: _Result) -> Response:
        with lease.lock:
            file = lease.held.client.result(given.affine)
        return FileResponse(file, filename=file.name)
