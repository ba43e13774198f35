"""Datamodules: episodes for training, whole volumes for validation, test and prediction."""

from datamodules.nifti import NiftiDataModule
from datamodules.pretraining import PretrainDataModule
from mois.machine.own_packages import warn_of_hidden_package

__all__ = ["NiftiDataModule", "PretrainDataModule"]

warn_of_hidden_package("datamodules")
