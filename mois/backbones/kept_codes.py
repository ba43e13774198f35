"""Codes of places and distances that are computed once, for answers without gradient."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

MOST = 256
"""Codes that are kept; a code of 16 distances takes 16 KiB."""


class KeptCodes:
    """Codes by what they say, device and precision.

    With gradient nothing is kept: a code that was made in inference mode, or while the operations of a step are
    recorded, must not reach a training.
    """

    def __init__(self) -> None:
        self._kept: dict[Hashable, tuple[Tensor | None, int, Tensor]] = {}

    def __deepcopy__(self, memo: object) -> KeptCodes:
        """Keep nothing in a copy."""
        return KeptCodes()

    def __reduce__(self) -> tuple[type[KeptCodes], tuple[()]]:
        """Keep nothing in a file."""
        return KeptCodes, ()

    def get(
        self,
        name: tuple[Hashable, ...],
        device: torch.device,
        compute: Callable[[], Tensor],
        source: Tensor | None = None,
    ) -> Tensor:
        """Return a code.

        Args:
            name: What the code says.
            device: Its device.
            compute: Computes the code.
            source: A tensor of which the code is made. If it changes, the code is computed again.
        """
        if torch.is_grad_enabled():
            return compute()
        kind = device.type
        casts = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        precision = torch.get_autocast_dtype(kind) if casts else None
        key = (*name, device, precision)
        version = 0 if source is None or source.is_inference() else source._version
        kept = self._kept.get(key)
        if kept is not None and kept[0] is source and kept[1] == version:
            return kept[2]
        if len(self._kept) >= MOST:
            self._kept.clear()
        code = compute()
        self._kept[key] = source, version, code
        return code
