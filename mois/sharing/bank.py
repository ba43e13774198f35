"""The exemplar bank: exemplars of a scan, in a file that other scans can use.

A bank belongs to the model that described its exemplars (`ModelIdentity`). Another model cannot read its tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from mois.files.tensor_records import LARGEST_FEATURE, check_features, tensors_sha256
from mois.intensities import Normalisation
from mois.records import Exemplars
from mois.sharing.bank_record import ExemplarFacts, read_bank, write_bank
from mois.sharing.identity import ModelIdentity

__all__ = ["Exemplar", "ExemplarBank", "ModelIdentity", "measure_mask"]


@dataclass(frozen=True)
class Exemplar(ExemplarFacts):
    """A lesion that was shown on one slice: its facts and its tokens.

    Attributes:
        tokens: Name -> tensor, as `Exemplars.tokens` without the axes B and K; float32 on the CPU.
    """

    negative: bool = False
    weight: float = 1.0
    tokens: dict[str, Tensor] = field(kw_only=True)

    def __post_init__(self) -> None:
        if not self.key:
            raise ValueError("an exemplar needs a key; give it one that is unique within the bank.")
        if not 0 <= self.weight <= LARGEST_FEATURE:
            raise ValueError(
                f"exemplar {self.key}: weight={self.weight} must be a number from 0 to {LARGEST_FEATURE:g}."
            )
        tokens = {name: token.detach().float().cpu().contiguous() for name, token in self.tokens.items()}
        check_features(tokens, f"exemplar {self.key}", "leave it out")
        object.__setattr__(self, "tokens", tokens)

    @property
    def sha256(self) -> str:
        """SHA-256 of the tokens and of `negative`."""
        return tensors_sha256({**self.tokens, "negative": torch.tensor(self.negative)})

    def same_as(self, other: Exemplar) -> bool:
        """Return whether two exemplars show the same. Keys and weights are not compared."""
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
        """Return one exemplar of a batch, with measurements of its lesion.

        Args:
            key: Key of the new exemplar.
            exemplars: Exemplars with B = 1.
            index: Index of the exemplar along K.
            picture: Normalised intensities, (h, w) float.
            mask: The lesion on the picture, (h, w) bool, or float 0 to 1.
            pixel_mm: Edge of a pixel in millimetres.
            scan: Subject of the scan.
            patient: Patient of the scan.
            position_lps_mm: Centre of the lesion on its slice, LPS mm.
            negative: Whether the exemplar shows what must not be found.
        """
        tokens = {name: token[0, index].clone() for name, token in exemplars.tokens.items()}
        area_mm2, inside, contrast = measure_mask(picture, mask, pixel_mm)
        return cls(key, scan, patient, position_lps_mm, area_mm2, inside, contrast, negative, tokens=tokens)


def measure_mask(picture: Tensor, mask: Tensor, pixel_mm: float, ring_mm: float = 4.0) -> tuple[float, float, float]:
    """Return a lesion's area in mm2, its mean intensity, and its contrast to a ring around it.

    Args:
        picture: Normalised intensities, (h, w) float.
        mask: The lesion, (h, w) bool, or float 0 to 1.
        pixel_mm: Edge of a pixel in millimetres.
        ring_mm: Width of the ring in millimetres.

    Returns:
        Area, mean intensity and contrast. All are 0 for an empty mask. The contrast is 0 without a ring.
    """
    inside = (mask >= 0.5).cpu()
    pixels = inside.nonzero()
    if not len(pixels):
        return 0.0, 0.0, 0.0
    reach = max(1, round(ring_mm / pixel_mm))
    top, left = (pixels.amin(0) - reach).clamp(min=0).tolist()
    bottom, right = (pixels.amax(0) + reach + 1).tolist()
    inside, values = inside[top:bottom, left:right], picture[top:bottom, left:right].float().cpu()
    grown = functional.max_pool2d(inside[None, None].float(), 2 * reach + 1, stride=1, padding=reach)[0, 0] > 0.5
    ring, area_mm2 = grown & ~inside, len(pixels) * pixel_mm**2
    mean = float(values[inside].mean())
    return area_mm2, mean, mean - float(values[ring].mean()) if bool(ring.any()) else 0.0


class ExemplarBank:
    """Exemplars by key, in the order in which they were added.

    Attributes:
        identity: Identity of the model that described the exemplars.
        pixel_mm: Edge of the pixels in millimetres. At another size, a lesion gives other tokens.
        normalisation: Normalisation of the scans' intensities (of their first channel); never `auto`.
        channels: Names of the channels that the model sees; none for one image of any name.
        version: Number of changes of the bank. A loaded bank goes on counting.
    """

    def __init__(
        self,
        identity: ModelIdentity,
        pixel_mm: float,
        normalisation: Normalisation | None = None,
        channels: Sequence[str] = (),
    ) -> None:
        self.identity = identity
        self.pixel_mm = pixel_mm
        self.normalisation = (normalisation or Normalisation()).for_channel()
        self.channels = tuple(channels)
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
            existing = ", ".join(self._items) or "none"
            raise ValueError(f"the bank holds no exemplar {key}; there is {existing}.")
        return self._items[key]

    def keys(self) -> list[str]:
        """Return the keys in order."""
        return list(self._items)

    def copy(self) -> ExemplarBank:
        """Return a copy of the bank. A change of the copy does not change this bank."""
        twin = ExemplarBank(self.identity, self.pixel_mm, self.normalisation, self.channels)
        twin.version, twin._items = self.version, dict(self._items)
        return twin

    def add(self, exemplar: Exemplar) -> None:
        """Add an exemplar at the end.

        Raises:
            ValueError: If the bank has its key already, or its tokens have other names or shapes than in the bank.
        """
        if exemplar.key in self._items:
            raise ValueError(f"the bank holds an exemplar {exemplar.key} already; replace it, or give another key.")
        self._put(exemplar)

    def replace(self, key: str, exemplar: Exemplar) -> None:
        """Replace the exemplar of a key by another exemplar, which gets this key."""
        self._require(key)
        self._put(replace(exemplar, key=key))

    def remove(self, key: str) -> None:
        """Remove an exemplar."""
        self._require(key)
        del self._items[key]
        self.version += 1

    def reweigh(self, key: str, weight: float) -> None:
        """Give an exemplar a weight: a weight of 2 counts as two equal exemplars, a weight of 0 leaves it out."""
        self._put(replace(self[key], weight=float(weight)))

    def mark(self, key: str, negative: bool) -> None:
        """Mark an exemplar as negative (it shows what must not be found) or as positive."""
        self._put(replace(self[key], negative=negative))

    def select(self, count: int) -> list[str]:
        """Return the keys of at most `count` exemplars that differ from each other as much as possible.

        Positives and negatives share `count` in proportion to their numbers, with at least one each if there is room.
        In both groups, the exemplar nearest to the mean is chosen first. Then the exemplar farthest from all chosen
        exemplars follows, again and again (k-centre greedy). Every token has the same weight, whatever its size and
        scale. Exemplars of weight 0 are left out.

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
            keys: Keys of the exemplars, in this order. None: all.
            device: Device of the result. None: the CPU.

        Returns:
            Exemplars with B = 1. Without exemplars, K = 0 and there are no tokens.
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
        channels: Sequence[str] = (),
    ) -> None:
        """Refuse use by another model, at another pixel size, with another rule of normalisation or other channels.

        Args:
            identity: Identity of the model at hand.
            pixel_mm: Its pixel size in millimetres.
            normalisation: Its rule of normalisation. None is not compared.
            name: What messages call the bank.
            channels: Names of the channels that the model at hand sees.

        Raises:
            ValueError: If something differs; the message names it.
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
        if self.channels != tuple(channels):
            theirs, ours = (", ".join(names) or "one image" for names in (self.channels, channels))
            raise ValueError(f"{name} was described on {theirs}, this model sees {ours}; make a new bank.")
        if normalisation is not None and self.normalisation != normalisation:
            raise ValueError(
                f"{name} was described on scans normalised by the rule {self.normalisation}, here it is "
                f"{normalisation}; make a new bank, or use the bundle that it was made with."
            )

    def save(self, path: Path) -> None:
        """Write the bank as a safetensors file, whole or not at all."""
        tensors = {name: token[0].contiguous() for name, token in self.exemplars().tokens.items()}
        names = [fact.name for fact in fields(ExemplarFacts)]
        facts = [ExemplarFacts(**{name: getattr(item, name) for name in names}) for item in self]
        about = self.identity, self.pixel_mm, self.normalisation, self.version, self.channels
        write_bank(Path(path), tensors, facts, *about)

    @classmethod
    def load(
        cls,
        path: Path,
        identity: ModelIdentity,
        pixel_mm: float,
        normalisation: Normalisation | None = None,
        channels: Sequence[str] = (),
    ) -> ExemplarBank:
        """Read a bank for a model.

        Args:
            path: The file.
            identity: Identity of the model.
            pixel_mm: Pixel size of the model in millimetres.
            normalisation: Rule of normalisation of the model. None: the rule is compared when a session takes the bank.
            channels: Names of the channels that the model sees.

        Raises:
            ValueError: If the file is no bank, is damaged or of another format, or `check` refuses the bank.
        """
        bank = cls.read(path)
        bank.check(identity, pixel_mm, normalisation, str(path), channels)
        return bank

    @classmethod
    def read(cls, path: Path) -> ExemplarBank:
        """Read a bank of any model, such as to list it.

        Raises:
            ValueError: If the file is no bank, is damaged or of another format.
        """
        record, tensors = read_bank(Path(path))
        bank = cls(record.identity, record.pixel_mm, record.normalisation, record.channels)
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
    """Return `count` exemplars: first the nearest to the mean, then always the farthest from all chosen exemplars."""
    if len(items) <= count:
        return list(items)
    if count < 1:
        return []
    parts = []
    for name in items[0].tokens:
        table = torch.stack([item.tokens[name].flatten() for item in items]).double()
        table = table - table.mean(0)
        parts.append(table / table.norm().clamp(min=1e-12))  # every token has the same weight
    position = torch.cat(parts, dim=1) if parts else torch.zeros(len(items), 1, dtype=torch.float64)
    chosen = [int(position.norm(dim=1).argmin())]
    nearest = (position - position[chosen[0]]).norm(dim=1)
    while len(chosen) < count:
        nearest[chosen] = -1.0
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, (position - position[chosen[-1]]).norm(dim=1))
    return [items[index] for index in chosen]
