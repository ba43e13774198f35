"""How the earlier scan of a patient lies on the scan of now, and its picture and lesions on the grid of now."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from mois.records import Volume
from mois.scans.registration import moved_mm, register, same_place, voxel_places
from mois.session.follow_up.time_points import TimePoint


@dataclass(frozen=True, eq=False)
class Alignment:
    """How an earlier scan lies on the scan of now.

    Attributes:
        motion: (4, 4), from RAS mm of the earlier scan to RAS mm of the scan of now.
        registered: Whether the scans lie on different grids and were registered.
        moved_mm: How far the motion moves the middle of the earlier scan, in mm.
    """

    motion: NDArray[np.float64]
    registered: bool
    moved_mm: float

    def voxels(self, earlier: Volume, now: Volume) -> NDArray[np.float64]:
        """Return (4, 4), from voxels of the earlier scan to voxels of the scan of now."""
        matrices = [volume.affine.double().cpu().numpy() for volume in (earlier, now)]
        onto: NDArray[np.float64] = np.linalg.inv(matrices[1]) @ self.motion @ matrices[0]
        return onto


def align(earlier: Volume, now: Volume) -> Alignment:
    """Return how two scans of a patient lie on each other. Scans on different grids are registered: rigid.

    Raises:
        ValueError: If the scans are of two patients, or cannot be registered.
    """
    if earlier.patient != now.patient:
        raise ValueError(
            f"the scans are of two patients, {earlier.patient} and {now.patient}; give two scans of one "
            "patient, or name their patient (--patient NAME)."
        )
    if same_place(earlier, now):
        return Alignment(np.eye(4), False, 0.0)
    motion = register(earlier, now)
    return Alignment(motion, True, moved_mm(motion, earlier))


def picture_on(earlier: Volume, now: Volume, alignment: Alignment) -> Tensor:
    """Return the earlier scan on the grid of now, (I, J, K) float32; the darkest value where it shows nothing."""
    picture = earlier.image.cpu().numpy().astype(np.float32, copy=False)
    back = np.linalg.inv(alignment.voxels(earlier, now))
    placed = ndimage.affine_transform(
        picture, back[:3, :3], back[:3, 3], output_shape=now.shape, order=1, mode="constant", cval=float(picture.min())
    )
    return torch.from_numpy(placed)


def labels_on(earlier: TimePoint, now: Volume, alignment: Alignment) -> Tensor:
    """Return the earlier lesions on the grid of now, (I, J, K) int32, to be drawn. Volumes are never counted on it.

    A lesion that lies between the voxels of now still gets the voxels that are nearest.
    """
    onto = alignment.voxels(earlier.volume, now)
    back = np.linalg.inv(onto)
    placed = ndimage.affine_transform(
        earlier.labels.cpu().numpy().astype(np.int32), back[:3, :3], back[:3, 3], output_shape=now.shape, order=0
    )
    ids, places = voxel_places(earlier.labels, torch.from_numpy(onto))
    index = np.rint(places).astype(np.int64)
    lost = ((index >= 0) & (index < np.array(now.shape))).all(1) & ~np.isin(ids, np.unique(placed))
    placed[tuple(index[lost].T)] = ids[lost]
    return torch.from_numpy(placed)
