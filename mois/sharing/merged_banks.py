"""Several exemplar banks of one model become one bank, such as banks of several patients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from mois.sharing.bank import Exemplar, ExemplarBank


class MergedBank(NamedTuple):
    """Several banks as one.

    Attributes:
        bank: The exemplars of all banks, in the order of the banks.
        left_out: How many exemplars were in an earlier bank already.
    """

    bank: ExemplarBank
    left_out: int


def merge_banks(banks: Mapping[str, ExemplarBank]) -> MergedBank:
    """Merge banks that one model described, at one pixel size and on the same channels.

    An exemplar that an earlier bank holds already (same tokens, and both positive or both negative) is left out. A key
    that is taken gets the number of its bank: "7" of the second bank becomes "2-7".

    Args:
        banks: Banks by the name that messages call them.

    Raises:
        ValueError: If there is no bank, or two were made by other models, at other pixel sizes, on other channels or
            with another rule of normalisation; the message names both.
    """
    if not banks:
        raise ValueError("no bank is given; name two or more files.")
    (first_name, first), *others = banks.items()
    for name, other in others:
        try:
            other.check(first.identity, first.pixel_mm, first.normalisation, name, first.channels)
        except ValueError as error:
            reason = str(error).partition(";")[0].replace("this model", f"the model of {first_name}")
            raise ValueError(
                f"{reason}; only banks of one model can be merged, and {first_name} is the first."
            ) from error
    merged = ExemplarBank(first.identity, first.pixel_mm, first.normalisation, first.channels)
    left_out = 0
    for number, bank in enumerate(banks.values(), 1):
        known = {item.sha256 for item in merged}
        for item in bank:
            if item.sha256 in known:
                left_out += 1
            else:
                merged.add(_with_free_key(item, merged, number))
    return MergedBank(merged, left_out)


def _with_free_key(item: Exemplar, bank: ExemplarBank, number: int) -> Exemplar:
    """Return an exemplar with a key that the bank does not hold."""
    key = item.key
    while key in bank:
        key = f"{number}-{key}"
    return replace(item, key=key)
