"""What every action makes of a session's state: functions of scan, model, state and arguments alone."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mois.interfaces import Propagation
from mois.records import Exemplars, Volume
from mois.session.found_lesions import confidence, find_lesions, keep_ids, likeness, look_at, outline
from mois.session.masks import BoxMask, unpack_mask
from mois.session.points import Place, place_on
from mois.session.prompting import PromptSegmenter
from mois.session.state import Lesion, Preview, Prompt, State
from mois.sharing.bank import Exemplar, ExemplarBank
from mois.sharing.lesion_model import LesionModel

Outcome = tuple[State, Any]


class Workbench:
    """A scan under a model: turns an action into the state after it.

    Args:
        model: The model.
        volume: The scan. Its lesions are not read.
        scan: Stands for the scan's content in the keys of its exemplars. It is empty in a session of format 1, whose
            keys hold the subject alone.
        banks: Exemplar banks that actions can name. The session adds to them.
    """

    def __init__(self, model: LesionModel, volume: Volume, scan: str, banks: Mapping[str, ExemplarBank]) -> None:
        self.model = model
        self.segmenter = segmenter = model.segmenter
        self.scan = scan
        self.volume = volume
        self.banks = banks
        self.normalisation = segmenter.normalisation(volume)
        self.encoded = segmenter.encode(volume, lazy=True)
        self.grid = self.encoded.grid
        self._prompted = PromptSegmenter(segmenter, self.encoded)
        self.voxel_ml = volume.voxel_ml
        self._last: tuple[list[Exemplar], Tensor] | None = None  # exemplars of the last propagation and its answer
        self._actions: dict[str, Callable[..., Outcome]] = {
            "click": self._click,
            "box": self._box,
            "mask": self._mask,
            "propagate": self._propagate,
            "accept": self._accept,
            "reject": self._reject,
            "remove": self._remove,
            "lock": self._lock,
            "unlock": self._unlock,
            "use_bank": self._use_bank,
            "reweigh": self._reweigh,
            "forget": self._forget,
        }

    def apply(self, name: str, state: State, arguments: Mapping[str, Any]) -> Outcome:
        """Return the state after an action, and the action's result.

        Raises:
            ValueError: If there is no such action, or it cannot be done; nothing has changed then.
        """
        if name not in self._actions:
            raise ValueError(f"action {name!r} does not exist; choose {', '.join(self._actions)}, undo or redo.")
        return self._actions[name](state, **arguments)

    def place(self, point_lps_mm: Sequence[float]) -> Place:
        """Return where a point lies; raises as `place_on` does."""
        return place_on(self.grid, point_lps_mm)

    def key(self, lesion: int) -> str:
        """Return the key of a lesion's exemplar."""
        return f"{self.volume.subject}:{lesion}@{self.scan}" if self.scan else f"{self.volume.subject}:{lesion}"

    def bank(self, state: State) -> ExemplarBank:
        """Return a state's exemplars as a bank."""
        bank = ExemplarBank(self.model.identity, self.segmenter.settings.pixel_mm, self.normalisation)
        for exemplar in state.exemplars.values():
            bank.add(exemplar)
        return bank

    def asked(self, state: State) -> tuple[list[str], Exemplars]:
        """Return the keys of the exemplars that a propagation takes, and themselves (B = 1).

        One that merges what is more than `inference.most_exemplars` takes all; any other so many that differ most.
        """
        bank, most = self.bank(state), self.segmenter.settings.most_exemplars
        merges = type(self.segmenter.propagation).condense is not Propagation.condense
        keys = bank.select(max(most, len(bank)) if merges else most)
        if not keys:
            return [], self.segmenter.no_exemplars(self.encoded)
        return keys, bank.exemplars(keys, self.segmenter.device)

    def preview(
        self, state: State, point_lps_mm: Sequence[float], lesion: int | None = None, positive: bool = True
    ) -> Preview:
        """Return what a click would show on its slice; raises what the click would, so far as that slice tells."""
        known, prompt = self._clicked(state, point_lps_mm, lesion, positive)
        number, prompts = self._prompts(state, known, prompt)
        index, axis = prompt.slice_index, self.grid.order[0]
        plane = self._prompted.on_slice(prompts, index)
        mask = BoxMask.of(plane[None], (index, 0, 0)).minus(state.owned(but=number)).on_slice(index, plane.shape)
        i, j, k = (1 if n == axis else count for n, count in enumerate(self.grid.shape))
        there = replace(self.grid, shape=(i, j, k)).to_volume(torch.from_numpy(mask[None])).squeeze(axis)
        return Preview(number, axis, self.grid.stack_shape[0] - 1 - index if self.grid.flipped[0] else index, there)

    def _click(
        self, state: State, point_lps_mm: Sequence[float], lesion: int | None = None, positive: bool = True
    ) -> Outcome:
        return self._prompt(state, *self._clicked(state, point_lps_mm, lesion, positive))

    def _clicked(
        self, state: State, point_lps_mm: Sequence[float], lesion: int | None, positive: bool
    ) -> tuple[int | None, Prompt]:
        """Return the lesion that a click is for, None for a new one, and the click as a prompt."""
        place = self.place(point_lps_mm)
        prompt = Prompt("click", place.slice_index, ((place.row, place.column),), positive)
        if lesion is None:
            lesion = self._owner(state, place)
            if lesion is None and not positive:
                raise ValueError(f"point_lps_mm={list(point_lps_mm)}: a negative click outside every lesion; name one.")
            if lesion is not None and positive and state.lesions[lesion].owns:
                raise ValueError(
                    f"point_lps_mm={list(point_lps_mm)} lies in lesion {lesion}; give lesion={lesion} to correct it, "
                    "or take the place out of it first (positive=False)."
                )
        return lesion, prompt

    def _box(self, state: State, corners_lps_mm: Sequence[Sequence[float]], lesion: int | None = None) -> Outcome:
        if len(corners_lps_mm) != 2:
            raise ValueError(f"corners_lps_mm: {len(corners_lps_mm)} points; a box has two opposite corners.")
        one, two = (self.place(corner) for corner in corners_lps_mm)
        if abs(one.slice_index - two.slice_index) > 1:
            raise ValueError(
                f"corners_lps_mm={[list(corner) for corner in corners_lps_mm]} lie on slices {one.slice_index} and "
                f"{two.slice_index}; a box is drawn on one slice."
            )
        top, bottom = sorted((one.row, two.row))
        left, right = sorted((one.column, two.column))
        if lesion is None:
            lesion = self._owner(state, Place(one.slice_index, (top + bottom) / 2, (left + right) / 2))
            lesion = None if lesion is not None and state.lesions[lesion].owns else lesion
        return self._prompt(state, lesion, Prompt("box", one.slice_index, ((top, left), (bottom, right))))

    def _mask(self, state: State, mask: Mapping[str, Any], lesion: int | None = None) -> Outcome:
        given = unpack_mask(mask, self.volume.shape)
        box = BoxMask.of(self.grid.to_stack(torch.from_numpy(given)).numpy())
        if not box.voxels:
            raise ValueError("mask: it is empty; give one with a voxel or more.")
        return self._prompt(state, lesion, Prompt("mask", box.corner[0], mask=box))

    def _owner(self, state: State, place: Place) -> int | None:
        """Return the lesion that has a voxel."""
        spot = BoxMask(place.voxel, np.ones((1, 1, 1), dtype=bool))
        return next((number for number, lesion in state.lesions.items() if lesion.mask.overlap(spot)), None)

    def _prompt(self, state: State, number: int | None, prompt: Prompt) -> Outcome:
        """Return what another prompt for a lesion, or the first for a new one, makes of it and of its neighbours."""
        number, prompts = self._prompts(state, number, prompt)
        answer = self._prompted.segment(prompts)
        mask = answer.mask.minus(state.owned(but=number))
        if not mask.voxels and prompt.positive:
            raise ValueError(
                f"lesion {number}: all that it would cover belongs to locked or prompted lesions; correct those."
            )
        lesions = dict(state.lesions)
        lesions[number] = Lesion(mask, "prompted", prompts, explained_by=self.key(number))
        for other, lesion in state.lesions.items():
            if other == number or lesion.owns or not (shared := lesion.mask.overlap(mask)):
                continue
            if 2 * shared >= lesion.mask.voxels:
                del lesions[other]
            else:
                lesions[other] = replace(lesion, mask=lesion.mask.minus([mask]))
        exemplars = dict(state.exemplars)
        exemplar = self._exemplar(number, mask, prompts, None if mask is not answer.mask else answer.soft)
        if exemplar is None:
            exemplars.pop(self.key(number), None)
        else:
            exemplars[exemplar.key] = exemplar
        return replace(state, lesions=lesions, exemplars=exemplars, next_id=max(state.next_id, number + 1)), number

    def _prompts(self, state: State, number: int | None, prompt: Prompt) -> tuple[int, tuple[Prompt, ...]]:
        """Return a lesion's id and prompts as another one makes them."""
        if number is None:
            return state.next_id, (prompt,)
        old = self._lesion(state, number, changes=True)
        if old.origin == "found" and not prompt.positive:  # what was found is what is to be corrected
            return number, (Prompt("mask", old.mask.corner[0], mask=old.mask), prompt)
        return number, (*old.prompts, prompt)

    def _exemplar(
        self,
        number: int,
        mask: BoxMask,
        prompts: Sequence[Prompt] = (),
        soft: Mapping[int, Tensor] | None = None,
        *,
        negative: bool = False,
    ) -> Exemplar | None:
        """Return a lesion's exemplar: how it looks on that of the prompted slices on which it is largest."""
        index = mask.largest_slice([prompt.slice_index for prompt in prompts if prompt.positive])
        index = mask.largest_slice() if index < 0 else index
        if index < 0:
            return None
        shown = outline(self.encoded, mask, index)
        if soft is not None and index in soft and bool((soft[index] > 0.5).any()):
            shown = soft[index] * (soft[index] >= 0.01)  # as unsure as the model is, as in its training
        described = self.segmenter.exemplars(self.encoded, [(index, shown)])
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
            mask=shown,
            pixel_mm=self.segmenter.settings.pixel_mm,
            scan=self.volume.subject,
            patient=self.volume.patient,
            position_lps_mm=(x, y, z),
            negative=negative,
        )

    def _propagate(self, state: State) -> Outcome:
        probability = self._probability(state)
        found, maybes = find_lesions(self.segmenter, self.encoded, state, probability, self.voxel_ml)
        masks, peaks = [mask for mask, _ in found], [peak for _, peak in found]
        ids = keep_ids(state.lesions, masks, self.grid.stack_shape, state.next_id)
        look = look_at(self.segmenter, self.encoded, masks)
        known = list(state.exemplars.values())
        nearest, novelty = likeness(look, known)
        sure = confidence(self.model.calibration, peaks)
        lesions = {number: lesion for number, lesion in state.lesions.items() if lesion.owns}
        for place, number in enumerate(ids):
            lesions[number] = Lesion(
                masks[place],
                "found",
                peak=peaks[place],
                confidence=sure[place],
                explained_by=known[nearest[place]].key if nearest[place] >= 0 else "",
                novelty=float(novelty[place]),
                area_mm2=look.area_mm2[place],
                mean_intensity=look.mean_intensity[place],
            )
        next_id = max([state.next_id, *(number + 1 for number in ids)])
        return replace(state, lesions=lesions, maybes=maybes, next_id=next_id, propagated=True), len(ids)

    def _probability(self, state: State) -> Tensor:
        """Return what is like the exemplars, (S, H, W); worked out again only where they are others than the last."""
        keys, asked = self.asked(state)
        shown = [state.exemplars[key] for key in keys]
        if self._last is None or len(shown) != len(self._last[0]) or any(map(operator.is_not, shown, self._last[0])):
            self._last = shown, self.segmenter.propagate(self.encoded, asked)
        return self._last[1]

    def verdicts(self, state: State) -> dict[str, tuple[BoxMask, bool]]:
        """Return the mask of each lesion that the reader judged, and whether it was rejected, by exemplar key."""
        masks = {self.key(n): (lesion.mask, False) for n, lesion in state.lesions.items() if lesion.owns}
        return masks | {key: (mask, True) for key, mask in state.rejected.items()}

    def _accept(self, state: State, lesion: int) -> Outcome:
        old = self._lesion(state, lesion)
        lesions, exemplars = dict(state.lesions), dict(state.exemplars)
        key = self.key(lesion)
        if key not in exemplars and (exemplar := self._exemplar(lesion, old.mask, old.prompts)) is not None:
            exemplars[key] = exemplar
        lesions[lesion] = replace(old, accepted=True, locked=True, confidence=1.0, explained_by=key)
        return replace(state, lesions=lesions, exemplars=exemplars), None

    def _reject(self, state: State, lesion: int) -> Outcome:
        old = self._lesion(state, lesion, changes=True)
        lesions, exemplars, rejected = dict(state.lesions), dict(state.exemplars), dict(state.rejected)
        del lesions[lesion]
        key = self.key(lesion)
        exemplar = self._exemplar(lesion, old.mask, old.prompts, negative=True)
        if exemplar is not None:
            exemplars[key] = exemplar
            rejected[key] = old.mask
        return replace(state, lesions=lesions, exemplars=exemplars, rejected=rejected), None

    def _remove(self, state: State, lesion: int) -> Outcome:
        self._lesion(state, lesion, changes=True)
        lesions = {number: each for number, each in state.lesions.items() if number != lesion}
        exemplars = {key: each for key, each in state.exemplars.items() if key != self.key(lesion)}
        return replace(state, lesions=lesions, exemplars=exemplars), None

    def _lock(self, state: State, lesion: int) -> Outcome:
        old = self._lesion(state, lesion)
        return replace(state, lesions={**state.lesions, lesion: replace(old, locked=True)}), None

    def _unlock(self, state: State, lesion: int) -> Outcome:
        old = self._lesion(state, lesion)
        return replace(state, lesions={**state.lesions, lesion: replace(old, locked=False, accepted=False)}), None

    def _use_bank(self, state: State, bank: str) -> Outcome:
        if bank not in self.banks:
            raise ValueError(f"bank {bank} is not in the session's folder; bring it in with use_bank.")
        brought = self.banks[bank]
        brought.check(self.model.identity, self.segmenter.settings.pixel_mm, self.normalisation)
        exemplars = dict(state.exemplars)
        for exemplar in brought:
            key = self._free_key(exemplar, exemplars) if self.scan else exemplar.key
            if key is not None:
                exemplars[key] = exemplar if key == exemplar.key else replace(exemplar, key=key)
        self.bank(replace(state, exemplars=exemplars))  # tokens that do not fit are refused here
        return replace(state, exemplars=exemplars), len(brought)

    def _free_key(self, exemplar: Exemplar, there: Mapping[str, Exemplar]) -> str | None:
        """Return the key of an exemplar that comes in, None where it is there already.

        It keeps its own key unless another exemplar has that, or a lesion of this scan could come to have it.
        """
        known = there.get(exemplar.key)
        mine = exemplar.key.startswith(f"{self.volume.subject}:") and exemplar.key.endswith(f"@{self.scan}")
        if known is None and not mine:
            return exemplar.key
        if known is not None and known.same_as(exemplar):
            return None
        key = f"{exemplar.key}~{exemplar.sha256[:8]}"
        return None if key in there else key

    def _reweigh(self, state: State, exemplar: str, weight: float) -> Outcome:
        bank = self.bank(state)
        bank.reweigh(exemplar, weight)
        return replace(state, exemplars={item.key: item for item in bank}), None

    def _forget(self, state: State, exemplar: str) -> Outcome:
        bank = self.bank(state)
        bank.remove(exemplar)
        rejected = {key: mask for key, mask in state.rejected.items() if key != exemplar}
        return replace(state, exemplars={item.key: item for item in bank}, rejected=rejected), None

    @staticmethod
    def _lesion(state: State, number: int, *, changes: bool = False) -> Lesion:
        if number not in state.lesions:
            there = ", ".join(str(known) for known in sorted(state.lesions)[:20]) or "none yet"
            raise ValueError(f"lesion={number} does not exist; there is {there}.")
        lesion = state.lesions[number]
        if changes and lesion.locked:
            raise ValueError(f"lesion={number} is locked; unlock it first.")
        return lesion
