"""Draws episodes from prepared scans. Seed, epoch and index decide an episode, on every process.

Group 0 of an episode is a lesion class of the subject. Group 1 has another source (`EpisodeMix`). If a subject lacks
the source, the next source is taken: another class, a transplant, normal anatomy, nothing (padding alone). Places that
a reader rejected are no lesions; they take the turn of transplants and anatomy in `REJECTED_SHARE` of the episodes.
No exemplar lies on the slice of the query, and no exemplar is a lesion in the query.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.assembly import DrawnExemplar, assemble
from datamodules.chance import draw_chance, torch_seeded_by
from datamodules.cores import lesion_cores
from datamodules.foreign import Painter, anatomy, cut_from, paint_random_types, plant, window_on_body
from datamodules.subjects import REJECTED_KIND, Patch, PatchWindow, PreparedSubject
from datamodules.transforms import Augmentation
from mois.lesions import renumber
from mois.records import Episode

SOURCES = ("other_class", "transplant", "anatomy")
FURTHER_CONTRASTS = (-1.0, 1.5)
"""Contrast of a foreign lesion in a further sequence, as a multiple of that in the first."""
REJECTED_SHARE = 0.5
"""Share of the second groups that show places which a reader rejected, where there are some and no other class is
drawn. Queries on the background lie around them as often."""
_TRIES = 8


@dataclass(frozen=True)
class EpisodeMix:
    """The sources of episodes, and their shares.

    Attributes:
        other_class: Weight of another class of the subject as the second group.
        transplant: Weight of a foreign lesion: a painted lesion, or a lesion of another class from another scan.
        anatomy: Weight of normal anatomy.
        planted: Share of transplant episodes with foreign lesions also in the query.
        lesion_free: Share of queries without a lesion.
        background: Share of queries with their centre anywhere on tissue.
        together: Share of the remaining queries that hold lesions of both groups, if possible.
    """

    other_class: float = 0.4
    transplant: float = 0.35
    anatomy: float = 0.25
    planted: float = 0.7
    lesion_free: float = 0.1
    background: float = 0.15
    together: float = 0.6

    def __post_init__(self) -> None:
        """Refuse shares outside 0 to 1 and weights that are all zero."""
        for name in ("planted", "lesion_free", "background", "together"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"data.init_args.mix.{name}={getattr(self, name)} is a share; choose 0 to 1.")
        if self.lesion_free + self.background > 1:
            raise ValueError("data.init_args.mix: lesion_free and background are shares of one whole; lower them.")
        weights = [getattr(self, name) for name in SOURCES]
        if min(weights) < 0 or sum(weights) <= 0:
            raise ValueError(f"data.init_args.mix: {', '.join(SOURCES)} are weights; set one above 0 and none below.")


@dataclass(frozen=True)
class EpisodeSettings:
    """How episodes are drawn.

    Attributes:
        patch_px: Edge P of a patch in pixels, a multiple of 32.
        exemplars: Number K of exemplars in a group.
        clip: Number T of slices to track a lesion over, odd.
        mix: The sources of episodes.
        augmentation: How patches are varied.
        sequences: Number of the sequence of each channel (`mois.scans.channels.sequence_of_each`).
    """

    patch_px: int = 128
    exemplars: int = 3
    clip: int = 3
    mix: EpisodeMix = field(default_factory=EpisodeMix)
    augmentation: Augmentation = field(default_factory=Augmentation)
    sequences: tuple[int, ...] = field(default=(), repr=False)  # the digest of a pretraining holds the repr

    def __post_init__(self) -> None:
        """Refuse sizes that no backbone or clip can have."""
        if self.patch_px < 32 or self.patch_px % 32:
            raise ValueError(f"data.init_args.patch_px={self.patch_px} must be a multiple of 32, such as 128.")
        if self.exemplars < 1:
            raise ValueError(f"data.init_args.exemplars={self.exemplars} must be 1 or more.")
        if self.clip < 1 or self.clip % 2 == 0:
            raise ValueError(f"data.init_args.clip={self.clip} slices have no middle one; choose 1, 3 or 5.")


class _Query(NamedTuple):
    """A query, and which rows of the subject's table may be exemplars: lesions on other slices that the query lacks."""

    window: PatchWindow
    patch: Patch
    allowed: NDArray[np.bool_]


class _Group(NamedTuple):
    """The exemplars of a group, and their target in the query, (P, P) bool.

    Lesions that were planted into the query have ids in `planted`, (P, P) int32; None for no such lesions.
    """

    exemplars: list[DrawnExemplar]
    target: Tensor
    is_lesion: bool  # False for normal anatomy and for an empty group
    planted: Tensor | None = None


class EpisodeDataset(Dataset[Episode]):
    """Episodes of prepared scans. Item (epoch, index) is always the same episode, without the batch axis.

    Attributes:
        subjects: Scans to draw from; scans without lesions are left out.
        settings: How episodes are drawn.
        seed: Seed of the episodes.
        painter: Draws a kind of foreign lesion; None for no painted transplants.
        views: Number of epochs after which the same patches come again, so that a cache holds their features. Clicks,
            numbers and signs of exemplars are new. 0 draws new patches in every epoch.
    """

    def __init__(
        self,
        subjects: Sequence[PreparedSubject],
        settings: EpisodeSettings,
        seed: int = 0,
        painter: Painter | None = paint_random_types,
        views: int = 0,
    ) -> None:
        if views < 0:
            raise ValueError(f"data.init_args.views={views} must be 1 or more, or 0 for ever new patches.")
        self.subjects = [subject for subject in subjects if subject.has_lesions]
        self.settings = settings
        self.seed = seed
        self.painter = painter
        self.views = views

    def subject_of(self, epoch: int, index: int) -> int:
        """Return the number of the subject of an episode. Every epoch has another order of all subjects."""
        order = np.random.default_rng([self.seed, self._view(epoch)]).permutation(len(self.subjects))
        return int(order[index % len(order)])

    def __getitem__(self, key: tuple[int, int]) -> Episode:
        epoch, index = key
        rng = np.random.default_rng([self.seed, self._view(epoch), index])
        subject = self.subjects[self.subject_of(epoch, index)]
        with torch_seeded_by(rng):
            episode = draw_episode(subject, self.settings, rng, self.painter, self.subjects)
        return episode._replace(chance=draw_chance(np.random.default_rng([self.seed, epoch, index])))

    def _view(self, epoch: int) -> int:
        return epoch % self.views if self.views else epoch


def collate(episodes: Sequence[Episode]) -> Episode:
    """Return a batch of episodes: every tensor gets a first axis B."""
    return Episode(*(torch.stack(parts) for parts in zip(*episodes, strict=True)))


def draw_episode(
    subject: PreparedSubject,
    settings: EpisodeSettings,
    rng: np.random.Generator,
    painter: Painter | None = paint_random_types,
    donors: Sequence[PreparedSubject] = (),
) -> Episode:
    """Draw an episode, without the batch axis, from `rng` and torch's generator.

    Args:
        subject: Scan with at least one lesion.
        settings: How episodes are drawn.
        rng: Source of all random numbers, except those of TorchIO.
        painter: Draws a kind of foreign lesion; None for no painted transplants.
        donors: Scans to cut foreign lesions from. A lesion is foreign if the subject lacks its class.

    Returns:
        2 groups of K exemplars, a query, and a clip of T slices.
    """
    chance = draw_chance(rng)
    source = SOURCES[_choice(rng, [getattr(settings.mix, name) for name in SOURCES])]
    first = _draw_kind(subject, rng)
    others = [kind for kind in subject.kinds if kind != first]
    second = others[rng.integers(len(others))] if source == "other_class" and others else None
    query = _draw_query(subject, settings, first, second, rng)
    kinds = _kinds(subject, query.patch.lesions)
    lesions = kinds > 0
    group = _exemplars(subject, query.allowed & (subject.table.kind == first), settings, rng)
    other = _Group([], torch.zeros_like(lesions), is_lesion=False)
    if second is not None:
        rows = query.allowed & (subject.table.kind == second)
        other = _Group(_exemplars(subject, rows, settings, rng), kinds == second, is_lesion=True)
    if not other.exemplars and subject.has_rejected and rng.random() < REJECTED_SHARE:
        rows = query.allowed & (subject.table.kind == REJECTED_KIND)
        other = _Group(_exemplars(subject, rows, settings, rng), torch.zeros_like(lesions), is_lesion=False)
    if not other.exemplars and source != "anatomy":
        other = _transplants(subject, painter, donors, query, settings, rng)
    if not other.exemplars:
        other = _normal(subject, query, settings, rng)
    clip = _draw_clip(subject, settings, rng)
    query_masks = torch.stack(
        [kinds == first, other.target, lesions, _cores(query.patch.lesions * lesions, other.planted)]
    )
    is_lesion = torch.tensor([bool(group), other.is_lesion])
    drawn = assemble(
        [group, other.exemplars],
        query.patch.image,
        query_masks,
        clip,
        settings.exemplars,
        settings.augmentation,
        settings.sequences,
    )
    return drawn._replace(group_is_lesion=is_lesion, chance=chance)


def _draw_kind(subject: PreparedSubject, rng: np.random.Generator) -> int:
    """Draw a class. A class with one lesion is drawn a quarter as often: the lesion cannot be exemplar and target."""
    table = subject.table
    several = [len(np.unique(table.lesion[table.kind == kind])) > 1 for kind in subject.kinds]
    return subject.kinds[_choice(rng, [1.0 if yes else 0.25 for yes in several])]


def _kinds(subject: PreparedSubject, lesions: Tensor) -> Tensor:
    """Return the class of every pixel (P, P) int64, from its lesion id in `lesions` (P, P); 0 is background."""
    table = subject.table
    kinds = renumber(lesions.numpy(), dict(zip(table.lesion.tolist(), table.kind.tolist(), strict=True)))
    return torch.from_numpy(kinds).long()


def _cores(lesions: Tensor, planted: Tensor | None) -> Tensor:
    """Return the cores (P, P) bool of the lesions in the query and of the lesions that were planted into it."""
    ids = lesions if planted is None else torch.where(planted > 0, -planted, lesions)
    return torch.from_numpy(lesion_cores(ids.numpy()))


def _choice(rng: np.random.Generator, weights: Sequence[float]) -> int:
    total = np.cumsum(weights)
    return int(np.searchsorted(total, rng.random() * total[-1], side="right"))


def _draw_query(
    subject: PreparedSubject, settings: EpisodeSettings, first: int, second: int | None, rng: np.random.Generator
) -> _Query:
    """Draw a window that leaves exemplars of both classes on other slices, or of as many classes as possible.

    Of several windows the one with the highest score is kept. The score is 4 for an exemplar of the first class
    elsewhere, 2 for one of the second class, and 1 if the window shows what was drawn for it (such as no lesion).
    """
    mix, size, table = settings.mix, settings.patch_px, subject.table
    draw = rng.random()
    lesion_free, background = draw < mix.lesion_free, draw < mix.lesion_free + mix.background
    together = second is not None and not background and rng.random() < mix.together
    wanted = [first] if second is None else [first, second]
    centre = wanted[rng.integers(len(wanted))]
    best, best_score = None, -1
    for attempt in range(_TRIES):
        row = subject.sampler.draw(table.kind == centre)
        if attempt >= _TRIES - 2:  # keep this lesion for an exemplar: it may be the only lesion
            window = window_on_body(subject, size, rng, table.slice[table.lesion == table.lesion[row]])
        elif background:
            window = _window_on_background(subject, size, rng)
        else:
            window = _window_at(subject, row, size // 3, size, rng)
        patch = subject.cut(window)
        seen = np.unique(patch.lesions.numpy())
        allowed = (table.slice != window.slice) & ~np.isin(table.lesion, seen)
        score = 4 * bool((allowed & (table.kind == first)).any())
        score += 2 * (second is not None and bool((allowed & (table.kind == second)).any()))
        here = set(np.unique(table.kind[np.isin(table.lesion, seen)]).tolist()) - {REJECTED_KIND}
        score += not here if lesion_free else not together or {first, second} <= here
        if score > best_score:
            best, best_score = _Query(window, patch, allowed), score
        if score >= (7 if second is not None else 5):
            break
    if best is None:
        raise RuntimeError(f"no query window was drawn for {subject.name}")
    return best


def _window_on_background(subject: PreparedSubject, size: int, rng: np.random.Generator) -> PatchWindow:
    """Return a window around tissue; of a scan with rejected places, often around one of them."""
    if not subject.has_rejected or rng.random() >= REJECTED_SHARE:
        return window_on_body(subject, size, rng)
    row = subject.sampler.draw(subject.table.kind == REJECTED_KIND)
    return _window_at(subject, row, size // 3, size, rng)


def _window_at(subject: PreparedSubject, row: int, jitter_px: int, size: int, rng: np.random.Generator) -> PatchWindow:
    """Return a window around a random pixel of a row of the table."""
    table = subject.table
    at = table.pixels[rng.integers(table.first[row], table.first[row + 1])]
    shift = rng.integers(-jitter_px, jitter_px + 1, size=2)
    return subject.window(int(table.slice[row]), int(at[0]) + int(shift[0]), int(at[1]) + int(shift[1]), size)


def _exemplars(
    subject: PreparedSubject, allowed: NDArray[np.bool_], settings: EpisodeSettings, rng: np.random.Generator
) -> list[DrawnExemplar]:
    """Draw up to K exemplars: first of different lesions, then of other slices of the same lesions."""
    exemplars: list[DrawnExemplar] = []
    unused, fresh = allowed.copy(), allowed.copy()
    while len(exemplars) < settings.exemplars and unused.any():
        row = subject.sampler.draw(fresh if fresh.any() else unused)
        unused[row] = False
        fresh &= subject.table.lesion != subject.table.lesion[row]
        patch = subject.cut(_window_at(subject, row, settings.patch_px // 4, settings.patch_px, rng))
        exemplars.append(DrawnExemplar(patch, patch.lesions == int(subject.table.lesion[row])))
    return exemplars


def _transplants(
    subject: PreparedSubject,
    painter: Painter | None,
    donors: Sequence[PreparedSubject],
    query: _Query,
    settings: EpisodeSettings,
    rng: np.random.Generator,
) -> _Group:
    """Draw a kind of foreign lesion: a lesion on each of K other slices, and sometimes lesions in the query."""
    strange = [(donor, kind) for donor in donors for kind in donor.kinds if kind not in subject.kinds]
    exemplars: list[DrawnExemplar] = []
    planted = torch.zeros(query.patch.lesions.shape, dtype=torch.int32)
    if strange and (painter is None or rng.random() < 0.5):
        foreign = cut_from(*strange[rng.integers(len(strange))])
    elif painter is not None:
        foreign = painter(rng)
    else:
        return _Group(exemplars, planted > 0, is_lesion=False)
    contrasts = _draw_contrasts(settings.sequences or range(subject.channels), rng)
    for _ in range(settings.exemplars):
        patch = subject.cut(window_on_body(subject, settings.patch_px, rng, [query.window.slice]))
        mask = plant(patch, foreign, _area_mm2(subject, rng), subject, rng, contrasts)
        if bool(mask.any()):
            exemplars.append(DrawnExemplar(patch, mask))
    if exemplars and rng.random() < settings.mix.planted:
        for number in range(1, 1 + rng.integers(1, 4)):
            busy = Patch(query.patch.image, query.patch.lesions + planted)
            planted[plant(busy, foreign, _area_mm2(subject, rng), subject, rng, contrasts)] = number
    return _Group(exemplars, planted > 0, bool(exemplars), planted)


def _draw_contrasts(sequences: Sequence[int], rng: np.random.Generator) -> list[float]:
    """Draw the contrasts of a kind of foreign lesion in the further channels, as multiples of that in the first.

    In a neighbouring slice, a lesion shows with some of its contrast.

    Args:
        sequences: Number of the sequence of each channel, from 0 on.
        rng: Source of random numbers.
    """
    of_sequence = [1.0, *rng.uniform(*FURTHER_CONTRASTS, max(sequences)).tolist()]
    return [
        of_sequence[number] * (rng.random() if number in sequences[:place] else 1.0)
        for place, number in enumerate(sequences)
        if place
    ]


def _normal(subject: PreparedSubject, query: _Query, settings: EpisodeSettings, rng: np.random.Generator) -> _Group:
    """Draw pieces of normal anatomy as exemplars. Their target is empty."""
    area_px = _area_mm2(subject, rng) / subject.pixel_mm**2
    pieces = anatomy(subject, settings.exemplars, area_px, query.window.slice, settings.patch_px, rng)
    target = torch.zeros(query.patch.lesions.shape, dtype=torch.bool)
    return _Group([DrawnExemplar(patch, mask) for patch, mask in pieces], target, is_lesion=False)


def _area_mm2(subject: PreparedSubject, rng: np.random.Generator) -> float:
    """Draw the area of a foreign lesion in mm2, like the subject's own lesions: its size must not give it away."""
    row = subject.sampler.draw(subject.table.kind != REJECTED_KIND)
    return float(subject.table.area_px[row]) * subject.pixel_mm**2 * float(np.exp(rng.normal(0, 0.4)))


def _draw_clip(subject: PreparedSubject, settings: EpisodeSettings, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return T slices around a lesion of any class, (T, ..., P, P), and its masks (T, P, P)."""
    row = subject.sampler.draw(subject.table.kind != REJECTED_KIND)
    window = _window_at(subject, row, settings.patch_px // 4, settings.patch_px, rng)
    middle = settings.clip // 2
    patches = [subject.cut(window._replace(slice=window.slice + step)) for step in range(-middle, middle + 1)]
    lesions = torch.stack([patch.lesions for patch in patches])
    return torch.stack([patch.image for patch in patches]), lesions == int(subject.table.lesion[row])
