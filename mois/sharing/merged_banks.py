"""Several exemplar banks of one model become one bank, such as banks of several patients. Each exemplar counts once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

from mois.sharing.bank import Exemplar, ExemplarBank


class MergedBank(NamedTuple):
    """One or several banks as one.

    Attributes:
        bank: The exemplars of all banks, in the order of the banks. Each exemplar is there once.
        left_out: How many exemplars were there already.
    """

    bank: ExemplarBank
    left_out: int


def merge_banks(banks: Mapping[str, ExemplarBank]) -> MergedBank:
    """Merge banks that one model described, at one pixel size and on the same channels.

    An exemplar that is there already is left out (same tokens, and both positive or both negative), also if one bank
    holds it twice. A key that is taken gets the number of its bank: "7" of the second bank becomes "2-7".

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
    known: set[str] = set()
    for number, bank in enumerate(banks.values(), 1):
        for item in bank:
            if item.sha256 not in known:
                known.add(item.sha256)
                merged.add(_with_free_key(item, merged, number))
    return MergedBank(merged, sum(map(len, banks.values())) - len(merged))


def each_once(bank: ExemplarBank, present: Iterable[Exemplar] = ()) -> MergedBank:
    """Return a copy of a bank without what shows the same as an earlier exemplar of it, or as one that is present.

    Args:
        bank: The bank. It does not change.
        present: Exemplars to which the bank is added. One that has the same key in the bank is not compared.
    """
    copy = bank.copy()
    keys = {item.sha256: item.key for item in present}
    for item in bank:
        if keys.setdefault(item.sha256, item.key) != item.key:
            copy.remove(item.key)
    return MergedBank(copy, len(bank) - len(copy))


def _with_free_key(item: Exemplar, bank: ExemplarBank, number: int) -> Exemplar:
    """Return an exemplar with a key that the bank does not hold."""
    key = item.key
    while key in bank:
        key = f"{number}-{key}"
    return replace(item, key=key)
