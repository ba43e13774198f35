"""Backbones: SAM 2.1 in five sizes."""

from mois.backbones.sam2 import SAM2

__all__ = ["SAM2"]
