"""Datamodules: episodes for training, whole volumes for validation, test and prediction."""

from datamodules.nifti import NiftiDataModule
from datamodules.pretraining import PretrainDataModule

__all__ = ["NiftiDataModule", "PretrainDataModule"]
