"""A model on the scan of a session: what it finds there, how it describes lesions, and which exemplars suit it."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from mois.inference.encoded_volume import EncodedVolume
from mois.inference.lesion_maps import LesionMaps
from mois.inference.levels import Outlined, reads_plain, rule_steps
from mois.inference.opinions import pooled_steps
from mois.inference.search import Search
from mois.interfaces import Backbone
from mois.machine.steps import Steps, finish
from mois.records import Exemplars, Volume
from mois.session.found_lesions import outline
from mois.session.masks import BoxMask
from mois.session.prompts.prompting import PromptSegmenter
from mois.session.state import Prompt, State
from mois.sharing.bank import Exemplar, ExemplarBank
from mois.sharing.lesion_model import LesionModel

_ENCODING = (
    "pixel_mm", "tile_px", "overlap", "slice_axis", "normalisation", "channels", "air_level", "precision",
)  # fmt: skip
"""Settings that decide which tiles a scan has, and their features."""


class ModelOnScan:
    """A model on the scan of a session. It knows no state, but keeps its latest answer.

    Args:
        model: The model.
        volume: The scan. Its lesions are not read.
        scan: Stands for the scan's content in the keys of its exemplars; see `Workbench`.
        others: Other models on the scan. Encoded tiles are taken from one that encodes the same tiles alike.
    """

    def __init__(self, model: LesionModel, volume: Volume, scan: str, others: Sequence[ModelOnScan] = ()) -> None:
        self.model = model
        self.segmenter = segmenter = model.segmenter
        self.scan = scan
        self.volume = volume
        self.normalisation = segmenter.normalisation(volume)
        alike = next((other for other in others if self._encodes_as(other)), None)
        self.encoded: EncodedVolume = segmenter.encode(volume, lazy=True) if alike is None else alike.encoded
        self.grid = self.encoded.grid
        self.prompted = PromptSegmenter(segmenter, self.encoded)
        self._latest: tuple[list[object], LesionMaps] | None = None  # what the latest answer depends on, and it

    def _encodes_as(self, other: ModelOnScan) -> bool:
        """Return whether another model encodes the same tiles to the same features."""
        mine, theirs = self.segmenter.settings, other.segmenter.settings
        return (
            self.model.identity.behaviour == other.model.identity.behaviour
            and all(getattr(mine, name) == getattr(theirs, name) for name in _ENCODING)
            and _same_encoder(self.segmenter.backbone, other.segmenter.backbone)
        )

    def key(self, lesion: int) -> str:
        """Return the key of a lesion's exemplar."""
        return f"{self.volume.subject}:{lesion}@{self.scan}" if self.scan else f"{self.volume.subject}:{lesion}"

    def bank(self, state: State) -> ExemplarBank:
        """Return the exemplars of a state as a bank."""
        settings = self.segmenter.settings
        bank = ExemplarBank(self.model.identity, settings.pixel_mm, self.normalisation, settings.channels)
        for exemplar in state.exemplars.values():
            bank.add(exemplar)
        return bank

    def exemplars_in_use(self, state: State) -> tuple[list[str], Exemplars]:
        """Return the exemplars that a propagation takes: their keys, and the exemplars (B = 1).

        A propagation that merges exemplars takes all of them. Any other propagation takes at most
        `inference.most_exemplars`: those that differ most.
        """
        bank, most = self.bank(state), self.segmenter.settings.most_exemplars
        keys = bank.select(max(most, len(bank)) if self.segmenter.propagation.merges else most)
        if not keys:
            return [], self.segmenter.no_exemplars(self.encoded)
        return keys, bank.exemplars(keys, self.segmenter.device)

    def exemplar(
        self,
        number: int,
        mask: BoxMask,
        prompts: Sequence[Prompt] = (),
        soft: Mapping[int, Tensor] | None = None,
        *,
        negative: bool = False,
    ) -> Exemplar | None:
        """Return the exemplar of a lesion, from the prompted slice on which the lesion is largest.

        Args:
            number: Id of the lesion.
            mask: Mask of the lesion.
            prompts: Its prompts. Without a positive prompt, the slice on which the lesion is largest is taken.
            soft: Probability (h, w) of the lesion by slice, as the model gave it.
            negative: Whether the exemplar shows what must not be found.

        Returns:
            None if the mask is empty.
        """
        index = self._slice_of(mask, prompts)
        if index < 0:
            return None
        outlined = outline(self.encoded, mask, index)
        if soft is not None and index in soft and bool((soft[index] > 0.5).any()):
            outlined = soft[index] * (soft[index] >= 0.01)  # soft, as in training
        described = self.segmenter.exemplars(self.encoded, [(index, outlined)])
        if not bool(described.valid.any()):
            described = self.segmenter.exemplars(self.encoded, [(index, outline(self.encoded, mask, index))])
        rows, columns = np.nonzero(mask.on_slice(index, self.grid.stack_shape[1:]))
        centre = torch.tensor([[float(index), rows.mean(), columns.mean()]], dtype=torch.float64)
        x, y, z = self.grid.to_lps_mm(centre)[0].tolist()
        return Exemplar.of(
            self.key(number),
            described,
            0,
            picture=self.encoded.pictures[index],
            mask=outlined,
            pixel_mm=self.segmenter.settings.pixel_mm,
            scan=self.volume.subject,
            patient=self.volume.patient,
            position_lps_mm=(x, y, z),
            negative=negative,
        )

    def answer(self, state: State) -> LesionMaps:
        """Return where lesions like the exemplars are. The latest answer is kept."""
        return finish(self.answer_steps(state, tile_by_tile=False))

    def answer_steps(self, state: State, *, tile_by_tile: bool = True) -> Steps[LesionMaps]:
        """Do what `answer` does, in steps.

        Args:
            state: State of the session.
            tile_by_tile: A step encodes one tile at most. The answer does not depend on it.
        """
        keys, exemplars = self.exemplars_in_use(state)
        masks = [each.mask for number, each in state.lesions.items() if self.key(number) in keys]
        used: list[object] = [*(state.exemplars[key] for key in keys), *masks]
        if self._latest is not None:
            before, answer = self._latest
            if len(used) == len(before) and all(map(operator.is_, used, before)):
                return answer
        questions = [exemplars]
        pooled = self.segmenter.settings.asks_alone
        if pooled and bool(exemplars.present_negative.any() & exemplars.positive.any()):
            questions.append(exemplars.sides_changed())
        lesions = self._outlined(state, keys)
        pooled = yield from pooled_steps(self.segmenter, self.encoded, exemplars, lesions)
        plain = [reads_plain(self.segmenter, exemplars, len(lesions.own), alone=pooled), False][: len(questions)]
        search = Search(self.segmenter, self.encoded, questions, pooled=pooled, plain=plain)
        answer, *changed = yield from search.steps(tile_by_tile=tile_by_tile)
        for opposite in changed:
            answer = yield from answer.against_steps(opposite)
        rule = yield from rule_steps(self.segmenter, self.encoded, exemplars, lesions, answer)
        answer = yield from answer.by_rule_steps(rule)
        self._latest = used, answer
        return answer

    def _outlined(self, state: State, keys: Sequence[str]) -> Outlined:
        """Return the lesions of this scan that are exemplars, as far as they decide anything."""
        own, items = [], []
        if self.segmenter.settings.by_exemplars:  # else no lesion need be outlined
            for number, lesion in state.lesions.items():
                if self.key(number) in keys and (index := self._slice_of(lesion.mask, lesion.prompts)) >= 0:
                    own.append(keys.index(self.key(number)))
                    items.append((index, outline(self.encoded, lesion.mask, index)))
        if not items:
            return Outlined(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), torch.zeros(0, 0, 0))
        return Outlined(np.array(own), *self.segmenter.on_tiles(self.encoded, items))

    @staticmethod
    def _slice_of(mask: BoxMask, prompts: Sequence[Prompt]) -> int:
        """Return the prompted slice on which a lesion is largest, or any slice without prompts; -1 if it is empty."""
        index = mask.largest_slice([prompt.slice_index for prompt in prompts if prompt.positive])
        return mask.largest_slice() if index < 0 else index

    def check(self, bank: ExemplarBank) -> None:
        """Refuse a bank that does not suit this model and scan; see `ExemplarBank.check`."""
        settings = self.segmenter.settings
        bank.check(self.model.identity, settings.pixel_mm, self.normalisation, channels=settings.channels)

    def free_key(self, exemplar: Exemplar, present: Mapping[str, Exemplar]) -> str | None:
        """Return the key of an exemplar of a bank; None if the same exemplar is among `present` already.

        The exemplar keeps its key, unless another exemplar has this key or a lesion of this scan could get it.
        """
        same_key = present.get(exemplar.key)
        mine = exemplar.key.startswith(f"{self.volume.subject}:") and exemplar.key.endswith(f"@{self.scan}")
        if same_key is None and not mine:
            return exemplar.key
        if same_key is not None and same_key.same_as(exemplar):
            return None
        key = f"{exemplar.key}~{exemplar.sha256[:8]}"
        return None if key in present else key


def _same_encoder(one: Backbone, other: Backbone) -> bool:
    """Return whether two backbones encode with the same tensors. What an adapter changes elsewhere does not matter."""
    if one is other:
        return True
    mine, theirs = one.encoder_tensors(), other.encoder_tensors()
    return (
        type(one) is type(other)
        and mine.keys() == theirs.keys()
        and all(
            tensor.device == theirs[name].device and torch.equal(tensor, theirs[name]) for name, tensor in mine.items()
        )
    )
