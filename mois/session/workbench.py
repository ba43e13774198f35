"""What each action does to the state of a session. The result depends on scan, model, state and arguments alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch

from mois.machine.steps import Steps, finish
from mois.records import Volume
from mois.session.advice import Influence, each_left_out, influences, lesions_on_tiles
from mois.session.found_lesions import (
    confidence,
    describe_lesions_steps,
    find_lesions_steps,
    keep_ids,
    nearest_exemplars,
)
from mois.session.masks import BoxMask
from mois.session.models.model_on_scan import ModelOnScan, sides
from mois.session.prompts.given_prompts import (
    box_prompt,
    click_prompt,
    drawn_voxels,
    lasso_prompt,
    mask_prompt,
    scribble_prompt,
)
from mois.session.prompts.refusals import NothingLeft
from mois.session.state import Lesion, Preview, Prompt, State
from mois.sharing.bank import ExemplarBank
from mois.sharing.lesion_model import LesionModel

StateAndResult = tuple[State, Any]
"""The state after an action, and what the action returns to the reader."""


DrawingKind = Literal["box", "scribble", "lasso"]
DRAWINGS = {"box": box_prompt, "scribble": scribble_prompt, "lasso": lasso_prompt}


class Workbench:
    """A scan and a model. It computes the state that follows an action.

    Args:
        model: The model.
        volume: The scan. Its lesions are not read.
        scan: Stands for the scan's content in the keys of its exemplars. It is empty in a session of format 1, whose
            keys hold the subject alone.
        banks: Exemplar banks that actions can name. The session adds to them.
        type: Type of the lesions that the model finds.
        on_scan: The model on the scan, if it is made already.
    """

    def __init__(
        self,
        model: LesionModel,
        volume: Volume,
        scan: str,
        banks: Mapping[str, ExemplarBank],
        *,
        type: str = "",
        on_scan: ModelOnScan | None = None,
    ) -> None:
        self.on_scan = on_scan = on_scan if on_scan is not None else ModelOnScan(model, volume, scan)
        self.type = type
        self.model, self.segmenter, self.encoded, self.grid = model, model.segmenter, on_scan.encoded, on_scan.grid
        self.volume = volume
        self.banks = banks
        self.voxel_ml = volume.voxel_ml
        self._actions: dict[str, Callable[..., StateAndResult]] = {
            "click": self._click,
            "box": self._box,
            "mask": self._mask,
            "scribble": partial(self._draw, "scribble"),
            "lasso": partial(self._draw, "lasso"),
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

    def preview(
        self, state: State, point_lps_mm: Sequence[float], lesion: int | None = None, positive: bool = True
    ) -> Preview:
        """Return what a click would show on its slice.

        Raises:
            ValueError: As the click raises it, as far as the clicked slice decides.
        """
        prompt = click_prompt(self.grid, point_lps_mm, positive)
        return self._preview(state, prompt, self._clicked(state, prompt, lesion, point_lps_mm))

    def preview_drawing(
        self,
        state: State,
        kind: DrawingKind,
        points_lps_mm: Sequence[Sequence[float]],
        lesion: int | None = None,
        positive: bool = True,
    ) -> Preview:
        """Return what a box, scribble or lasso would show on its slice.

        Raises:
            ValueError: As the drawing raises it, as far as its slice decides; or if it would take a lesion away.
        """
        prompt, lesion = self._drawn(kind, state, points_lps_mm, lesion, positive)
        if lesion is None and not positive:
            lesion = self._lesion_under(state, prompt)
            if lesion is None or state.lesions[lesion].origin == "found":
                raise ValueError("the drawing says what must not be found; there is no lesion to show.")
        return self._preview(state, prompt, lesion)

    def _preview(self, state: State, prompt: Prompt, lesion: int | None) -> Preview:
        number, prompts = self._all_prompts(state, lesion, prompt)
        index, axis = prompt.slice_index, self.grid.order[0]
        plane = self.on_scan.prompted.on_slice(prompts, index)
        mask = BoxMask.of(plane[None], (index, 0, 0)).minus(state.owned(but=number)).on_slice(index, plane.shape)
        i, j, k = (1 if n == axis else count for n, count in enumerate(self.grid.shape))
        on_scan = replace(self.grid, shape=(i, j, k)).to_volume(torch.from_numpy(mask[None])).squeeze(axis)
        return Preview(number, axis, self.grid.stack_shape[0] - 1 - index if self.grid.flipped[0] else index, on_scan)

    def _click(
        self, state: State, point_lps_mm: Sequence[float], lesion: int | None = None, positive: bool = True
    ) -> StateAndResult:
        prompt = click_prompt(self.grid, point_lps_mm, positive)
        return self._prompt(state, self._clicked(state, prompt, lesion, point_lps_mm), prompt)

    def _clicked(self, state: State, prompt: Prompt, lesion: int | None, point_lps_mm: Sequence[float]) -> int | None:
        """Return the lesion that a click is for; None for a new lesion."""
        if lesion is None:
            lesion = self._lesion_under(state, prompt)
            if lesion is None and not prompt.positive:
                raise ValueError(
                    f"point_lps_mm={list(point_lps_mm)}: a negative click outside every lesion; name a lesion."
                )
            if lesion is not None and prompt.positive and state.lesions[lesion].owns:
                raise ValueError(
                    f"point_lps_mm={list(point_lps_mm)} lies in lesion {lesion}; give lesion={lesion} to correct it, "
                    "or take the place out of it first (positive=False)."
                )
        return lesion

    def _box(
        self,
        state: State,
        corners_lps_mm: Sequence[Sequence[float]],
        lesion: int | None = None,
        positive: bool = True,
    ) -> StateAndResult:
        return self._draw("box", state, corners_lps_mm, lesion, positive)

    def _draw(
        self,
        kind: DrawingKind,
        state: State,
        points_lps_mm: Sequence[Sequence[float]],
        lesion: int | None,
        positive: bool,
    ) -> StateAndResult:
        return self._area(state, *self._drawn(kind, state, points_lps_mm, lesion, positive))

    def _drawn(
        self,
        kind: DrawingKind,
        state: State,
        points_lps_mm: Sequence[Sequence[float]],
        lesion: int | None,
        positive: bool,
    ) -> tuple[Prompt, int | None]:
        """Return a drawing as a prompt, and the lesion that it is for. A positive one may be for a found lesion."""
        prompt = DRAWINGS[kind](self.grid, points_lps_mm, positive)
        if lesion is not None or not positive:
            return prompt, lesion
        if kind == "box":  # the found lesion in the middle
            middle = np.array(prompt.points).mean(0).tolist()
            return prompt, self._found_under(state, replace(prompt, kind="click", points=(tuple(middle),)))
        for number in self._lesions_under(state, prompt) if kind == "scribble" else ():
            if state.lesions[number].owns:
                raise ValueError(
                    f"points_lps_mm: the scribble crosses lesion {number}; give lesion={number} to correct it, or "
                    "take the place out of it first (positive=False)."
                )
        return prompt, self._found_under(state, prompt)

    def _mask(
        self, state: State, mask: Mapping[str, Any], lesion: int | None = None, positive: bool = True
    ) -> StateAndResult:
        return self._area(state, mask_prompt(self.grid, mask, positive), lesion)

    def _area(self, state: State, prompt: Prompt, lesion: int | None) -> StateAndResult:
        """Take a prompt with many voxels: for a lesion, or as a word on what must not be found.

        A negative prompt that names no lesion is for the lesion that has most of its voxels. A found lesion is then
        rejected. If there is no lesion, the voxels are an example of what must not be found.
        """
        if lesion is None and not prompt.positive:
            lesion = self._lesion_under(state, prompt)
            if lesion is None:
                return self._exclude(state, drawn_voxels(self.grid, prompt))
            if state.lesions[lesion].origin == "found":
                return self._reject(state, lesion)[0], lesion
        return self._prompt(state, lesion, prompt)

    def _exclude(self, state: State, region: BoxMask) -> StateAndResult:
        """Make a region without a lesion a negative exemplar; nothing is found there."""
        number = state.next_id
        exemplar = self.on_scan.exemplar(number, region, negative=True)
        if exemplar is None:
            raise ValueError("the drawing holds no voxel; draw it larger.")
        return replace(
            state,
            exemplars={**state.exemplars, exemplar.key: exemplar},
            rejected={**state.rejected, exemplar.key: region},
            next_id=number + 1,
        ), number

    def _lesions_under(self, state: State, prompt: Prompt) -> list[int]:
        """Return the lesions that share voxels with a prompt, the one with most of them first."""
        drawn = drawn_voxels(self.grid, prompt)
        shared = {number: lesion.mask.overlap(drawn) for number, lesion in state.lesions.items()}
        return sorted((number for number, count in shared.items() if count), key=lambda number: -shared[number])

    def _lesion_under(self, state: State, prompt: Prompt) -> int | None:
        """Return the lesion that shares most voxels with a prompt; None if there is no lesion."""
        return next(iter(self._lesions_under(state, prompt)), None)

    def _found_under(self, state: State, prompt: Prompt) -> int | None:
        """Return the lesion under a prompt, unless the reader prompted or locked it."""
        lesion = self._lesion_under(state, prompt)
        return None if lesion is None or state.lesions[lesion].owns else lesion

    def _prompt(self, state: State, number: int | None, prompt: Prompt) -> StateAndResult:
        """Add a prompt to a lesion (None: a new lesion), segment it again, and take its voxels from found lesions."""
        number, prompts = self._all_prompts(state, number, prompt)
        answer = self.on_scan.prompted.segment(prompts)
        mask = answer.mask.minus(state.owned(but=number))
        if not mask.voxels and (prompt.positive or prompt.kind == "click"):
            raise NothingLeft.of(number, prompt, answer.mask)
        lesions = dict(state.lesions)
        lesions[number] = Lesion(mask, "prompted", prompts, explained_by=self.on_scan.key(number), type=self.type)
        for other, lesion in state.lesions.items():
            if other == number or lesion.owns or not (shared := lesion.mask.overlap(mask)):
                continue
            if 2 * shared >= lesion.mask.voxels:
                del lesions[other]
            else:
                lesions[other] = replace(lesion, mask=lesion.mask.minus([mask]))
        exemplars = dict(state.exemplars)
        exemplar = self.on_scan.exemplar(number, mask, prompts, None if mask is not answer.mask else answer.soft)
        if exemplar is None:
            exemplars.pop(self.on_scan.key(number), None)
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

    def _propagate(self, state: State) -> StateAndResult:
        return finish(self.propagate_steps(state))

    def propagate_steps(self, state: State) -> Steps[StateAndResult]:
        """Return the state after a propagation, and the number of found lesions, in steps."""
        answer = yield from self.on_scan.answer_steps(state)
        found, unsure = yield from find_lesions_steps(self.segmenter, self.encoded, state, answer, self.voxel_ml)
        masks, peaks = [mask for mask, _ in found], [peak for _, peak in found]
        ids = keep_ids(state.lesions, masks, self.grid.stack_shape, state.next_id)
        yield None
        appearance = yield from describe_lesions_steps(self.segmenter, self.encoded, masks)
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
                type=self.type,
            )
        next_id = max([state.next_id, *(number + 1 for number in ids)])
        return replace(state, lesions=lesions, unsure=unsure, next_id=next_id, propagated=True), len(ids)

    def verdicts(self, state: State) -> dict[str, tuple[BoxMask, bool]]:
        """Return the lesions that the reader judged: key of the exemplar -> (mask, whether it was rejected)."""
        masks = {self.on_scan.key(n): (lesion.mask, False) for n, lesion in state.lesions.items() if lesion.owns}
        return masks | {key: (mask, True) for key, mask in state.rejected.items()}

    def influences(self, state: State) -> list[Influence]:
        """Return how much each exemplar helps or harms; see `mois.session.advice`."""
        keys, exemplars = self.on_scan.exemplars_in_use(state, [key for side in sides(state) for key in side])
        judged = lesions_on_tiles(self.encoded, self.verdicts(state))
        return influences(self.segmenter, self.encoded, judged, each_left_out(keys, exemplars), state.exemplars)

    def _accept(self, state: State, lesion: int) -> StateAndResult:
        old = self._lesion(state, lesion)
        lesions, exemplars = dict(state.lesions), dict(state.exemplars)
        key = self.on_scan.key(lesion)
        if key not in exemplars and (exemplar := self.on_scan.exemplar(lesion, old.mask, old.prompts)) is not None:
            exemplars[key] = exemplar
        lesions[lesion] = replace(old, accepted=True, locked=True, confidence=1.0, explained_by=key)
        return replace(state, lesions=lesions, exemplars=exemplars), None

    def _reject(self, state: State, lesion: int) -> StateAndResult:
        old = self._lesion(state, lesion, changes=True)
        lesions, exemplars, rejected = dict(state.lesions), dict(state.exemplars), dict(state.rejected)
        del lesions[lesion]
        key = self.on_scan.key(lesion)
        exemplar = self.on_scan.exemplar(lesion, old.mask, old.prompts, negative=True)
        if exemplar is not None:
            exemplars[key] = exemplar
            rejected[key] = old.mask
        return replace(state, lesions=lesions, exemplars=exemplars, rejected=rejected), None

    def _remove(self, state: State, lesion: int) -> StateAndResult:
        self._lesion(state, lesion, changes=True)
        lesions = {number: each for number, each in state.lesions.items() if number != lesion}
        exemplars = {key: each for key, each in state.exemplars.items() if key != self.on_scan.key(lesion)}
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
        self.on_scan.check(brought)
        exemplars = dict(state.exemplars)
        for exemplar in brought:
            key = self.on_scan.free_key(exemplar, exemplars) if self.on_scan.scan else exemplar.key
            if key is not None:
                exemplars[key] = exemplar if key == exemplar.key else replace(exemplar, key=key)
        self.on_scan.bank(replace(state, exemplars=exemplars))  # refuses tokens that do not fit
        return replace(state, exemplars=exemplars), len(exemplars) - len(state.exemplars)

    def _reweigh(self, state: State, exemplar: str, weight: float) -> StateAndResult:
        bank = self.on_scan.bank(state)
        bank.reweigh(exemplar, weight)
        return replace(state, exemplars={item.key: item for item in bank}), None

    def _forget(self, state: State, exemplar: str) -> StateAndResult:
        bank = self.on_scan.bank(state)
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
