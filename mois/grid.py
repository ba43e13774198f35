"""Position of the voxels of an array in space, and comparison of two such grids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from numpy.typing import NDArray
from torch import Tensor

TOLERANCE_MM = 1e-2
TOLERANCE_EDGES = 0.02
ROUNDING_FLOAT32 = 4 * float(np.finfo(np.float32).eps)
"""Two grids are the same if their corners differ by at most `TOLERANCE_MM`. For scans with voxels of micrometres the
limit is `TOLERANCE_EDGES`, as a share of the shortest edge of a voxel, or the rounding of float32 if that is larger."""
MOST_VOXELS = 2**31
"""Largest number of voxels of a scan or of a stack of pictures: 8 GiB as float32."""
SINGULAR = 1e-6
"""Volume of a voxel divided by the product of its edges. Below this value, the edges lie in a plane."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Position of the voxels of a scan in space.

    Attributes:
        shape: (I, J, K), number of voxels along each axis.
        affine: (4, 4) float64 on the CPU, voxel indices to RAS millimetres.
    """

    shape: tuple[int, int, int]
    affine: Tensor

    @staticmethod
    def of(shape: Sequence[int], affine: Tensor | NDArray[Any]) -> Grid:
        """Return the grid of an array.

        Raises:
            ValueError: If the array does not have three axes, or the affine has no inverse.
        """
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"shape {tuple(shape)} is not that of a scan; give three axes (I, J, K) of 1 or more.")
        matrix = torch.as_tensor(affine).detach().to("cpu", torch.float64)
        if tuple(matrix.shape) != (4, 4):
            raise ValueError(f"an affine has shape (4, 4), got {tuple(matrix.shape)}; give voxel indices to RAS mm.")
        if not has_inverse(matrix):
            raise ValueError("the affine has no inverse: two voxel axes point the same way; write the scan again.")
        return Grid((int(shape[0]), int(shape[1]), int(shape[2])), matrix)

    @cached_property
    def voxel_ml(self) -> float:
        """Volume of a voxel in millilitres. Its edges need not be at right angles."""
        return abs(float(torch.linalg.det(self.affine[:3, :3]))) / 1000

    @cached_property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Length of a voxel's edges along I, J, K."""
        first, second, third = torch.linalg.vector_norm(self.affine[:3, :3], dim=0).tolist()
        return first, second, third

    @property
    def tolerance_mm(self) -> float:
        """Largest distance of the corners of a grid that counts as equal to this grid, in mm."""
        far_mm = float(np.abs(self.corners_mm()).max())
        return min(TOLERANCE_MM, max(TOLERANCE_EDGES * min(self.spacing_mm), ROUNDING_FLOAT32 * far_mm))

    def corners_mm(self) -> NDArray[np.float64]:
        """Return the corners, (8, 3) in RAS mm: voxel 0, and one voxel after the last, along each axis."""
        ends = [(0, length) for length in self.shape]
        corners = np.array([[i, j, k, 1.0] for i in ends[0] for j in ends[1] for k in ends[2]])
        placed: NDArray[np.float64] = (corners @ self.affine.numpy().T)[:, :3]
        return placed

    def reordered(self, order: Sequence[int], flipped: Sequence[bool]) -> Grid:
        """Return the grid of the same voxels in another order.

        Args:
            order: Axis n of the result is axis `order[n]` of this grid.
            flipped: Whether axis n runs backwards.
        """
        affine = torch.eye(4, dtype=torch.float64)
        affine[:, 3] = self.affine[:, 3]
        for axis, (old, flip) in enumerate(zip(order, flipped, strict=True)):
            affine[:, axis] = -self.affine[:, old] if flip else self.affine[:, old]
            if flip:
                affine[:, 3] += (self.shape[old] - 1) * self.affine[:, old]
        return Grid((self.shape[order[0]], self.shape[order[1]], self.shape[order[2]]), affine)


class GridMatch(NamedTuple):
    """Comparison of a given grid with a wanted grid.

    Attributes:
        order: The axes of the given grid that are nearest to I, J, K of the wanted grid.
        flipped: Whether each of these axes runs backwards.
        shape: Shape of the given grid in that order.
        shift_mm: Largest distance of corresponding corners in that order, in mm.
        same: Whether both grids hold the same voxels.
    """

    order: tuple[int, int, int]
    flipped: tuple[bool, bool, bool]
    shape: tuple[int, int, int]
    shift_mm: float
    same: bool

    def turn(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return an array of the given grid in the voxel order of the wanted grid, with the same values."""
        turned: NDArray[Any] = np.transpose(array, self.order)[
            tuple(slice(None, None, -1 if f else 1) for f in self.flipped)
        ]
        return turned


def match_grids(given: Grid, wanted: Grid) -> GridMatch:
    """Compare two grids. The order in which the voxels are stored plays no part."""
    toward = torch.linalg.solve(wanted.affine[:3, :3], given.affine[:3, :3]).numpy()  # given axes in wanted voxels
    axes: list[int] = [-1, -1, -1]
    left = np.abs(toward) / np.abs(toward).max(axis=0)
    for _ in range(3):
        wanted_axis, found_axis = np.unravel_index(int(np.argmax(left)), left.shape)
        axes[int(wanted_axis)] = int(found_axis)
        left[wanted_axis, :] = -1
        left[:, found_axis] = -1
    order = (axes[0], axes[1], axes[2])
    backwards = [bool(toward[axis, old] < 0) for axis, old in enumerate(order)]
    flipped = (backwards[0], backwards[1], backwards[2])
    turned = given.reordered(order, flipped)
    shift_mm = float(np.linalg.norm(turned.corners_mm() - wanted.corners_mm(), axis=1).max())
    same = turned.shape == wanted.shape and shift_mm <= wanted.tolerance_mm
    return GridMatch(order, flipped, turned.shape, shift_mm, same)


def put_on(array: NDArray[Any], given: Grid, wanted: Grid, of: str, what: str = "it") -> NDArray[Any]:
    """Return an array in the voxel order of another grid that holds the same voxels.

    Args:
        array: (I, J, K) on the given grid.
        given: The grid of the array.
        wanted: The grid that the array must lie on.
        of: Name of the file with the wanted grid, for messages.
        what: Name of the array, for messages.

    Raises:
        ValueError: If the grids differ; the message says by how much.
    """
    matched = match_grids(given, wanted)
    if matched.same:
        return matched.turn(array)
    apart = f"{matched.shift_mm:.3g} mm"
    if wanted.shape not in (matched.shape, given.shape):
        raise ValueError(
            f"shape {given.shape} differs from {wanted.shape} of {of}; resample {what} onto that grid (the corners lie "
            f"up to {apart} apart)."
        )
    raise ValueError(
        f"its affine differs from that of {of} by {apart} ({wanted.tolerance_mm:.3g} mm allowed); resample {what} onto "
        "that grid, or copy the affine if only the header is wrong."
    )


def has_inverse(affine: Tensor) -> bool:
    """Tell whether an affine (4, 4) float64 is finite and its three axes span the space."""
    edges = torch.linalg.vector_norm(affine[:3, :3], dim=0)
    if not bool(affine.isfinite().all()) or not bool((edges > 0).all()):
        return False
    return abs(float(torch.linalg.det(affine[:3, :3] / edges))) > SINGULAR


Spacing = tuple[float, float, float]

Edges = tuple[Spacing, Spacing, Spacing]
"""Steps of one voxel along S, H and W, each in mm along x, y and z. They need not be at right angles."""


def edges_of(spacing_mm: Spacing | Edges) -> npt.NDArray[np.float64]:
    """Return the steps to the next slice, row and column, (3, 3) in mm. Plain lengths give steps at right angles."""
    edges = np.asarray(spacing_mm, np.float64)
    return np.diag(edges) if edges.ndim == 1 else edges
