"""Exemplar-based segmentation of many lesions with a frozen SAM2 backbone."""

__version__ = "0.1.0"
