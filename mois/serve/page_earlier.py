"""The earlier scan of a patient as the page shows it: beside the scan of now, on its grid, with its own lesions."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from torch import Tensor

from mois.geometry import SliceGrid
from mois.records import Volume
from mois.serve.page_view import PageView, ShownMask
from mois.session.follow_up import (
    Alignment,
    Change,
    Comparison,
    TimePoint,
    align,
    compare_time_points,
    labels_on,
    picture_on,
)
from mois.session.masks import BoxMask

Place = tuple[int, int, int]


class EarlierScan:
    """An earlier time point beside the scan of now, for all pages of the scan.

    The scans are registered when a page first asks, once: the search takes seconds.

    Args:
        earlier: The earlier time point.
        now: The scan of now.
        grid: Its grid, as the session has it.
        view: How the page shows it.
    """

    def __init__(self, earlier: TimePoint, now: Volume, grid: SliceGrid, view: PageView) -> None:
        self._earlier = earlier
        self._now = now
        self._grid = grid
        self._view = view
        self._lock = threading.Lock()
        self._known: Alignment | None = None
        self._refused = ""
        self._drawn: npt.NDArray[np.int32] | None = None

    @property
    def subject(self) -> str:
        """Name of the earlier scan."""
        return self._earlier.volume.subject

    def picture(self) -> bytes:
        """Return the earlier scan on the grid of now, as `PageView.image` does.

        Raises:
            ValueError: If the scans cannot be registered.
        """
        placed = picture_on(self._earlier.volume, self._now, self._alignment())
        return PageView(self._now._replace(image=placed, levels=None), self._grid).image()

    def lesions(self) -> dict[str, Any]:
        """Return how the scans were registered, and the earlier lesions: volume, place and voxels in the view.

        A lesion that lies outside the scan of now has no place and no voxels.
        """
        alignment = self._alignment()
        volumes = np.bincount(self._earlier.labels.numpy().ravel()) * self._earlier.volume.grid.voxel_ml
        masks = self._masks()
        rows = [
            {"id": number, "ml": float(volumes[number]), **self._shown(masks.get(number))}
            for number in np.flatnonzero(volumes).tolist()
            if number
        ]
        return {
            "subject": self.subject,
            "registered": alignment.registered,
            "moved_mm": alignment.moved_mm,
            "lesions": rows,
        }

    def compare(self, labels: Tensor) -> Comparison:
        """Match the lesions of now with the earlier lesions; `labels`: (I, J, K), on the scan's grid."""
        return compare_time_points(self._earlier, TimePoint(self._now, labels), self._alignment())

    def changes(self, labels: Tensor) -> dict[str, Any]:
        """Return what became of the lesions, where to show each in both pictures, and the volumes of all."""
        compared = self.compare(labels)
        here, there = _boxes(self._grid.to_stack(labels).numpy()), self._masks()
        rows = [
            {
                "status": change.status,
                "earlier": change.earlier,
                "lesions": change.lesions,
                "ml_before": change.ml_before,
                "ml_now": change.ml_now,
                "change_percent": change.change_percent,
                "outside_percent": change.outside_percent,
                **self._places(change, here, there),
            }
            for change in compared.changes
        ]
        total = {"ml_before": compared.ml_before, "ml_now": compared.ml_now, "change_percent": compared.change_percent}
        in_both = None if compared.shows_the_same else compared.ml_in_both
        return {"rows": rows, "total": total, "in_both": in_both}

    def _places(self, change: Change, here: dict[int, BoxMask], there: dict[int, BoxMask]) -> dict[str, Place | None]:
        """Return the voxels to show an entry at, now and in the earlier picture: one voxel of both lesions if any."""
        pairs = [(here.get(a), there.get(b)) for a in change.lesions for b in change.earlier]
        shared = [_shared(now, then) for now, then in pairs if now is not None and then is not None]
        best = max(shared, key=lambda mask: mask.voxels, default=None)
        if best is not None and best.voxels:
            both = self._view.middle(best)
            return {"at": both, "earlier_at": both}
        now, then = (
            max((known[number] for number in numbers if number in known), key=lambda mask: mask.voxels, default=None)
            for known, numbers in ((here, change.lesions), (there, change.earlier))
        )
        at, earlier_at = (None if mask is None else self._view.middle(mask) for mask in (now, then))
        return {"at": at or earlier_at, "earlier_at": earlier_at or at}

    def _shown(self, mask: BoxMask | None) -> dict[str, Place | ShownMask | None]:
        return {
            "at": None if mask is None else self._view.middle(mask),
            "mask": None if mask is None else self._view.mask(mask),
        }

    def _masks(self) -> dict[int, BoxMask]:
        """Return the earlier lesions in the stack of the scan of now."""
        alignment = self._alignment()
        with self._lock:
            if self._drawn is None:
                self._drawn = self._grid.to_stack(labels_on(self._earlier, self._now, alignment)).numpy()
        return _boxes(self._drawn)

    def _alignment(self) -> Alignment:
        with self._lock:
            if self._refused:
                raise ValueError(self._refused)
            if self._known is None:
                try:
                    self._known = align(self._earlier.volume, self._now)
                except ValueError as error:
                    self._refused = str(error)
                    raise
            return self._known


def _boxes(stack: npt.NDArray[np.int32]) -> dict[int, BoxMask]:
    """Return the mask of each lesion of a label map (S, H, W), by its id."""
    found = {}
    for number, where in enumerate(ndimage.find_objects(stack), start=1):
        if where is not None:
            first, second, third = (part.start for part in where)
            found[number] = BoxMask((first, second, third), stack[where] == number)
    return found


def _shared(first: BoxMask, second: BoxMask) -> BoxMask:
    """Return the voxels that lie in both masks."""
    low = np.maximum(first.corner, second.corner)
    high = np.minimum(*(np.add(mask.corner, mask.inside.shape) for mask in (first, second)))
    if (high <= low).any():
        return BoxMask((0, 0, 0), np.zeros((0, 0, 0), bool))
    cut = [
        mask.inside[tuple(slice(a - c, b - c) for a, b, c in zip(low, high, mask.corner, strict=True))]
        for mask in (first, second)
    ]
    return BoxMask.of(cut[0] & cut[1], (int(low[0]), int(low[1]), int(low[2])))
