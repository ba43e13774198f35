"""What each action does to the state of a session. The result depends on scan, model, state and arguments alone."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mois.inference.lesion_maps import LesionMaps
from mois.inference.levels import Outlined, ScanRule, rule_of
from mois.records import Exemplars, Volume
from mois.session.found_lesions import confidence, describe_lesions, find_lesions, keep_ids, nearest_exemplars, outline
from mois.session.masks import BoxMask, unpack_mask
from mois.session.points import StackPoint, stack_point
from mois.session.prompting import PromptSegmenter
from mois.session.state import Lesion, Preview, Prompt, State
from mois.sharing.bank import Exemplar, ExemplarBank
from mois.sharing.lesion_model import LesionModel

StateAndResult = tuple[State, Any]
"""The state after an action, and what the action returns to the reader."""


class Workbench:
    """A scan and a model. It computes the state that follows an action.

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
        self._latest: tuple[list[Exemplar], LesionMaps] | None = None  # exemplars of the latest propagation, its answer
        self._actions: dict[str, Callable[..., StateAndResult]] = {
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

    def apply(self, name: str, state: State, arguments: Mapping[str, Any]) -> StateAndResult:
        """Return the state after an action, and the action's result.

        Raises:
            ValueError: If the action does not exist or cannot be done.
        """
        if name not in self._actions:
            raise ValueError(f"action {name!r} does not exist; choose {', '.join(self._actions)}, undo or redo.")
        return self._actions[name](state, **arguments)

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

    def preview(
        self, state: State, point_lps_mm: Sequence[float], lesion: int | None = None, positive: bool = True
    ) -> Preview:
        """Return what a click would show on its slice.

        Raises:
            ValueError: As the click raises it, as far as the clicked slice decides.
        """
        known, prompt = self._click_prompt(state, point_lps_mm, lesion, positive)
        number, prompts = self._all_prompts(state, known, prompt)
        index, axis = prompt.slice_index, self.grid.order[0]
        plane = self._prompted.on_slice(prompts, index)
        mask = BoxMask.of(plane[None], (index, 0, 0)).minus(state.owned(but=number)).on_slice(index, plane.shape)
        i, j, k = (1 if n == axis else count for n, count in enumerate(self.grid.shape))
        on_scan = replace(self.grid, shape=(i, j, k)).to_volume(torch.from_numpy(mask[None])).squeeze(axis)
        return Preview(number, axis, self.grid.stack_shape[0] - 1 - index if self.grid.flipped[0] else index, on_scan)

    def _click(
        self, state: State, point_lps_mm: Sequence[float], lesion: int | None = None, positive: bool = True
    ) -> StateAndResult:
        return self._prompt(state, *self._click_prompt(state, point_lps_mm, lesion, positive))

    def _click_prompt(
        self, state: State, point_lps_mm: Sequence[float], lesion: int | None, positive: bool
    ) -> tuple[int | None, Prompt]:
        """Return the lesion that a click is for (None: a new lesion), and the click as a prompt."""
        point = stack_point(self.grid, point_lps_mm)
        prompt = Prompt("click", point.slice_index, ((point.row, point.column),), positive)
        if lesion is None:
            lesion = self._lesion_at(state, point)
            if lesion is None and not positive:
                raise ValueError(
                    f"point_lps_mm={list(point_lps_mm)}: a negative click outside every lesion; name a lesion."
                )
            if lesion is not None and positive and state.lesions[lesion].owns:
                raise ValueError(
                    f"point_lps_mm={list(point_lps_mm)} lies in lesion {lesion}; give lesion={lesion} to correct it, "
                    "or take the place out of it first (positive=False)."
                )
        return lesion, prompt

    def _box(
        self, state: State, corners_lps_mm: Sequence[Sequence[float]], lesion: int | None = None
    ) -> StateAndResult:
        if len(corners_lps_mm) != 2:
            raise ValueError(f"corners_lps_mm: {len(corners_lps_mm)} points; a box has two opposite corners.")
        first, second = (stack_point(self.grid, corner) for corner in corners_lps_mm)
        if abs(first.slice_index - second.slice_index) > 1:
            raise ValueError(
                f"corners_lps_mm={[list(corner) for corner in corners_lps_mm]} lie on slices {first.slice_index} and "
                f"{second.slice_index}; a box is drawn on one slice."
            )
        top, bottom = sorted((first.row, second.row))
        left, right = sorted((first.column, second.column))
        if lesion is None:
            lesion = self._lesion_at(state, StackPoint(first.slice_index, (top + bottom) / 2, (left + right) / 2))
            lesion = None if lesion is not None and state.lesions[lesion].owns else lesion
        return self._prompt(state, lesion, Prompt("box", first.slice_index, ((top, left), (bottom, right))))

    def _mask(self, state: State, mask: Mapping[str, Any], lesion: int | None = None) -> StateAndResult:
        given = unpack_mask(mask, self.volume.shape)
        box = BoxMask.of(self.grid.to_stack(torch.from_numpy(given)).numpy())
        if not box.voxels:
            raise ValueError("mask: it is empty; give a mask with at least one voxel.")
        return self._prompt(state, lesion, Prompt("mask", box.corner[0], mask=box))

    def _lesion_at(self, state: State, point: StackPoint) -> int | None:
        """Return the id of the lesion at a point; None if there is no lesion."""
        spot = BoxMask(point.voxel, np.ones((1, 1, 1), dtype=bool))
        return next((number for number, lesion in state.lesions.items() if lesion.mask.overlap(spot)), None)

    def _prompt(self, state: State, number: int | None, prompt: Prompt) -> StateAndResult:
        """Add a prompt to a lesion (None: a new lesion), segment it again, and take its voxels from found lesions."""
        number, prompts = self._all_prompts(state, number, prompt)
        answer = self._prompted.segment(prompts)
        mask = answer.mask.minus(state.owned(but=number))
        if not mask.voxels and prompt.positive:
            raise ValueError(
                f"lesion {number}: all its voxels would belong to locked or prompted lesions; correct these lesions."
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

    def _all_prompts(self, state: State, number: int | None, prompt: Prompt) -> tuple[int, tuple[Prompt, ...]]:
        """Return the id of a lesion, and all its prompts with the new prompt last."""
        if number is None:
            return state.next_id, (prompt,)
        old = self._lesion(state, number, changes=True)
        if old.origin == "found" and not prompt.positive:  # the found mask is corrected
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
        index = self._exemplar_slice(mask, prompts)
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

    def _propagate(self, state: State) -> StateAndResult:
        answer = self.answer(state)
        found, unsure = find_lesions(self.segmenter, self.encoded, state, answer, self.voxel_ml)
        masks, peaks = [mask for mask, _ in found], [peak for _, peak in found]
        ids = keep_ids(state.lesions, masks, self.grid.stack_shape, state.next_id)
        appearance = describe_lesions(self.segmenter, self.encoded, masks)
        exemplars = list(state.exemplars.values())
        nearest, novelty = nearest_exemplars(appearance, exemplars)
        confidences = confidence(self.model.calibration, peaks)
        lesions = {number: lesion for number, lesion in state.lesions.items() if lesion.owns}
        for index, number in enumerate(ids):
            lesions[number] = Lesion(
                masks[index],
                "found",
                peak=peaks[index],
                confidence=confidences[index],
                explained_by=exemplars[nearest[index]].key if nearest[index] >= 0 else "",
                novelty=float(novelty[index]),
                area_mm2=appearance.area_mm2[index],
                mean_intensity=appearance.mean_intensity[index],
            )
        next_id = max([state.next_id, *(number + 1 for number in ids)])
        return replace(state, lesions=lesions, unsure=unsure, next_id=next_id, propagated=True), len(ids)

    def answer(self, state: State) -> LesionMaps:
        """Return where lesions like the exemplars are. The latest answer is kept."""
        keys, exemplars = self.exemplars_in_use(state)
        used = [state.exemplars[key] for key in keys]
        if self._latest is not None:
            before, answer = self._latest
            if len(used) == len(before) and all(map(operator.is_, used, before)):
                return answer
        answer = self.segmenter.find(self.encoded, exemplars)
        answer = answer.by_rule(self._rule(state, keys, exemplars, answer))
        self._latest = used, answer
        return answer

    def _rule(self, state: State, keys: Sequence[str], exemplars: Exemplars, answer: LesionMaps) -> ScanRule:
        """Return what the lesions of this scan that are exemplars decide (`mois.inference.levels`)."""
        if not self.segmenter.settings.by_exemplars:  # no lesion need be outlined
            return ScanRule()
        own, items = [], []
        for number, lesion in state.lesions.items():
            if self.key(number) in keys and (index := self._exemplar_slice(lesion.mask, lesion.prompts)) >= 0:
                own.append(keys.index(self.key(number)))
                items.append((index, outline(self.encoded, lesion.mask, index)))
        if not items:
            return ScanRule()
        outlined = Outlined(np.array(own), *self.segmenter.on_tiles(self.encoded, items))
        return rule_of(self.segmenter, self.encoded, exemplars, outlined, answer)

    @staticmethod
    def _exemplar_slice(mask: BoxMask, prompts: Sequence[Prompt]) -> int:
        """Return the prompted slice on which a lesion is largest, or any slice without prompts; -1 if it is empty."""
        index = mask.largest_slice([prompt.slice_index for prompt in prompts if prompt.positive])
        return mask.largest_slice() if index < 0 else index

    def verdicts(self, state: State) -> dict[str, tuple[BoxMask, bool]]:
        """Return the lesions that the reader judged: key of the exemplar -> (mask, whether it was rejected)."""
        masks = {self.key(n): (lesion.mask, False) for n, lesion in state.lesions.items() if lesion.owns}
        return masks | {key: (mask, True) for key, mask in state.rejected.items()}

    def _accept(self, state: State, lesion: int) -> StateAndResult:
        old = self._lesion(state, lesion)
        lesions, exemplars = dict(state.lesions), dict(state.exemplars)
        key = self.key(lesion)
        if key not in exemplars and (exemplar := self._exemplar(lesion, old.mask, old.prompts)) is not None:
            exemplars[key] = exemplar
        lesions[lesion] = replace(old, accepted=True, locked=True, confidence=1.0, explained_by=key)
        return replace(state, lesions=lesions, exemplars=exemplars), None

    def _reject(self, state: State, lesion: int) -> StateAndResult:
        old = self._lesion(state, lesion, changes=True)
        lesions, exemplars, rejected = dict(state.lesions), dict(state.exemplars), dict(state.rejected)
        del lesions[lesion]
        key = self.key(lesion)
        exemplar = self._exemplar(lesion, old.mask, old.prompts, negative=True)
        if exemplar is not None:
            exemplars[key] = exemplar
            rejected[key] = old.mask
        return replace(state, lesions=lesions, exemplars=exemplars, rejected=rejected), None

    def _remove(self, state: State, lesion: int) -> StateAndResult:
        self._lesion(state, lesion, changes=True)
        lesions = {number: each for number, each in state.lesions.items() if number != lesion}
        exemplars = {key: each for key, each in state.exemplars.items() if key != self.key(lesion)}
        return replace(state, lesions=lesions, exemplars=exemplars), None

    def _lock(self, state: State, lesion: int) -> StateAndResult:
        old = self._lesion(state, lesion)
        return replace(state, lesions={**state.lesions, lesion: replace(old, locked=True)}), None

    def _unlock(self, state: State, lesion: int) -> StateAndResult:
        old = self._lesion(state, lesion)
        return replace(state, lesions={**state.lesions, lesion: replace(old, locked=False, accepted=False)}), None

    def _use_bank(self, state: State, bank: str) -> StateAndResult:
        if bank not in self.banks:
            raise ValueError(f"bank {bank} is not in the session's folder; bring it in with use_bank.")
        brought = self.banks[bank]
        self.check(brought)
        exemplars = dict(state.exemplars)
        for exemplar in brought:
            key = self._free_key(exemplar, exemplars) if self.scan else exemplar.key
            if key is not None:
                exemplars[key] = exemplar if key == exemplar.key else replace(exemplar, key=key)
        self.bank(replace(state, exemplars=exemplars))  # refuses tokens that do not fit
        return replace(state, exemplars=exemplars), len(brought)

    def check(self, bank: ExemplarBank) -> None:
        """Refuse a bank that does not suit this model and scan; see `ExemplarBank.check`."""
        settings = self.segmenter.settings
        bank.check(self.model.identity, settings.pixel_mm, self.normalisation, channels=settings.channels)

    def _free_key(self, exemplar: Exemplar, present: Mapping[str, Exemplar]) -> str | None:
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

    def _reweigh(self, state: State, exemplar: str, weight: float) -> StateAndResult:
        bank = self.bank(state)
        bank.reweigh(exemplar, weight)
        return replace(state, exemplars={item.key: item for item in bank}), None

    def _forget(self, state: State, exemplar: str) -> StateAndResult:
        bank = self.bank(state)
        bank.remove(exemplar)
        rejected = {key: mask for key, mask in state.rejected.items() if key != exemplar}
        return replace(state, exemplars={item.key: item for item in bank}, rejected=rejected), None

    @staticmethod
    def _lesion(state: State, number: int, *, changes: bool = False) -> Lesion:
        if number not in state.lesions:
            existing = ", ".join(str(each) for each in sorted(state.lesions)[:20]) or "none yet"
            raise ValueError(f"lesion={number} does not exist; there is {existing}.")
        lesion = state.lesions[number]
        if changes and lesion.locked:
            raise ValueError(f"lesion={number} is locked; unlock it first.")
        return lesion
