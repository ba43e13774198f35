"""Data: episodes to train on, whole volumes to measure on."""

from datamodules.pretraining import PretrainDataModule

__all__ = ["PretrainDataModule"]
