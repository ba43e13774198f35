"""Data: episodes to train on, whole volumes to measure on."""

from datamodules.nifti import NiftiDataModule
from datamodules.pretraining import PretrainDataModule

__all__ = ["NiftiDataModule", "PretrainDataModule"]
