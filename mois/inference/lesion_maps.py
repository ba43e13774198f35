"""Questions about a whole scan, what a propagation answers, how answers are averaged, and where lesions are parted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mois.geometry import restore_stack
from mois.grid import Edges, Spacing
from mois.inference.encoded_volume import EncodedVolume
from mois.inference.parting import part_by_cores_steps
from mois.lesions import InstanceMap, split_touching_steps
from mois.machine.steps import Steps, finish, some_slices
from mois.records import Exemplars

EVEN = 0.5
"""The level if nothing is known of the scan. No level is higher."""

SURE = 1e-4
"""Probabilities nearer to 0 or 1 than this are no surer."""


class Shares(NamedTuple):
    """Shares of the further answers in the log-odds; the rest is the propagation's.

    Attributes:
        plain: Share of the plain answer (`Propagation.plain_answer`).
        alone: Share of the answer without exemplars.
    """

    plain: float = 0.0
    alone: float = 0.0


NO_SHARES = Shares()


class ScanRule(NamedTuple):
    """What the exemplars of a scan decide.

    Attributes:
        shares: Shares of the further answers.
        level: The probability that becomes 0.5.
        waist_mm: How much thinner than the lesions beside it a waist is that parts them, in mm; 0: shape parts nothing.
        peak_level: The probability that becomes 0.5 in the peak of a candidate. It decides what is a lesion, and not
            where it ends.
    """

    shares: Shares = NO_SHARES
    level: float = EVEN
    waist_mm: float = 0.0
    peak_level: float = EVEN


class LesionMaps(NamedTuple):
    """Lesions like the exemplars in a whole scan, voxel by voxel.

    Attributes:
        probability: (S, H, W) float32, probability of a lesion; 0 in air.
        cores: (S, H, W) float16, probability of the core of a lesion; None if the propagation answers without cores.
        plain: (S, H, W) float16, the plain answer of the propagation; None if it has none, or nobody asks for it.
        alone: (S, H, W) float16, the answer without exemplars; None if nobody asks for it.
        waist_mm: How much thinner than the lesions beside it a waist is that parts them, in mm; 0: the cores part them.
        peak_level: The probability that becomes 0.5 in the peak of a candidate (`ScanRule`).
        margin: (S, H, W) float16, log-odds of the propagation's answer, minus those of its answer if the exemplars
            change sides. Below 0 a voxel is more like what was rejected. None if nothing was.
    """

    probability: Tensor
    cores: Tensor | None = None
    plain: Tensor | None = None
    alone: Tensor | None = None
    waist_mm: float = 0.0
    peak_level: float = EVEN
    margin: Tensor | None = None

    def by_rule(self, rule: ScanRule) -> LesionMaps:
        """Return the maps as the exemplars of the scan decide: answers mixed, log-odds shifted, the waist known."""
        return finish(self.by_rule_steps(rule))

    def by_rule_steps(self, rule: ScanRule) -> Steps[LesionMaps]:
        """Do what `by_rule` does, a few slices at a time."""
        if rule.level == EVEN and rule.shares == NO_SHARES:
            return self._replace(plain=None, alone=None, waist_mm=rule.waist_mm, peak_level=rule.peak_level)
        probability = torch.empty_like(self.probability)
        cores = None if self.cores is None else torch.empty_like(self.cores)
        for slices in some_slices(probability.shape):
            here = self.on_slices(slices).mixed(rule.shares).at_level(rule.level)
            probability[slices] = here.probability
            if cores is not None and here.cores is not None:
                cores[slices] = here.cores
            yield None
        return LesionMaps(probability, cores, None, None, rule.waist_mm, rule.peak_level, self.margin)

    def against_steps(self, changed: LesionMaps) -> Steps[LesionMaps]:
        """Return the maps with the margin over the answer if the exemplars change sides, a few slices at a time."""
        margin = torch.empty(self.probability.shape, dtype=torch.float16)
        for slices in some_slices(margin.shape):
            mine, theirs = (log_odds(maps.probability[slices]) for maps in (self, changed))
            margin[slices] = (mine - theirs).half()
            yield None
        return self._replace(margin=margin)

    def on_slices(self, slices: slice) -> LesionMaps:
        """Return the maps on some slices."""
        return LesionMaps(*(part[slices] if isinstance(part, Tensor) else part for part in self))  # type: ignore[arg-type]

    def mixed(self, shares: Shares) -> LesionMaps:
        """Return the maps with the log-odds of the further answers mixed into those of the probability."""
        return self._replace(probability=mixed(self.probability, self.plain, self.alone, shares))

    def at_level(self, level: float) -> LesionMaps:
        """Return the maps with their log-odds shifted, so that a probability of `level` becomes 0.5."""
        if level == EVEN:
            return self
        cores = None if self.cores is None else shifted(self.cores, level)
        return self._replace(probability=shifted(self.probability, level), cores=cores)

    def without_vetoed(self, lesions: InstanceMap) -> InstanceMap:
        """Return the lesions of an instance map (S, H, W) that are not more like what was rejected, ids 1..K anew."""
        if self.margin is None:
            return lesions
        inside = lesions > 0  # few of all voxels
        there = np.bincount(lesions[inside], minlength=1) > 0
        kept = there & (np.bincount(lesions[inside], self.margin.numpy()[inside], minlength=1) >= 0)
        return np.asarray((np.cumsum(kept) * kept)[lesions], dtype=np.int32)

    def at_peak_level(self, peaks: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return peaks of candidates, (K,), with their log-odds shifted, so that `peak_level` becomes 0.5."""
        return peaks if self.peak_level == EVEN else shifted(torch.from_numpy(peaks), self.peak_level).numpy()


class Inside(NamedTuple):
    """Answers inside a lesion, of exemplars without its own.

    Attributes:
        probability: (n,), answer of the propagation at its pixels.
        plain: (n,), the plain answer; or None.
        alone: (n,), the answer without exemplars; or None.
    """

    probability: Tensor
    plain: Tensor | None = None
    alone: Tensor | None = None

    def mixed(self, shares: Shares) -> Tensor:
        """Return the answers mixed, (n,)."""
        return mixed(self.probability, self.plain, self.alone, shares)


class TileAnswers(NamedTuple):
    """Answers to R questions on T tiles.

    Attributes:
        probability: (T, R, P, P) float32, probability of a lesion.
        cores: (T, R, P, P) float32, probability of a core; or None.
        plain: (T, R, P, P) float32, the plain answer as a probability, to those of the R questions of which it is
            read; or None.
        alone: (T, 1, P, P) float32, the answer without exemplars, the same for all questions; or None.
    """

    probability: Tensor
    cores: Tensor | None = None
    plain: Tensor | None = None
    alone: Tensor | None = None

    @classmethod
    def cat(cls, parts: Iterable[TileAnswers]) -> TileAnswers:
        """Join answers on different tiles."""
        joined = [None if each[0] is None else torch.cat(each) for each in zip(*parts, strict=True)]
        return cls(*joined)  # type: ignore[arg-type]  # the first is always there


class BlendedAnswers:
    """Answers to R questions, blended from tiles to stacks.

    Cores and further answers are kept as float16: each takes half as much memory again.

    Args:
        encoded: The scan.
        questions: Number R of questions.
        plain: Numbers of the questions that have a plain answer, if the propagation has one.
    """

    def __init__(self, encoded: EncodedVolume, questions: int, plain: Sequence[int] = ()) -> None:
        self.encoded = encoded
        self._plain = plain
        self._probability = torch.zeros(questions, *encoded.pictures.shape)  # (R, S, h, w)
        self._further: dict[str, Tensor] = {}  # cores and further answers, by name

    def add(self, slices: Iterable[int], rows: npt.NDArray[np.int64], answers: TileAnswers) -> None:
        """Blend all tiles of some slices.

        Args:
            slices: The slices.
            rows: (T,) rows of the tiles of these slices.
            answers: Answers on these tiles.
        """
        further = {name: part for name, part in answers._asdict().items() if part is not None and name != "probability"}
        for name in further.keys() - self._further:
            asked = further[name].shape[1]
            self._further[name] = torch.zeros(asked, *self._probability.shape[1:], dtype=torch.float16)
        on_slice, tile = self.encoded.places[rows].T
        for slice_index in slices:
            here = torch.from_numpy(np.flatnonzero(on_slice == slice_index))
            tiles = torch.from_numpy(tile)[here]
            self._probability[:, slice_index] = self.encoded.tiles.blend(answers.probability[here], tiles)
            for name, part in further.items():
                self._further[name][:, slice_index] = self.encoded.tiles.blend(part[here], tiles).half()

    def restored_steps(self) -> Steps[list[LesionMaps]]:
        """Return the answer to each question on the scan's own pixels."""
        stacks = {"probability": self._probability} | self._further
        restored = {}
        for name, part in stacks.items():
            restored[name] = yield from self._restore(part)
        plain = dict(zip(self._plain, restored.pop("plain", ()), strict=False))
        return [
            LesionMaps(**{name: part[index] for name, part in restored.items()}, plain=plain.get(index))  # type: ignore[arg-type]
            for index in range(len(self._probability))
        ]

    def halved_steps(self) -> Steps[Tensor]:
        """Return the probability of the first question on the scan's own pixels, (S, H, W) float16."""
        return (yield from self._restore(self._probability[:1].half()))[0]

    def _restore(self, stacks: Tensor) -> Steps[Tensor]:
        restored = torch.empty(len(stacks), *self.encoded.grid.stack_shape, dtype=stacks.dtype)
        for number, stack in enumerate(stacks):
            for slices in some_slices(restored.shape[1:]):  # a few at a time, to save memory, too
                restored[number, slices] = restore_stack(stack[slices].float(), self.encoded.grid).to(stacks.dtype)
                yield None
        return restored


def parting_of(
    maps: LesionMaps, prominence_mm: float | None, min_voxels: int, spacing_mm: Spacing | Edges | None
) -> Callable[[InstanceMap], Steps[InstanceMap]] | None:
    """Return the function that parts touching lesions of an instance map, in steps; None if nothing says where to part.

    Args:
        maps: The answer. A waist that is known parts lesions by their shape; without it, cores part them.
        prominence_mm: Without both: prominence of `split_touching`; 0 or None parts no lesion.
        min_voxels: Smallest lesion.
        spacing_mm: Edges of a voxel.

    Raises:
        ValueError: If touching lesions are to be parted and the spacing is missing.
    """
    prominence_mm = maps.waist_mm or prominence_mm
    by_cores = maps.cores is not None and not maps.waist_mm
    if not by_cores and not prominence_mm:
        return None
    if spacing_mm is None:
        what = "cores part" if by_cores else f"inference.split_prominence_mm={prominence_mm} parts"
        raise ValueError(f"{what} touching lesions, which needs the spacing in mm; pass spacing_mm.")
    if by_cores and maps.cores is not None:
        return partial(part_by_cores_steps, cores=maps.cores.numpy(), spacing_mm=spacing_mm, min_voxels=min_voxels)
    return partial(
        split_touching_steps, spacing_mm=spacing_mm, prominence_mm=prominence_mm or 0.0, min_voxels=min_voxels
    )


def mixed(probability: Tensor, plain: Tensor | None, alone: Tensor | None, shares: Shares) -> Tensor:
    """Average the log-odds of answers. Where the first is 0, as in air, the result is 0.

    Args:
        probability: The answer of a propagation.
        plain: Its plain answer, same shape; None has no say.
        alone: Its answer without exemplars, same shape; None has no say.
        shares: Shares of the plain answer and of the answer without exemplars.

    Examples:
        >>> mixed(torch.tensor([0.0, 0.5, 0.8]), torch.tensor([0.9, 0.5, 0.2]), None, Shares(plain=0.5)).tolist()
        [0.0, 0.5, 0.5]
    """
    says = [(part, share) for part, share in ((plain, shares.plain), (alone, shares.alone)) if part is not None]
    says = [(part, share) for part, share in says if share]
    if not says:
        return probability
    odds = (1 - sum(share for _, share in says)) * log_odds(probability)
    for part, share in says:
        odds = odds + share * log_odds(part)
    return torch.where(probability > 0, odds.sigmoid(), 0.0).to(probability.dtype)


def log_odds(probability: Tensor) -> Tensor:
    """Return the log-odds of probabilities as float32; none is surer than `SURE`."""
    return probability.float().logit(SURE)


def shifted(probability: Tensor, level: float) -> Tensor:
    """Shift the log-odds of probabilities, so that `level` becomes 0.5.

    Examples:
        >>> shifted(torch.tensor([0.0, 0.25, 0.5, 1.0]), 0.25).tolist()
        [0.0, 0.5, 0.75, 1.0]
    """
    there = probability.float() * (1 - level)
    return (there / (there + (1 - probability.float()) * level)).to(probability.dtype)


def side_by_side(questions: Sequence[Exemplars]) -> Exemplars:
    """Return R sets of exemplars (B = 1, any K) as one batch: B = R, K of the largest set; smaller sets are padded."""
    if len(questions) == 1:
        return questions[0]
    most = max(question.count for question in questions)

    def fill(parts: Sequence[Tensor]) -> Tensor:
        padded = [torch.cat([part, part.new_zeros(1, most - part.shape[1], *part.shape[2:])], 1) for part in parts]
        return torch.cat(padded)

    return Exemplars(
        {name: fill([question.tokens[name] for question in questions]) for name in questions[0].tokens},
        fill([question.valid for question in questions]),
        fill([question.negative for question in questions]),
        fill([question.weight for question in questions]),
    )
