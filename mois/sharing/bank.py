"""Exemplars that outlive a scan: what the reader has shown, as a bank that is kept in a file.

A bank belongs to the model that described its exemplars (`ModelIdentity`); to any other its tokens mean nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from mois.files.tensor_records import LARGEST, check_features, tensors_sha256
from mois.intensities import Normalisation
from mois.records import Exemplars
from mois.sharing.bank_record import ExemplarFacts, read_bank, write_bank
from mois.sharing.identity import ModelIdentity

__all__ = ["Exemplar", "ExemplarBank", "ModelIdentity", "measure_mask"]


@dataclass(frozen=True)
class Exemplar:
    """One lesion that was shown on one slice, and where it came from.

    Attributes:
        key: Its name, unique within a bank.
        tokens: Name to tensor without the axes B and K of `Exemplars.tokens`, float32 on the CPU.
        scan: Subject of the scan.
        patient: Whom the scan was taken of.
        position_lps_mm: Centre of the lesion on its slice: x to the left, y to the back, z to the head.
        area_mm2: Of the lesion on its slice.
        mean_intensity: Mean normalised intensity inside.
        contrast: That mean minus the mean of a ring around the lesion.
        negative: Whether it shows what is not to be found.
        weight: 0 or more; one of weight 2 counts as if it were there twice.
    """

    key: str
    tokens: dict[str, Tensor]
    scan: str
    patient: str
    position_lps_mm: tuple[float, float, float]
    area_mm2: float
    mean_intensity: float
    contrast: float
    negative: bool = False
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.key:
            raise ValueError("an exemplar needs a key; give it one that is unique within the bank.")
        if not 0 <= self.weight <= LARGEST:
            raise ValueError(f"exemplar {self.key}: weight={self.weight} must be a number from 0 to {LARGEST:g}.")
        tokens = {name: token.detach().float().cpu().contiguous() for name, token in self.tokens.items()}
        check_features(tokens, f"exemplar {self.key}", "leave it out")
        object.__setattr__(self, "tokens", tokens)

    @property
    def sha256(self) -> str:
        """Digest of what it shows, and of whether that is to be found."""
        return tensors_sha256({**self.tokens, "negative": torch.tensor(self.negative)})

    def same_as(self, other: Exemplar) -> bool:
        """Tell whether two show the same, whatever they are called and however much they count."""
        return self.sha256 == other.sha256

    @classmethod
    def of(
        cls,
        key: str,
        exemplars: Exemplars,
        index: int,
        *,
        picture: Tensor,
        mask: Tensor,
        pixel_mm: float,
        scan: str,
        patient: str,
        position_lps_mm: tuple[float, float, float],
        negative: bool = False,
    ) -> Exemplar:
        """Take one of a query's exemplars out and measure its lesion.

        Args:
            key: Its name.
            exemplars: With B = 1.
            index: Which one, along K.
            picture: (h, w) float, normalised intensities.
            mask: (h, w) bool or float 0 to 1, the lesion on the picture.
            pixel_mm: Edge of a pixel.
            scan: Subject of the scan.
            patient: Whom it was taken of.
            position_lps_mm: Centre of the lesion on its slice.
            negative: Whether it shows what is not to be found.
        """
        tokens = {name: token[0, index].clone() for name, token in exemplars.tokens.items()}
        area_mm2, inside, contrast = measure_mask(picture, mask, pixel_mm)
        return cls(key, tokens, scan, patient, position_lps_mm, area_mm2, inside, contrast, negative)


def measure_mask(picture: Tensor, mask: Tensor, pixel_mm: float, ring_mm: float = 4.0) -> tuple[float, float, float]:
    """Return a lesion's area in mm2, its mean intensity, and its contrast to a ring around it.

    Args:
        picture: (h, w) float, normalised intensities.
        mask: (h, w) bool or float 0 to 1.
        pixel_mm: Edge of a pixel.
        ring_mm: Width of the ring.

    Returns:
        The means are 0 where the mask is empty, the contrast also where there is no ring.
    """
    inside = (mask >= 0.5).cpu()
    places = inside.nonzero()
    if not len(places):
        return 0.0, 0.0, 0.0
    reach = max(1, round(ring_mm / pixel_mm))
    top, left = (places.amin(0) - reach).clamp(min=0).tolist()
    bottom, right = (places.amax(0) + reach + 1).tolist()
    inside, values = inside[top:bottom, left:right], picture[top:bottom, left:right].float().cpu()
    grown = functional.max_pool2d(inside[None, None].float(), 2 * reach + 1, stride=1, padding=reach)[0, 0] > 0.5
    ring, area_mm2 = grown & ~inside, len(places) * pixel_mm**2
    mean = float(values[inside].mean())
    return area_mm2, mean, mean - float(values[ring].mean()) if bool(ring.any()) else 0.0


class ExemplarBank:
    """Exemplars by key, in the order in which they came.

    Attributes:
        identity: The model that described them.
        pixel_mm: Edge of the pixels that it saw them at; the same lesion looks different to it at another size.
        normalisation: How the scans' intensities became those that it saw; never `auto`.
        version: How many times the bank was changed; a loaded one counts on from where it was saved.
    """

    def __init__(self, identity: ModelIdentity, pixel_mm: float, normalisation: Normalisation | None = None) -> None:
        self.identity = identity
        self.pixel_mm = pixel_mm
        self.normalisation = (normalisation or Normalisation()).for_channel()
        self.version = 0
        self._items: dict[str, Exemplar] = {}

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Exemplar]:
        return iter(self._items.values())

    def __contains__(self, key: object) -> bool:
        return key in self._items

    def __getitem__(self, key: str) -> Exemplar:
        if key not in self._items:
            there = ", ".join(self._items) or "none"
            raise ValueError(f"the bank holds no exemplar {key}; there is {there}.")
        return self._items[key]

    def keys(self) -> list[str]:
        """Return the keys in order."""
        return list(self._items)

    def copy(self) -> ExemplarBank:
        """Return a bank that changes on its own; the exemplars themselves never change."""
        twin = ExemplarBank(self.identity, self.pixel_mm, self.normalisation)
        twin.version, twin._items = self.version, dict(self._items)
        return twin

    def add(self, exemplar: Exemplar) -> None:
        """Add an exemplar at the end.

        Raises:
            ValueError: If its key is taken, or its tokens are not like those of the others.
        """
        if exemplar.key in self._items:
            raise ValueError(f"the bank holds an exemplar {exemplar.key} already; replace it, or give another key.")
        self._put(exemplar)

    def replace(self, key: str, exemplar: Exemplar) -> None:
        """Put an exemplar in the place of another, under the same key."""
        self._require(key)
        self._put(replace(exemplar, key=key))

    def remove(self, key: str) -> None:
        """Take an exemplar out."""
        self._require(key)
        del self._items[key]
        self.version += 1

    def reweigh(self, key: str, weight: float) -> None:
        """Let an exemplar count as if it were there `weight` times."""
        self._put(replace(self[key], weight=float(weight)))

    def mark(self, key: str, negative: bool) -> None:
        """Say whether an exemplar shows what is to be found or what is not."""
        self._put(replace(self[key], negative=negative))

    def select(self, count: int) -> list[str]:
        """Return the keys of at most `count` exemplars that differ from each other as much as possible.

        Positives and negatives share `count` by their numbers, each having one at least where there is room. Of each,
        the one nearest to their mean comes first, then always the one that is farthest from all chosen (k-centre
        greedy). Every token counts alike, whatever its size and scale. Exemplars of weight 0 are left out.

        Returns:
            Keys in the bank's order.

        Source: Gonzalez, Clustering to minimize the maximum intercluster distance, 1985.
        """
        if count < 1:
            raise ValueError(f"select: count={count} must be 1 or more.")
        groups = [[item for item in self if item.weight > 0 and item.negative is sign] for sign in (False, True)]
        positives, negatives = (len(group) for group in groups)
        if positives + negatives > count:
            share = round(count * negatives / (positives + negatives))
            negatives = min(negatives, max(share, 1 if count > 1 and negatives else 0))
            if positives:
                negatives = min(negatives, count - 1)
            positives = min(positives, count - negatives)
            negatives = count - positives
        shares = zip(groups, (positives, negatives), strict=True)
        chosen = {item.key for group, most in shares for item in _k_centres(group, most)}
        return [key for key in self._items if key in chosen]

    def exemplars(self, keys: Sequence[str] | None = None, device: torch.device | str | None = None) -> Exemplars:
        """Return some or all exemplars as a propagation takes them.

        Args:
            keys: Which ones, in this order; None stands for all.
            device: Where to; None leaves them on the CPU.

        Returns:
            B = 1. Without any exemplar K = 0 and there are no tokens.
        """
        items = [self[key] for key in (self._items if keys is None else keys)]
        names = items[0].tokens if items else {}
        return Exemplars(
            {name: torch.stack([item.tokens[name] for item in items]).unsqueeze(0).to(device) for name in names},
            torch.ones(1, len(items), dtype=torch.bool, device=device),
            torch.tensor([[item.negative for item in items]], dtype=torch.bool, device=device),
            torch.tensor([[item.weight for item in items]], dtype=torch.float32, device=device),
        )

    def check(
        self,
        identity: ModelIdentity,
        pixel_mm: float,
        normalisation: Normalisation | None = None,
        name: str = "the bank",
    ) -> None:
        """Refuse to be used by another model, at another pixel size, or by another rule for intensities.

        Raises:
            ValueError: Saying what differs.
        """
        if different := self.identity.differences(identity):
            raise ValueError(
                f"{name} was made by another model: {' and '.join(different)}; use the bundle that it was made with, "
                "or make a new bank."
            )
        if not math.isclose(self.pixel_mm, pixel_mm, rel_tol=1e-6):
            raise ValueError(
                f"{name} was described at {self.pixel_mm:g} mm a pixel, this model looks at {pixel_mm:g} mm; set "
                f"inference.pixel_mm={self.pixel_mm:g}, or make a new bank."
            )
        if normalisation is not None and self.normalisation != normalisation:
            raise ValueError(
                f"{name} was described on scans normalised by the rule {self.normalisation}, here it is "
                f"{normalisation}; make a new bank, or use the bundle that it was made with."
            )

    def save(self, path: Path) -> None:
        """Write the bank as safetensors, whole or not at all."""
        tensors = {name: token[0].contiguous() for name, token in self.exemplars().tokens.items()}
        facts = [ExemplarFacts(**{one.name: getattr(item, one.name) for one in fields(ExemplarFacts)}) for item in self]
        write_bank(Path(path), tensors, facts, self.identity, self.pixel_mm, self.normalisation, self.version)

    @classmethod
    def load(
        cls, path: Path, identity: ModelIdentity, pixel_mm: float, normalisation: Normalisation | None = None
    ) -> ExemplarBank:
        """Read a bank for a model that looks at pixels of this size, of scans normalised by this rule.

        Without a rule that is not compared here, but when a session takes the bank.

        Raises:
            ValueError: If the file is no bank, is damaged or of another format, or `check` refuses it.
        """
        record, tensors = read_bank(Path(path))
        bank = cls(record.identity, record.pixel_mm, record.normalisation)
        bank.check(identity, pixel_mm, normalisation, str(path))
        for index, facts in enumerate(record.exemplars):
            bank.add(Exemplar(tokens={name: token[index].clone() for name, token in tensors.items()}, **vars(facts)))
        bank.version = record.version
        return bank

    def _require(self, key: str) -> None:
        _ = self[key]

    def _put(self, exemplar: Exemplar) -> None:
        others = next((item for item in self if item.key != exemplar.key), None)
        if others is not None and _shapes(others) != _shapes(exemplar):
            raise ValueError(
                f"exemplar {exemplar.key} has tokens {_shapes(exemplar)}, those of the bank are {_shapes(others)}; all "
                "have to be described by one model at one tile size (inference.tile_px)."
            )
        self._items[exemplar.key] = exemplar
        self.version += 1


def _shapes(exemplar: Exemplar) -> dict[str, tuple[int, ...]]:
    return {name: tuple(token.shape) for name, token in sorted(exemplar.tokens.items())}


def _k_centres(items: Sequence[Exemplar], count: int) -> list[Exemplar]:
    """Return `count` of the exemplars, the middle one first, then always the farthest from all chosen."""
    if len(items) <= count:
        return list(items)
    if count < 1:
        return []
    parts = []
    for name in items[0].tokens:
        table = torch.stack([item.tokens[name].flatten() for item in items]).double()
        table = table - table.mean(0)
        parts.append(table / table.norm().clamp(min=1e-12))  # every token counts alike
    place = torch.cat(parts, dim=1) if parts else torch.zeros(len(items), 1, dtype=torch.float64)
    chosen = [int(place.norm(dim=1).argmin())]
    nearest = (place - place[chosen[0]]).norm(dim=1)
    while len(chosen) < count:
        nearest[chosen] = -1.0
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, (place - place[chosen[-1]]).norm(dim=1))
    return [items[index] for index in chosen]
