"""What exemplars decide for their scan: from which probability a voxel is a lesion, and whose answer counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import cc3d
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mois.inference.lesion_maps import EVEN, NO_SHARES, Inside, LesionMaps, ScanRule, Shares, shifted
from mois.inference.parting import waist_of
from mois.machine.steps import Steps, finish, some_slices
from mois.records import Exemplars

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mois.inference.encoded_volume import EncodedVolume
    from mois.inference.segmenter import VolumeSegmenter

LEVELS = tuple(step / 20 for step in range(2, 11))
"""Levels that are tried: 0.1, 0.15, ... 0.5."""

LONE_LEVEL = 0.35
"""The level with a single exemplar: no other one can find it."""

FOUND = 0.5
"""The answer without exemplars has a say if it finds so much of the exemplars: .07 to .41 of MS lesions, else more."""

KNOWN = 0.4
"""The same for `inference.level=known`, if a scan shows one kind of object (`ONE_KIND`)."""

SELECTIVE = ("selective", "moderate")
"""Values of `inference.level` with a level of their own for peaks."""

CAUTIOUS = ("cautious", *SELECTIVE)
"""Values of `inference.level` that take the highest of the levels that are as good (`AS_GOOD`)."""

OF_KNOWN_LESIONS = ("known", *CAUTIOUS)
"""Values of `inference.level` with a rule for lesions that the model knows."""

AS_GOOD = 0.85
"""Levels with at least this share of the largest figure are as good: a few small lesions cannot tell them apart."""

MODERATE = (0.25, 0.4)
"""Lowest and highest level of lesions that the model hardly knows, with `inference.level=moderate`: a few small lesions
say too little for a level beyond."""

SURE_PEAKS = (0.69, 0.92)
"""However sure the exemplars are, a candidate must be as sure as the first, and never surer than the second."""

MODERATE_PEAKS = (0.75, 0.84)
"""The same for lesions that the model hardly knows, with `inference.level=moderate`."""

PEAK_THRESHOLD = 0.6
"""What the peak becomes that a candidate must have. It is `peak_threshold` of the shipped configs."""

PEAKS_OF_KNOWN = (0.69, 0.72, 0.75, 0.78, 0.8)
"""How sure a lesion must be where a scan shows one kind of object: one of these (`_sure_of_known`). Above, nuclei are
lost; below, MS lesions drown among false ones."""

LEVELS_OF_KNOWN = (*reversed(LEVELS), 0.05, 0.02)
"""Levels that are tried where the model knows the lesions. Of equal ones the first is taken."""

MEANT = 0.1
"""An object is meant by the exemplars if so much of it is surely like them."""

ONE_KIND = 0.8
"""A scan shows one kind of object if so much of what is found without exemplars is meant by them."""

UNLIKE = 0.1
"""An object of which the mean probability is below this is of another kind than the exemplars."""

MOST_LESIONS = 16
"""Lesions that are left out in turn."""

BARELY = 1e-6
"""Weight of the exemplar that is left out. It has no say, but keeps its room. So a propagation that keeps fewer tokens
of each exemplar the more there are keeps as many of the others as in the question itself."""


class Outlined(NamedTuple):
    """N lesions of a scan that the reader outlined, and that are exemplars.

    Attributes:
        own: (N,) place of each lesion's exemplar among the exemplars.
        rows: (N,) row of the tile on which it was outlined.
        masks: (N, P, P) its mask there, 0 to 1.
    """

    own: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    masks: Tensor


PLAIN_HALF = Shares(plain=0.5)  # all of it harms bodies
POOLED = Shares(plain=0.25, alone=0.25)
POOLED_WITHOUT_PLAIN = Shares(alone=1 / 3)
ALONE_HALF = Shares(plain=0.25, alone=0.5)
WITHOUT_PLAIN = (POOLED_WITHOUT_PLAIN, Shares(alone=2 / 3))


def fewest_exemplars(level: str) -> int:
    """Return how many positive exemplars a scan needs for a level of its own, with this `inference.level`."""
    return 1 if level in OF_KNOWN_LESIONS else 2


def reads_plain(segmenter: VolumeSegmenter, exemplars: Exemplars, outlined: int, *, alone: bool = True) -> bool:
    """Return whether `rule_steps` reads the plain answer to a question.

    Args:
        segmenter: The model.
        exemplars: The exemplars of the question, B = 1.
        outlined: Number of positive exemplars that were outlined on the scan.
        alone: Whether the answer without exemplars may have a say.
    """
    settings = segmenter.settings
    least = fewest_exemplars(settings.level) if alone else 2
    return settings.asks_plain and outlined > 0 and int(exemplars.positive.sum()) >= least


def rule_of(
    segmenter: VolumeSegmenter, encoded: EncodedVolume, exemplars: Exemplars, lesions: Outlined, answer: LesionMaps
) -> ScanRule:
    """Return what the exemplars of a scan decide; see `rule_steps`."""
    return finish(rule_steps(segmenter, encoded, exemplars, lesions, answer))


def rule_steps(
    segmenter: VolumeSegmenter, encoded: EncodedVolume, exemplars: Exemplars, lesions: Outlined, answer: LesionMaps
) -> Steps[ScanRule]:
    """Return what the exemplars of a scan decide.

    Each lesion is left out in turn, and the other exemplars look for it. At each level they find a share of the lesion
    (the recall) and a share of the scan. The level is the one with the largest recall x recall / share of the scan,
    which rises and falls with F1. So a body with few lesions gets a high level, and a dish full of nuclei a low one.
    With `inference.level=mixed` the same figure decides between the answer of the propagation and the mean with its
    plain answer. With `inference.level=pooled` it does so too, unless the model finds the exemplars without any
    exemplar (`FOUND`). Then it knows such lesions: its answers with and without exemplars and the plain answer are
    averaged. The exemplars say which lesions are meant; without them, outlines do not depend on how well a few lesions
    were outlined. A question with negative exemplars is never averaged so.
    With `inference.level=known` such lesions have another rule (`_agreed`), also with a single exemplar.
    With `inference.level=cautious` they do too. For other lesions, the highest of the levels that are nearly as good as
    the best one is taken (`AS_GOOD`). With `selective` they do too, and peaks have a level of their own (`_peak_level`,
    `_sure_of_known`). Of known lesions, only what is clearly unlike the exemplars is another kind (`UNLIKE`). With
    `moderate` they do too, and for other lesions both levels have narrower bounds (`MODERATE`, `MODERATE_PEAKS`).

    Args:
        segmenter: The model. With `inference.level=fixed` the level is 0.5.
        encoded: The scan.
        exemplars: The exemplars of the question, B = 1.
        lesions: Positive exemplars of this scan.
        answer: The answer to all exemplars.

    Source: Lee and Liu, Learning with positive and unlabeled examples using weighted logistic regression, ICML 2003;
        Genest and Zidek, Combining probability distributions, Statistical Science 1 (1986) (logarithmic pool).
    """
    if not len(lesions.own):
        return ScanRule()
    waist_mm = 0.0
    if segmenter.settings.split_prominence_mm is None:
        waist_mm = waist_of(lesions.masks.cpu().numpy() > 0.5, segmenter.settings.pixel_mm, encoded.grid.edges_mm)
    if segmenter.settings.level == "fixed":
        return ScanRule(waist_mm=waist_mm)
    positive, setting = int(exemplars.positive.sum()), segmenter.settings.level
    if positive < fewest_exemplars(setting):  # without any, it is the answer to no exemplars
        return ScanRule(level=LONE_LEVEL if positive else EVEN, waist_mm=waist_mm)
    negatives = bool(exemplars.present_negative.any())
    rule = None
    if setting in OF_KNOWN_LESIONS and not negatives:
        alone = yield from alone_inside(segmenter, encoded, lesions)
        if finds(alone, setting):
            rule = yield from _agreed(answer, alone, len(lesions.own), setting)
    if rule is None and positive < 2:
        rule = ScanRule(level=LONE_LEVEL)
    selective = setting in SELECTIVE and positive > 1
    peaks = SURE_PEAKS
    left_out: Sequence[Inside] = ()
    if rule is None or (selective and not rule.shares.alone):
        left_out = yield from _without_own(segmenter, encoded, exemplars, lesions)
        if negatives:
            # Without exemplars, the model knows nothing of what must not be found.
            left_out = [inside._replace(alone=None) for inside in left_out]
        if rule is None:
            if setting == "moderate":
                peaks = MODERATE_PEAKS
            rule = yield from _best(left_out, answer, setting)
    if selective and left_out:
        rule = rule._replace(peak_level=_peak_level(left_out, rule, peaks))
    return rule._replace(waist_mm=waist_mm)


def _agreed(answer: LesionMaps, alone: Sequence[Tensor], shown: int, setting: str) -> Steps[ScanRule | None]:
    """Return the rule for lesions that the model knows: the exemplars choose objects, the answer without them outlines.

    An object is a component of the answer without exemplars. The exemplars mean those of which the pooled answer is
    sure in part (`MEANT`). If nearly all objects are meant, there is one kind of object (`ONE_KIND`). Then the
    exemplars have little to choose, and the answer without them has half a say. The level is the one at which this
    agrees best (Dice) with these objects: it does not hang on how well few lesions were outlined. If there are other
    kinds, the exemplars know the level better, unless the answer without them finds `FOUND` of the lesions. Then the
    answer with exemplars counts as it is. But few exemplars that look like each other are unsure of the rest of their
    kind: with `SELECTIVE` levels only what is clearly unlike them is of another kind (`UNLIKE`).

    Args:
        answer: The answer to all exemplars.
        alone: The answer without exemplars inside of each lesion, (n,) each.
        shown: Number of lesions that the reader outlined.
        setting: `inference.level`.

    Returns:
        The rule; None if no object is meant, there is no answer without exemplars, or the exemplars know better.
    """
    if answer.alone is None:
        return None
    found = (answer.alone >= EVEN).numpy().view(np.uint8)
    objects = np.asarray(cc3d.connected_components(found, connectivity=26, out_dtype=np.uint32))
    yield None
    sizes = np.bincount(objects.ravel())
    sizes[0] = 0  # what is no object
    pooled, of_one_kind = (POOLED, ALONE_HALF) if answer.plain is not None else WITHOUT_PLAIN
    (sure,) = yield from _counts_of_objects(answer, pooled, (EVEN,), objects, len(sizes))
    meant = (sure >= MEANT * sizes) & (sizes > 0)
    if not meant.any():
        return None
    if sizes[meant].sum() < ONE_KIND * sizes.sum():
        if not finds(alone, "pooled"):
            return None
        if setting not in SELECTIVE:
            return ScanRule()
        others = (yield from _unlike(answer, objects, sizes)) & ~meant
        if sizes[others].sum() > (1 - ONE_KIND) * sizes.sum():
            return ScanRule()
        meant = (sizes > 0) & ~others
    counts = yield from _counts_of_objects(answer, of_one_kind, LEVELS_OF_KNOWN, objects, len(sizes))
    agreement = 2 * counts[:, meant].sum(1) / (counts.sum(1) + sizes[meant].sum())
    rule = ScanRule(of_one_kind, LEVELS_OF_KNOWN[int(agreement.argmax())])
    if setting not in SELECTIVE:
        return rule
    raw = shifted(torch.tensor(PEAKS_OF_KNOWN), 1 - rule.level).tolist()  # before the level shifts them
    reached = (yield from _counts_of_objects(answer, of_one_kind, raw, objects, len(sizes)))[:, 1:] > 0
    return rule._replace(peak_level=_level_of(_sure_of_known(reached.sum(1), shown)))


def _sure_of_known(reached: npt.NDArray[np.int64], shown: int) -> float:
    """Return how sure a lesion must be where a scan shows one kind of object.

    If many objects are hardly sure enough and few are surer, most of the many are false. So the first of
    `PEAKS_OF_KNOWN` is taken that leaves at most twice as many objects as the last one which leaves no fewer than were
    shown.

    Args:
        reached: Number of objects that reach each of `PEAKS_OF_KNOWN`.
        shown: Number of lesions that the reader outlined.

    Examples:
        >>> [_sure_of_known(np.array(reached), 5) for reached in ([90, 62, 43, 31, 24], [40, 20, 3, 0, 0])]
        [0.75, 0.69]
    """
    surest = min(reached[reached >= shown], default=reached[0])
    return PEAKS_OF_KNOWN[int((reached <= 2 * surest).argmax())]


def _unlike(
    answer: LesionMaps, objects: npt.NDArray[np.unsignedinteger[Any]], sizes: npt.NDArray[np.int64]
) -> Steps[npt.NDArray[np.bool_]]:
    """Return which objects are clearly unlike the exemplars: their mean probability over `sizes` is below `UNLIKE`."""
    sums = np.zeros(len(sizes))
    for slices in some_slices(answer.probability.shape):
        probability = answer.probability[slices].numpy()
        sums += np.bincount(objects[slices].ravel(), probability.ravel(), minlength=len(sizes))
        yield None
    return sums < UNLIKE * sizes


def _counts_of_objects(
    answer: LesionMaps,
    shares: Shares,
    levels: Sequence[float],
    objects: npt.NDArray[np.unsignedinteger[Any]],
    count: int,
) -> Steps[npt.NDArray[np.int64]]:
    """Return the number of voxels of each object that reach each level, (levels, count); object 0 is the rest."""
    counts = np.zeros((len(levels), count), dtype=np.int64)
    for slices in some_slices(answer.probability.shape):
        probability = answer.on_slices(slices).mixed(shares).probability.numpy()
        for row, level in zip(counts, levels, strict=True):
            row += np.bincount(objects[slices][probability >= level], minlength=count)
        yield None
    return counts


def _best(left_out: Sequence[Inside], answer: LesionMaps, setting: str) -> Steps[ScanRule]:
    """Return the shares of the answers and the level with the largest recall x recall / share of the scan."""
    tried = [level for level in LEVELS if setting != "moderate" or MODERATE[0] <= level <= MODERATE[1]]
    levels = torch.tensor(tried)
    least = AS_GOOD if setting in CAUTIOUS else 1.0
    best, rule = 0.0, ScanRule(level=tried[-1])
    for shares in _shares_to_try(left_out):
        shown, reached = yield from _counts(answer, shares, levels)
        if not shown:
            continue
        recall = torch.stack([_share_above(inside.mixed(shares), levels) for inside in left_out]).mean(0)
        worth = recall.square() / (reached / shown).clamp(min=1 / shown)
        if float(worth.max()) > best:
            best = float(worth.max())
            as_good = torch.nonzero(worth >= least * worth.max()).flatten()
            rule = ScanRule(shares, tried[int(as_good[-1] if setting in CAUTIOUS else as_good[0])])
    return rule


def _peak_level(left_out: Sequence[Inside], rule: ScanRule, bounds: tuple[float, float]) -> float:
    """Return the level of peaks: a candidate must be about as sure as half of the left-out lesions are.

    Args:
        left_out: What the other exemplars find of each lesion, N > 0.
        rule: The shares and the level of the scan.
        bounds: How sure a candidate must be at least, and at most.
    """
    peaks = torch.stack([shifted(inside.mixed(rule.shares).max(), rule.level) for inside in left_out])
    return _level_of(float(peaks.quantile(0.5).clamp(*bounds)))


def _level_of(sure: float) -> float:
    """Return the level of peaks that shifts a peak that is just sure enough to `PEAK_THRESHOLD`."""
    odds = sure / (1 - sure) / (PEAK_THRESHOLD / (1 - PEAK_THRESHOLD))
    return odds / (1 + odds)


def _shares_to_try(left_out: Sequence[Inside]) -> Sequence[Shares]:
    """Return the shares that may be right for the left-out lesions; none without lesions."""
    if not left_out:
        return ()
    alone = [inside.alone for inside in left_out if inside.alone is not None]
    plain_too = left_out[0].plain is not None
    if finds(alone, "pooled"):
        return (POOLED if plain_too else POOLED_WITHOUT_PLAIN,)
    return (NO_SHARES, PLAIN_HALF) if plain_too else (NO_SHARES,)


def finds(alone: Sequence[Tensor], level: str) -> bool:
    """Return whether answers without exemplars, (n,) inside of each lesion, find enough of the lesions for a say.

    Args:
        alone: The answers.
        level: `inference.level`.
    """
    wanted = KNOWN if level in OF_KNOWN_LESIONS else FOUND
    return bool(alone) and float(torch.stack([(part >= EVEN).float().mean() for part in alone]).mean()) >= wanted


def _counts(answer: LesionMaps, shares: Shares, levels: Tensor) -> Steps[tuple[int, Tensor]]:
    """Return how many voxels of a scan are not air, and how many reach each level, (levels,) float32."""
    shown, reached = 0, torch.zeros(len(levels), dtype=torch.int64)
    for slices in some_slices(answer.probability.shape):
        probability = answer.on_slices(slices).mixed(shares).probability
        shown += int(torch.count_nonzero(probability > 0))
        reached += torch.stack([torch.count_nonzero(probability >= level) for level in levels])
        yield None
    return shown, reached.float()


@torch.inference_mode()
def alone_inside(segmenter: VolumeSegmenter, encoded: EncodedVolume, lesions: Outlined) -> Steps[list[Tensor]]:
    """Return the answer without exemplars inside of each lesion, (n,) each."""
    alone = []
    for row, mask in list(zip(lesions.rows, lesions.masks, strict=True))[:MOST_LESIONS]:
        inside = mask.cpu() > 0.5
        if bool(inside.any()):
            alone.append(segmenter.answer_alone(encoded, np.array([row]))[0, 0][inside])
            yield None
    return alone


@torch.inference_mode()
def _without_own(
    segmenter: VolumeSegmenter, encoded: EncodedVolume, exemplars: Exemplars, lesions: Outlined
) -> Steps[list[Inside]]:
    """Return what the other exemplars find of each lesion."""
    prepared = segmenter.prepare([exemplars], merge=False)
    found = []
    for own, row, mask in list(zip(*lesions, strict=True))[:MOST_LESIONS]:
        inside = mask.cpu() > 0.5
        if bool(inside.any()):
            weight = prepared.weight.clone()
            weight[0, own] = weight[0, own].clamp(max=BARELY)  # what the reader gave no weight takes no room
            answers = segmenter.opinions(encoded, np.array([row]), prepared.map(weight=weight))
            further = (None if p is None else p[0, 0][inside] for p in (answers.plain, answers.alone))
            found.append(Inside(answers.probability[0, 0][inside], *further))
            yield None
    return found


def _share_above(values: Tensor, levels: Tensor) -> Tensor:
    """Return the share of values (n,) that reach each level."""
    return torch.stack([(values >= level).float().mean() for level in levels])
