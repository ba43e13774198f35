"""The cost of a training by part: parameters, memory and seconds of a step, and seconds of a validation."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mois.evaluation.figures import SubjectReport
from mois.interfaces import Backbone
from mois.records import Episode, Features
from mois.training.episode_step import learn
from mois.training.feature_cache import CacheSettings, FeatureCache
from mois.training.module import ExemplarSegmenter


class PartCost(NamedTuple):
    """The cost of a part of a training step.

    Attributes:
        part: Name of the part.
        mib: Memory in MiB: weights, state of the optimiser, tensors saved for the backward pass.
        seconds: Time of the forward and backward pass.
    """

    part: str
    mib: float
    seconds: float


def count_parameters(module: nn.Module) -> list[tuple[str, int, int]]:
    """Return (part, parameters, trained parameters) for each part of the backbone and each other child of the module.

    The last row is "all". Parameters that two parts share count for the first part alone.
    """
    backbone = getattr(module, "backbone", None)
    inner = backbone.parts() if isinstance(backbone, Backbone) else {}
    parts = {f"backbone.{name}": part for name, part in inner.items()} | dict(module.named_children())
    seen: set[int] = set()
    rows = []
    for name, part in parts.items():
        name = "backbone.rest" if inner and name == "backbone" else name
        own = [p for p in part.parameters() if id(p) not in seen]
        seen |= {id(p) for p in own}
        if own:
            rows.append((name, sum(p.numel() for p in own), sum(p.numel() for p in own if p.requires_grad)))
    rows.append(("all", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    return rows


def validation_seconds(reports: Iterable[SubjectReport]) -> list[tuple[str, float]]:
    """Return the seconds of a validation by part, summed over its scans. The last row is "all"; empty without scans.

    Args:
        reports: Reports on the scans of all ranks. Ranks work at the same time, so with several ranks the sum is more
            than the time that passes.

    Example:
        >>> from mois.evaluation.figures import SubjectReport
        >>> scans = [SubjectReport(name, name, (), 0, {"encode": 2.0, "click": 0.5}, ()) for name in ("p1", "p2")]
        >>> validation_seconds(scans)
        [('encode', 4.0), ('click', 1.0), ('all', 5.0)]
    """
    spent: dict[str, float] = {}
    for report in reports:
        for part, seconds in report.seconds.items():
            spent[part] = spent.get(part, 0.0) + seconds
    return [*spent.items(), ("all", sum(spent.values()))] if spent else []


def noise_episode(exemplars: int, clip: int, patch_px: int) -> Episode:
    """Return a batch of one episode of noise with square masks. The global random state does not change.

    Args:
        exemplars: Number of exemplars in each of the two groups.
        clip: Number of slices of a clip.
        patch_px: Edge of the patches in pixels.
    """
    generator = torch.Generator().manual_seed(0)
    square = torch.zeros(patch_px, patch_px, dtype=torch.bool)
    square[patch_px // 4 : patch_px // 2, patch_px // 4 : patch_px // 2] = True
    targets = torch.stack([square, square.roll(patch_px // 3, 0)]).unsqueeze(0)
    return Episode(
        torch.randn(1, 2, exemplars, patch_px, patch_px, generator=generator),
        square.expand(1, 2, exemplars, -1, -1).contiguous(),
        torch.ones(1, 2, exemplars, dtype=torch.bool),
        torch.randn(1, patch_px, patch_px, generator=generator),
        targets,
        targets.any(1),
        torch.ones(1, 2, dtype=torch.bool),
        torch.randn(1, clip, patch_px, patch_px, generator=generator),
        square.expand(1, clip, -1, -1).contiguous(),
        torch.rand(1, 64, generator=generator),
        targets.any(1),
    )


def step_cost(
    module: ExemplarSegmenter, episode: Episode, precision: Callable[[], AbstractContextManager[Any]] = nullcontext
) -> list[PartCost]:
    """Make two training steps, and measure the second. Gradients, weights and random state do not change.

    Hooks on saved tensors measure the memory of a part. The backward pass asks for saved tensors part by part, so they
    also measure its time. The first step is not counted: it also loads kernels, fills tables and reserves memory. With
    `model.cache`, the first step fills a cache of its own, and the second step finds all images in it.

    Args:
        module: The model, on its device.
        episode: The batch to learn from.
        precision: Returns the context of a forward pass, such as autocast.

    Returns:
        The parts cache (with `model.cache`), trunk and neck (if they run), click, track (if tracking is trained),
        semantic, weights and optimiser (with the gradients).
    """
    device = module.device
    episode = Episode(*(tensor.to(device) for tensor in episode))
    fork = torch.random.fork_rng([device] if device.type == "cuda" else [])
    with fork, torch.enable_grad(), _encoder(module) as encode:
        for _ in range(2):
            meter = _Meter(device, module.parameters())
            _step(module, episode, precision, encode, meter)
    meter.bytes["weights"] = sum(p.nbytes for p in module.parameters())
    # gradients and two moments
    meter.bytes["optimiser"] = 3 * sum(p.nbytes for p in module.parameters() if p.requires_grad)
    order = ("cache", "trunk", "neck", "click", "track", "semantic", "weights", "optimiser")
    return [
        PartCost(part, meter.bytes.get(part, 0) / 2**20, meter.seconds.get(part, 0.0))
        for part in order
        if part in meter.bytes or part in meter.seconds
    ]


@contextmanager
def _encoder(module: ExemplarSegmenter) -> Iterator[Callable[[Tensor], Features]]:
    """Yield the encoder of a module. A module with a cache gets an empty cache, which is removed afterwards."""
    if module.encoder is None:
        yield module.backbone.encode
        return
    encoder = copy.copy(module.encoder)  # hits and seconds of the copy do not change the original
    with tempfile.TemporaryDirectory(prefix="mois-cost-") as folder:
        encoder.cache = FeatureCache(Path(folder), CacheSettings.gib)
        yield lambda images: encoder(images, encoder.keys(images))


def _step(
    module: ExemplarSegmenter,
    episode: Episode,
    precision: Callable[[], AbstractContextManager[Any]],
    encode: Callable[[Tensor], Features],
    meter: _Meter,
) -> None:
    """Run the forward pass, the backward pass and a step of the optimiser on copies of the weights."""
    backbone = module.backbone
    parts = backbone.parts()
    trained = [p for p in module.parameters() if p.requires_grad]
    handles = [
        parts["neck"].register_forward_pre_hook(lambda *_: meter.begin("neck")),
        # each layer of the trunk: with a cache the first layers do not run, and a backward pass may recompute some
        *(one.register_forward_pre_hook(lambda *_: meter.begin("trunk")) for one in parts["trunk"].modules()),
    ]
    try:
        with precision(), torch.autograd.graph.saved_tensors_hooks(meter.pack, meter.unpack):
            if module.encoder is not None:
                meter.begin("cache")
            tracking = module.inference.tracking(backbone)
            result = learn(backbone, module.propagations, episode, module.learning, 0, encode, meter.begin, tracking)
            total = torch.stack(list(result.losses.values())).sum()
        gradients = (
            torch.autograd.grad(total, trained, allow_unused=True) if total.requires_grad else [None] * len(trained)
        )
        del result, total
        meter.begin("optimiser")
        copies = [p.detach().clone() for p in trained]
        for weight, gradient in zip(copies, gradients, strict=True):
            weight.grad = gradient
        torch.optim.AdamW(copies, lr=0.0).step()
        meter.end()
    finally:
        for handle in handles:
            handle.remove()


class _Meter:
    """Seconds and bytes by part. The part whose tensors are saved or asked for is the part that runs."""

    def __init__(self, device: torch.device, parameters: Iterable[Tensor]) -> None:
        self.seconds: dict[str, float] = {}
        self.bytes: dict[str, int] = {}
        self._device = device
        self._known = {p.untyped_storage().data_ptr() for p in parameters}
        self._part = ""
        self._since = 0.0

    def begin(self, part: str) -> None:
        """End the present part, and begin another part."""
        if part == self._part:
            return
        self.end()
        self._part, self._since = part, time.perf_counter()

    def end(self) -> None:
        """End the present part, and count its seconds."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        if self._part:
            spent = time.perf_counter() - self._since
            self.seconds[self._part] = self.seconds.get(self._part, 0.0) + spent
        self._part = ""

    def pack(self, tensor: Tensor) -> tuple[str, Tensor]:
        """Count the bytes of a saved tensor; each storage counts once."""
        for dense in (tensor._indices(), tensor._values()) if tensor.is_sparse else (tensor,):
            storage = dense.untyped_storage()
            if storage.data_ptr() not in self._known:
                self._known.add(storage.data_ptr())
                self.bytes[self._part] = self.bytes.get(self._part, 0) + storage.nbytes()
        return self._part, tensor.detach()  # an output would hold its own node, and the whole graph with it

    def unpack(self, saved: tuple[str, Tensor]) -> Tensor:
        """Begin the part of a saved tensor that the backward pass asks for."""
        self.begin(saved[0])
        return saved[1]
