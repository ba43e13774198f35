"""What a session costs at base_plus and 1024 px, beside the reference: `python -m tests.bench.price`.

    a real session with the nano   ->  calls of the backbone, with the shapes that they had
    base_plus on meta tensors      ->  FLOP of a call of each shape
    calls x FLOP                   ->  the price, beside the formula of the reference

The session: the default phantom, 20 lesions with 3 clicks each, and one propagation. A tile covers a whole slice, as an
image of the reference does. The nano's tile has 512 pixels; base_plus has a tile of 1024 pixels for the same
millimetres. So the sides of all grids count twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal, NamedTuple
from unittest import mock

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from datamodules.phantoms.lesion_types import draw_lesion_types
from datamodules.phantoms.phantom import make_phantom
from datamodules.pretraining import as_volume
from mois.backbones import SAM2
from mois.geometry import SliceGrid
from mois.inference import lesion_windows
from mois.inference.segmenter import VolumeSegmenter
from mois.inference.settings import InferenceSettings
from mois.interfaces import with_channels
from mois.memory import Memory
from mois.propagation import Similarity
from mois.records import Features, Prompts, Volume
from mois.session import InteractiveSession
from mois.sharing.lesion_model import LesionModel
from tests.bench.measure import Measurement, Outcome

LESIONS = 20
CLICKS = 3
TILE_PX = 512
LARGE_PX = 1024
TIMES = LARGE_PX // TILE_PX
"""How often a cell of the nano's tile counts along a side."""

REFERENCE_EXEMPLARS = 7
REFERENCE_MEMORIES = 7


class Call(NamedTuple):
    """A call of the model, for one image or object.

    Attributes:
        part: encode, decode, attend, remember or semantic. Where several objects on an image attend at once, they share
            a part of the work: `attend_image` is that part, and `attend_object` is the rest, for each object.
            `sam2_attends` is the memory attention of sam2 itself.
        side: Cells along a side of the coarsest feature map.
        maps: Memory maps that are attended to.
        map_side: Cells along a side of a memory map.
        pointers: Pointers that are attended to.
        exemplars: Exemplars of a question.
    """

    part: str
    side: int
    maps: int = 0
    map_side: int = 0
    pointers: int = 0
    exemplars: int = 0


@dataclass
class Calls:
    """Calls of a model, counted while it works. A propagation's own calls of the decoder belong to its call.

    Attributes:
        counts: Number of calls of each shape.
        slices: Slices of the scan.
    """

    counts: Counter[Call] = field(default_factory=Counter)
    slices: int = 0
    _inside: int = 0

    @contextmanager
    def of(self, segmenter: VolumeSegmenter) -> Iterator[Calls]:
        """Count within this context."""
        backbone, propagation = segmenter.backbone, segmenter.propagation
        with (
            mock.patch.object(backbone, "encode", self._counted(backbone.encode, _encoded)),
            mock.patch.object(segmenter, "_encode", self._counted(backbone.encode, _encoded)),
            mock.patch.object(backbone, "decode", self._counted(backbone.decode, _decoded)),
            mock.patch.object(backbone, "attend", self._counted(backbone.attend, _attended)),
            mock.patch.object(backbone, "attend_on", self._counted(backbone.attend_on, _attended_on)),
            mock.patch.object(backbone, "remember_slice", self._counted(backbone.remember_slice, _remembered)),
            mock.patch.object(backbone, "remember", self._counted(backbone.remember, _remembered)),
            mock.patch.object(propagation, "forward", self._counted(propagation.forward, _asked)),
        ):
            yield self

    def _counted(self, work: Callable[..., Any], read: Callable[..., Counter[Call]]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if not self._inside:
                self.counts += read(*args)
            self._inside += 1
            try:
                return work(*args, **kwargs)
            finally:
                self._inside -= 1

        return call

    def total(self, part: str) -> int:
        """Return the number of calls of a part."""
        return sum(times for call, times in self.counts.items() if call.part == part)


def _encoded(images: Tensor) -> Counter[Call]:
    return Counter({Call("encode", images.shape[-1] // 16): len(images)})


def _decoded(features: Features, *_: Any) -> Counter[Call]:
    return Counter({Call("decode", _side(features)): len(features.image)})


def _attended(features: Features, memory: Memory) -> Counter[Call]:
    maps, pointers = memory.maps.shape[1], memory.pointers.shape[1]
    return Counter({Call("attend", _side(features), maps, memory.maps.shape[-1], pointers): len(features.image)})


def _attended_on(features: Features, image: Tensor | None, memory: Memory) -> Counter[Call]:
    ((call, _),) = _attended(features, memory).items()
    objects = len(memory.maps)
    counts = Counter({Call("attend_image", call.side): objects if image is None else len(set(image.tolist()))})
    counts[call._replace(part="attend_object")] = objects
    return counts


def _remembered(features: Features, *_: Any) -> Counter[Call]:
    return Counter({Call("remember", _side(features)): len(features.image)})


def _asked(features: Features, exemplars: Any, *_: Any) -> Counter[Call]:
    return Counter({Call("semantic", _side(features), exemplars=exemplars.count): len(exemplars.valid)})


def _side(features: Features) -> int:
    height, width = features.levels[-1].shape[-2:]
    return int(height) if height == width else round((int(height) * int(width)) ** 0.5)


@cache
def session_calls(window: Literal["off", "auto"]) -> Calls:
    """Return the calls of the session, from encoding to the propagation, with this `inference.window`."""
    rng = np.random.default_rng(0)
    volume = as_volume(make_phantom(rng, draw_lesion_types(rng, 2), lesions=(60, 60)), "phantom")
    backbone, propagation = SAM2("nano", "bundled"), Similarity(weights="bundled")
    propagation.build(backbone)
    settings = replace(InferenceSettings(), tile_px=TILE_PX, window=window)
    segmenter = VolumeSegmenter(backbone.eval(), propagation.eval(), settings)
    calls = Calls(slices=SliceGrid.of(volume.shape, volume.affine).stack_shape[0])
    # a cell of the nano's tile stands for TIMES x TIMES cells, so windows in cells of base_plus are smaller here
    margin, sides = lesion_windows.MARGIN // TIMES, tuple(side // TIMES for side in lesion_windows.SIDES)
    with (
        mock.patch.object(lesion_windows, "MARGIN", margin),
        mock.patch.object(lesion_windows, "SIDES", sides),
        calls.of(segmenter),
    ):
        session = InteractiveSession(LesionModel.of(segmenter), volume)
        for truth in _largest(volume, LESIONS):
            _click(session, volume, truth)
        session.propagate()
    return calls


def _largest(volume: Volume, count: int) -> list[int]:
    """Return the ids of the largest lesions, largest first, as the reference prompts them."""
    voxels = torch.bincount(volume.lesions.flatten())
    voxels[0] = 0
    return voxels.argsort(descending=True)[:count].tolist()


def _click(session: InteractiveSession, volume: Volume, truth: int) -> None:
    """Click a lesion in its middle, then where its mask is most wrong."""
    inside = volume.lesions == truth
    lesion = session.click(_inner_point(volume, inside))
    for _ in range(CLICKS - 1):
        mask = session.label_map() == lesion
        missed, false = inside & ~mask, mask & ~inside
        positive = bool(missed.sum() >= false.sum())
        wrong = missed if positive else false
        session.click(_inner_point(volume, wrong if wrong.any() else inside), lesion=lesion, positive=positive)


def _inner_point(volume: Volume, mask: Tensor) -> list[float]:
    """Return the point of a mask that is nearest to its middle, in LPS mm."""
    places = torch.nonzero(mask).double()
    at = places[((places - places.mean(0)) ** 2).sum(1).argmin()]
    x, y, z = (volume.affine[:3, :3] @ at + volume.affine[:3, 3]).tolist()
    return [-x, -y, z]


@cache
def _large() -> tuple[SAM2, Similarity]:
    backbone, propagation = SAM2("base_plus", "random", patch_px=LARGE_PX), Similarity()
    propagation.build(backbone)
    return backbone.to("meta"), propagation.to("meta").eval()


@cache
def tflop(call: Call) -> float:
    """Return the TFLOP of a call at base_plus; a multiply-add is two. Tensors have only a shape."""
    if call.part == "attend_object":
        return _attending(call, 2) - _attending(call, 1)
    if call.part == "attend_image":
        alone = call._replace(maps=1, map_side=call.side, pointers=1)
        return 2 * _attending(alone, 1) - _attending(alone, 2)
    backbone, propagation = _large()
    # autocast knows no meta tensors
    with torch.inference_mode(), torch.device("meta"), mock.patch.object(torch, "autocast", _no_autocast):
        features = _features(backbone, torch.zeros(1, call.side * 16, call.side * 16))
        return _counted_tflop(_work(call, backbone, propagation, features))


def _no_autocast(*_: object, **__: object) -> AbstractContextManager[None]:
    return nullcontext()


@cache
def _attending(call: Call, objects: int) -> float:
    """Return the TFLOP of several objects on one image that attend at once."""
    backbone, _ = _large()
    with torch.inference_mode(), torch.device("meta"):
        features = _features(backbone, torch.zeros(1, call.side * 16, call.side * 16))
        memory, image = _memory(call, backbone, objects), torch.zeros(objects, dtype=torch.int64)
        return _counted_tflop(lambda: backbone.attend_on(features, image, memory))


def _counted_tflop(work: Callable[[], object]) -> float:
    work()  # tables are made
    # attention as two products: torch does not count the operations of each fused attention
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops()) / 1e12


def _features(backbone: SAM2, image: Tensor) -> Features:
    side = image.shape[-1]
    levels = [torch.zeros(1, c, side // s, side // s) for c, s in zip(backbone.channels, backbone.strides, strict=True)]
    return Features(tuple(levels), torch.zeros_like(levels[-1]), with_channels(image))


def _work(call: Call, backbone: SAM2, propagation: Similarity, features: Features) -> Callable[[], object]:
    """Return the work of a call."""
    edge = features.image.shape[-1]
    logits, pointer = torch.zeros(1, edge // 4, edge // 4), torch.zeros(1, backbone.width)
    if call.part == "encode":
        return lambda: backbone.encode(features.image)
    if call.part == "decode":
        click = Prompts(torch.zeros(1, 1, 2), torch.ones(1, 1, dtype=torch.int32))
        return lambda: backbone.decode(features, click)
    if call.part == "remember":
        return lambda: backbone.remember_slice(features, logits, pointer, torch.ones(1))
    if call.part == "semantic":
        masks = torch.ones(1, *features.image.shape[-2:])
        exemplars = propagation.describe(features, masks, backbone)
        asked = propagation.prepare(exemplars.each(lambda tensor: tensor.repeat_interleave(max(call.exemplars, 1), 1)))
        return lambda: propagation(features, asked, backbone)
    memory = _memory(call, backbone, 1)
    if call.part == "attend":
        return lambda: backbone.attend(features, memory)
    query, code = (part.flatten(2).permute(2, 0, 1) for part in (features.levels[-1], features.position))
    tokens, position, pointer_tokens = backbone._memory_tokens(memory, features.levels[-1])
    return lambda: backbone.sam.memory_attention(
        curr=query, curr_pos=code, memory=tokens.transpose(0, 1), memory_pos=position.transpose(0, 1),
        num_obj_ptr_tokens=pointer_tokens,
    )  # fmt: skip


def _memory(call: Call, backbone: SAM2, objects: int) -> Memory:
    """Return the memory that a call attends to."""
    maps = torch.zeros(objects, call.maps, backbone.memory_width, call.map_side, call.map_side)
    pointers = torch.zeros(objects, call.pointers, backbone.width)
    far = tuple(range(1, call.pointers + 1))
    return Memory(maps, maps, pointers, (1,) * call.maps, (False,) * call.maps, far)


def large(call: Call) -> Call:
    """Return a call of the nano as base_plus has it: the same millimetres have more cells."""
    return call._replace(side=call.side * TIMES, map_side=call.map_side * TIMES)


def prices(calls: Calls) -> dict[str, float]:
    """Return the TFLOP of each part."""
    spent: dict[str, float] = {}
    for call, times in calls.counts.items():
        part = call.part.partition("_")[0]
        spent[part] = spent.get(part, 0.0) + times * tflop(large(call))
    return spent


def reference_tflop(slices: int, lesions: int = LESIONS, clicks: int = CLICKS) -> float:
    """Return the TFLOP of the reference for the same clicks on a scan.

    After each click, every slice is encoded and tracked again, with full memory. Each further lesion starts with an
    encoded slice. Then every slice is searched with `REFERENCE_EXEMPLARS` exemplars, in an attention like that of a
    memory.
    """
    cells = LARGE_PX // 16
    encode, decode, remember = (tflop(Call(part, cells)) for part in ("encode", "decode", "remember"))
    track = tflop(Call("sam2_attends", cells, REFERENCE_MEMORIES, cells, 16))
    search = tflop(Call("sam2_attends", cells, REFERENCE_EXEMPLARS, cells, REFERENCE_EXEMPLARS))
    tracking = lesions * clicks * slices * (encode + track + decode + remember) + lesions * encode
    return tracking + slices * (encode + search + decode)


def price(repeats: int) -> Outcome:
    """FLOP of a session of 20 lesions x 3 clicks and a propagation at base_plus and 1024 px, against the reference."""
    del repeats  # the same every time
    reference = reference_tflop(session_calls("off").slices)
    details = {"reference_tflop": reference, "slices": float(session_calls("off").slices)}
    figures = {}
    for window, name in (("auto", "session"), ("off", "whole_tiles")):
        calls = session_calls(window)  # type: ignore[arg-type]
        spent = prices(calls)
        attended = {call: times for call, times in calls.counts.items() if call.part in ("attend", "attend_object")}
        objects = sum(attended.values())
        tokens = sum((call.side * TIMES) ** 2 * times for call, times in attended.items())
        details |= {f"{name}_{part}_tflop": value for part, value in spent.items()}
        details |= {f"{name}_{part}_calls": float(calls.total(part)) for part in spent if part != "attend"}
        details |= {
            f"{name}_tflop": sum(spent.values()),
            f"{name}_attend_calls": float(objects),
            f"{name}_maps": sum(call.maps * times for call, times in attended.items()) / objects,
            f"{name}_tokens": tokens / objects,
        }
        figures[f"{name}_flops_vs_reference"] = sum(spent.values()) / reference
    return Outcome(figures, details)


MEASUREMENTS: list[Measurement] = [price]


def main() -> None:
    """Print the calls and their price, with windows and without."""
    console = Console()
    for window in ("auto", "off"):
        calls = session_calls(window)  # type: ignore[arg-type]
        table = Table("part", "cells", "maps", "map cells", "pointers", "calls", "GFLOP a call", "TFLOP", box=None)
        for call, times in sorted(calls.counts.items()):
            sides, one = large(call), tflop(large(call))
            table.add_row(
                call.part, f"{sides.side} x {sides.side}", str(call.maps or ""), str(sides.map_side or ""),
                str(call.pointers or ""), str(times), f"{1000 * one:.1f}", f"{times * one:.2f}",
            )  # fmt: skip
        session, reference = sum(prices(calls).values()), reference_tflop(calls.slices)
        console.print(f"inference.window: {window}, {calls.slices} slices")
        console.print(table)
        console.print(f"session {session:.1f} TFLOP, reference {reference:.0f} TFLOP: 1 / {reference / session:.1f}")


if __name__ == "__main__":
    main()
