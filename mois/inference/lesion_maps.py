"""Questions about a whole scan, what a propagation answers, and where the lesions of an answer are parted."""

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
from mois.inference.levels import EVEN, shifted
from mois.inference.parting import part_by_cores
from mois.lesions import InstanceMap, split_touching
from mois.records import Exemplars


class LesionMaps(NamedTuple):
    """Lesions like the exemplars in a whole scan, voxel by voxel.

    Attributes:
        probability: (S, H, W) float32, probability of a lesion; 0 in air.
        cores: (S, H, W) float16, probability of the core of a lesion; None if the propagation answers without cores.
    """

    probability: Tensor
    cores: Tensor | None = None

    def at_level(self, level: float) -> LesionMaps:
        """Return the maps with their log-odds shifted, so that a probability of `level` becomes 0.5."""
        if level == EVEN:
            return self
        return LesionMaps(*(None if part is None else shifted(part, level) for part in self))  # type: ignore[arg-type]


class TileAnswers(NamedTuple):
    """Answers to R questions on T tiles.

    Attributes:
        probability: (T, R, P, P) float32, probability of a lesion.
        cores: (T, R, P, P) float32, probability of a core; or None.
    """

    probability: Tensor
    cores: Tensor | None

    @classmethod
    def cat(cls, parts: Iterable[TileAnswers]) -> TileAnswers:
        """Join answers on different tiles."""
        probability, cores = zip(*parts, strict=True)
        return cls(torch.cat(probability), None if cores[0] is None else torch.cat(cores))


class BlendedAnswers:
    """Answers to R questions, blended from tiles to stacks.

    Cores are kept as float16: with cores, answers take half as much memory again.

    Args:
        encoded: The scan.
        questions: Number R of questions.
    """

    def __init__(self, encoded: EncodedVolume, questions: int) -> None:
        self.encoded = encoded
        self._probability = torch.zeros(questions, *encoded.pictures.shape)  # (R, S, h, w)
        self._cores: Tensor | None = None

    def add(self, slices: Iterable[int], rows: npt.NDArray[np.int64], answers: TileAnswers) -> None:
        """Blend all tiles of some slices.

        Args:
            slices: The slices.
            rows: (T,) rows of the tiles of these slices.
            answers: Answers on these tiles.
        """
        if self._cores is None and answers.cores is not None:
            self._cores = torch.zeros(self._probability.shape, dtype=torch.float16)
        on_slice, tile = self.encoded.places[rows].T
        for slice_index in slices:
            here = torch.from_numpy(np.flatnonzero(on_slice == slice_index))
            tiles = torch.from_numpy(tile)[here]
            self._probability[:, slice_index] = self.encoded.tiles.blend(answers.probability[here], tiles)
            if self._cores is not None and answers.cores is not None:
                self._cores[:, slice_index] = self.encoded.tiles.blend(answers.cores[here], tiles).half()

    def restored(self) -> tuple[Tensor, Tensor | None]:
        """Return probabilities (R, S, H, W) float32 and cores (R, S, H, W) float16 on the scan's own pixels."""
        return self._restore(self._probability), None if self._cores is None else self._restore(self._cores)

    def _restore(self, stacks: Tensor) -> Tensor:
        restored = torch.empty(len(stacks), *self.encoded.grid.stack_shape, dtype=stacks.dtype)
        for number, stack in enumerate(stacks):  # one stack at a time, to save memory
            restored[number] = restore_stack(stack.float(), self.encoded.grid).to(stacks.dtype)
        return restored


def parting_of(
    maps: LesionMaps, prominence_mm: float, min_voxels: int, spacing_mm: Spacing | Edges | None
) -> Callable[[InstanceMap], InstanceMap] | None:
    """Return the function that parts touching lesions of an instance map; None if nothing says where to part.

    Args:
        maps: The answer. If it has cores, they part lesions.
        prominence_mm: Without cores: prominence of `split_touching`; 0 parts no lesion.
        min_voxels: Smallest lesion.
        spacing_mm: Edges of a voxel.

    Raises:
        ValueError: If touching lesions are to be parted and the spacing is missing.
    """
    if maps.cores is None and not prominence_mm:
        return None
    if spacing_mm is None:
        what = "cores part" if maps.cores is not None else f"inference.split_prominence_mm={prominence_mm} parts"
        raise ValueError(f"{what} touching lesions, which needs the spacing in mm; pass spacing_mm.")
    if maps.cores is not None:
        return partial(part_by_cores, cores=maps.cores.numpy(), spacing_mm=spacing_mm, min_voxels=min_voxels)
    return partial(split_touching, spacing_mm=spacing_mm, prominence_mm=prominence_mm, min_voxels=min_voxels)


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
