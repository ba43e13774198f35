"""A scan as encoded tiles, and the masks on tiles assembled to a scan."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from mois.geometry import LARGEST_TILE, SliceGrid, TileGrid
from mois.inference.feature_store import FeatureStore
from mois.records import Features

UNCOVERED_LOGIT = -20.0
"""Logit of pixels that no tile covers."""


@dataclass
class EncodedVolume:
    """A scan as tiles with their features. A row is the number of a tile.

    Attributes:
        grid: The scan's pictures on its own pixels.
        tiles: How a picture is cut.
        pictures: (S, h, w) float32, normalised intensities at the model's pixel size, on the CPU. First channel.
        store: The features, by row.
        row_of: (S, T) int64, row of each tile; -1 if the tile is air and was not used yet.
        places: (N, 2) int64, slice and tile of each row.
        shown: Rows below this number show some of the body. The other rows are tiles of air that a caller used.
        further: (C - 1, S, h, w) float32, pictures of the further channels; None for one channel.
    """

    grid: SliceGrid
    tiles: TileGrid
    pictures: Tensor
    store: FeatureStore
    row_of: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]
    shown: int
    further: Tensor | None = None

    @classmethod
    def cut(
        cls, stack: Tensor, grid: SliceGrid, tiles: TileGrid, air_level: float, store: FeatureStore
    ) -> EncodedVolume:
        """Cut the pictures of a scan into tiles, and give a row to each tile that is not air.

        Args:
            stack: Normalised pictures, (S, h, w) float32 for one channel, (C, S, h, w) for C channels.
            grid: The scan's pictures on its own pixels.
            tiles: How a picture is cut.
            air_level: A tile is air if the mean of every 8 x 8 pixels, of the brightest channel, is at most this.
            store: Keeps the features.
        """
        channels = stack if stack.dim() == 4 else stack.unsqueeze(0)  # (C, S, h, w)
        pictures = channels[0]
        shows = torch.zeros(len(pictures), len(tiles.corners), dtype=torch.bool)
        for index, picture in enumerate(pictures if len(channels) == 1 else channels.amax(0)):
            cut = tiles.cut(picture)  # (T, P, P)
            shows[index] = functional.avg_pool2d(cut.unsqueeze(1), 8).amax((1, 2, 3)) > air_level
        shows[0, 0] |= not bool(shows.any())  # a scan of nothing but air keeps one tile, because decoding needs a tile
        places = torch.nonzero(shows).numpy()
        row_of = np.full(tuple(shows.shape), -1, dtype=np.int64)
        row_of[tuple(places.T)] = np.arange(len(places))
        further = channels[1:] if len(channels) > 1 else None
        return cls(grid, tiles, pictures, store, row_of, places, len(places), further)

    @property
    def tile_px(self) -> int:
        """Edge P of a tile in pixels."""
        return self.tiles.tile_px

    def select(self, rows: npt.NDArray[np.int64]) -> Features:
        """Return the features of some rows, float32. Tiles that are not encoded yet are encoded now."""
        return self.store.select(rows, self.images(rows))

    def images(self, rows: npt.NDArray[np.int64]) -> Tensor:
        """Return the tiles of some rows, float32, zero beyond the border of the picture.

        They are (N, P, P) for one channel, (N, C, P, P) for C channels.
        """
        return torch.stack([self.crop(self._picture(index), tile) for index, tile in self.places[rows].tolist()])

    def _picture(self, index: int) -> Tensor:
        """Return a slice (h, w) for one channel, (C, h, w) for C channels."""
        first = self.pictures[index]
        return first if self.further is None else torch.cat([first.unsqueeze(0), self.further[:, index]])

    def row(self, slice_index: int, tile: int) -> int:
        """Return the row of a tile. A tile of air gets a new row when it is first used."""
        row = int(self.row_of[slice_index, tile])
        if row < 0:
            row = len(self.places)
            self.row_of[slice_index, tile] = row
            self.places = np.append(self.places, [[slice_index, tile]], axis=0)
        return row

    def shown_rows(self) -> npt.NDArray[np.int64]:
        """Return the rows of the tiles that show some of the body, (S, T) int64; -1 for every tile of air."""
        return np.where(self.row_of < self.shown, self.row_of, -1)

    def corner(self, tile: int) -> tuple[int, int]:
        """Return the row and column of the first pixel of a tile in its picture."""
        top, left = self.tiles.corners[tile].tolist()
        return int(top), int(left)

    def crop(self, picture: Tensor, tile: int) -> Tensor:
        """Return a tile (..., P, P) of a picture (..., h, w), zero beyond its border."""
        top, left = self.corner(tile)
        part = picture[..., top : top + self.tile_px, left : left + self.tile_px]
        return functional.pad(part, (0, self.tile_px - part.shape[-1], 0, self.tile_px - part.shape[-2]))

    def groups(self, batch_size: int) -> Iterator[tuple[range, npt.NDArray[np.int64]]]:
        """Yield ranges of slices with their rows, without air: as many whole slices as fit a batch, at least one."""
        row_of = self.shown_rows()
        count = len(row_of)
        per_slice = (row_of >= 0).sum(1)
        start = 0
        while start < count:
            stop = start + 1
            while stop < count and per_slice[start : stop + 1].sum() <= batch_size:
                stop += 1
            rows = row_of[start:stop]
            yield range(start, stop), rows[rows >= 0]
            start = stop


@dataclass(frozen=True)
class Tracked:
    """M masks of tracked lesions, one mask per lesion and tile.

    Attributes:
        lesion: (M,) int64, position of the lesion in the list of clicked lesions. The first mask of each lesion lies on
            a clicked slice.
        rows: (M,) int64, rows of an `EncodedVolume`.
        logits: (M, P / 4, P / 4) float32, on the CPU.
    """

    lesion: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    logits: Tensor


def warn_of_wide_tiles(edge: int, pixel_mm: float, grid: SliceGrid, subject: str) -> None:
    """Warn if tiles of `edge` pixels of `pixel_mm` are far wider than the scan of a subject."""
    tile_mm, scan_mm = edge * pixel_mm, grid.extent_mm
    if tile_mm > LARGEST_TILE * scan_mm:
        warnings.warn(
            f"a tile of {edge} pixels of {pixel_mm} mm is {tile_mm:.0f} mm wide, {tile_mm / scan_mm:.2g} times as "
            f"wide as {subject} ({scan_mm:.0f} mm), so its lesions appear too small; lower inference.pixel_mm (to "
            f"{scan_mm / edge:.2g} the scan fills a tile) or inference.tile_px",
            stacklevel=3,
        )


def mask_centre(mask: Tensor) -> tuple[float, float]:
    """Return the row and column of the centre of mass of a mask (h, w); the middle of the picture if it is empty."""
    weight = mask.float()
    total = float(weight.sum())
    if total == 0:
        return (mask.shape[0] - 1) / 2, (mask.shape[1] - 1) / 2
    rows = torch.arange(mask.shape[0], dtype=torch.float32)
    columns = torch.arange(mask.shape[1], dtype=torch.float32)
    return float((weight.sum(1) * rows).sum()) / total, float((weight.sum(0) * columns).sum()) / total


def enlarge(logits: Tensor, tile_px: int) -> Tensor:
    """Return the logits of a decoder (N, P / 4, P / 4) at the resolution of the tile, (N, P, P) float32."""
    size = (tile_px, tile_px)
    return functional.interpolate(logits.float().unsqueeze(1), size, mode="bilinear", align_corners=False).squeeze(1)


def paste(encoded: EncodedVolume, tracked: Tracked, nearer_owns: bool = False) -> tuple[Tensor, Tensor]:
    """Return the lesion that every pixel belongs to, and its logit there.

    Args:
        encoded: The scan.
        tracked: Masks of tracked lesions.
        nearer_owns: Whether a pixel that several lesions claim belongs to the lesion whose clicked slice is nearest. Of
            equally near ones, and otherwise, it belongs to the lesion with the highest logit.

    Returns:
        Logits (S, h, w) float32, and position of the lesion + 1 (S, h, w) int32, 0 for no lesion.
    """
    score = torch.full_like(encoded.pictures, UNCOVERED_LOGIT)
    owner = torch.zeros(encoded.pictures.shape, dtype=torch.int32)
    slices = encoded.places[tracked.rows][:, 0]
    lesions, first = np.unique(tracked.lesion, return_index=True)
    clicked = np.zeros(int(lesions.max(initial=-1)) + 2, dtype=np.int64)  # by number of the lesion in `owner`
    clicked[lesions + 1] = slices[first]
    away = np.abs(slices - clicked[tracked.lesion + 1])
    order = np.argsort(away, kind="stable") if nearer_owns else np.arange(len(away))
    for index in order.tolist():
        lesion, row, logits = tracked.lesion[index], tracked.rows[index], tracked.logits[index]
        tile_logits = enlarge(logits.unsqueeze(0), encoded.tile_px)[0].clamp(UNCOVERED_LOGIT, -UNCOVERED_LOGIT)
        slice_index, tile = encoded.places[row].tolist()
        top, left = encoded.corner(tile)
        highest = score[slice_index, top : top + encoded.tile_px, left : left + encoded.tile_px]
        owners = owner[slice_index, top : top + encoded.tile_px, left : left + encoded.tile_px]
        tile_part = tile_logits[: highest.shape[0], : highest.shape[1]]
        wins = tile_part > highest
        if nearer_owns:
            owner_away = torch.from_numpy(np.abs(slice_index - clicked))[owners.long()]
            wins &= (highest <= 0) | (owner_away >= int(away[index]))
        owners[wins] = int(lesion) + 1
        highest[wins] = tile_part[wins]
    return score, owner
