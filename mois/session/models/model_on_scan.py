"""A model on the scan of a session: what it finds there, how it describes lesions, and which exemplars suit it."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace

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
from mois.session.advice import first_vetoes
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
        self._of_positive: tuple[list[object], LesionMaps] | None = None  # the same of positive exemplars alone

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

    def exemplars_in_use(self, state: State, among: Sequence[str] | None = None) -> tuple[list[str], Exemplars]:
        """Return the exemplars that a propagation takes: their keys, and the exemplars (B = 1).

        A propagation that merges exemplars takes all of them. Any other propagation takes at most
        `inference.most_exemplars`: those that differ most.

        Args:
            state: State of the session.
            among: Keys of the exemplars from which they are taken, in this order. None: all.
        """
        if among is not None:
            state = replace(state, exemplars={key: state.exemplars[key] for key in among})
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
        positive, rejected = sides(state)
        if self.segmenter.settings.rejections == "vetoes" and positive and rejected:
            used = self._used(state, [*positive, *rejected])
            if self._latest is None or not _same(used, self._latest[0]):
                self._latest = used, (yield from self._vetoed_steps(state, positive, rejected, tile_by_tile))
            return self._latest[1]
        keys, exemplars = self.exemplars_in_use(state)
        used = self._used(state, keys)
        if self._latest is None or not _same(used, self._latest[0]):
            opposite = bool(positive and rejected) and self.segmenter.settings.asks_alone
            answer = yield from self._asked_steps(state, keys, exemplars, tile_by_tile, opposite=opposite)
            self._latest = self._of_positive = used, answer
        return self._latest[1]

    def _used(self, state: State, keys: Sequence[str]) -> list[object]:
        """Return what the answer to the exemplars of these keys depends on."""
        masks = [each.mask for number, each in state.lesions.items() if self.key(number) in keys]
        return [*(state.exemplars[key] for key in keys), *masks]

    def _asked_steps(
        self, state: State, keys: list[str], exemplars: Exemplars, tile_by_tile: bool, *, opposite: bool
    ) -> Steps[LesionMaps]:
        """Return the answer to exemplars; with `opposite`, also its margin over that if they change sides."""
        questions = [exemplars, exemplars.sides_changed()] if opposite else [exemplars]
        lesions = self._outlined(state, keys)
        pooled = yield from pooled_steps(self.segmenter, self.encoded, exemplars, lesions)
        plain = [reads_plain(self.segmenter, exemplars, len(lesions.own), alone=pooled), False][: len(questions)]
        search = Search(self.segmenter, self.encoded, questions, pooled=pooled, plain=plain)
        answer, *changed = yield from search.steps(tile_by_tile=tile_by_tile)
        for other in changed:
            answer = yield from answer.against_steps(other)
        rule = yield from rule_steps(self.segmenter, self.encoded, exemplars, lesions, answer)
        return (yield from answer.by_rule_steps(rule))

    def _vetoed_steps(
        self, state: State, positive: Sequence[str], rejected: Sequence[str], tile_by_tile: bool
    ) -> Steps[LesionMaps]:
        """Return the answer to the positive exemplars alone, with the margin of them and of rejected lesions.

        Rejecting a lesion changes no positive exemplar, so their answer may be known already. They are chosen by
        themselves: a rejected lesion takes none of their room. `first_vetoes` are compared.
        """
        mine, exemplars = self.exemplars_in_use(state, positive)
        used = self._used(state, mine)
        if self._of_positive is not None and _same(used, self._of_positive[0]):
            answer = self._of_positive[1]
        else:
            answer = yield from self._asked_steps(state, mine, exemplars, tile_by_tile, opposite=False)
            self._latest = self._of_positive = used, answer  # the answer before this one needs no memory any more
        _, compared = self.exemplars_in_use(state, [*mine, *first_vetoes(rejected, len(mine))])
        questions = [compared, compared.sides_changed()]
        search = Search(self.segmenter, self.encoded, questions, pooled=False, plain=[False, False])
        here, changed = yield from search.steps(tile_by_tile=tile_by_tile)
        margin = (yield from here.against_steps(changed)).margin
        return answer._replace(margin=margin)

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


def sides(state: State) -> tuple[list[str], list[str]]:
    """Return the keys of the positive exemplars, and those of rejected lesions; exemplars of weight 0 are left out.

    Rejected lesions of this scan come before those of banks, in the order in which they were rejected.
    """
    present = {key: each.negative for key, each in state.exemplars.items() if each.weight > 0}
    negative = [key for key in present if present[key]]
    here = [key for key in state.rejected if key in negative]
    return [key for key in present if not present[key]], [
        *here,
        *(key for key in negative if key not in state.rejected),
    ]


def _same(one: Sequence[object], other: Sequence[object]) -> bool:
    """Return whether two lists hold the same objects."""
    return len(one) == len(other) and all(map(operator.is_, one, other))


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
