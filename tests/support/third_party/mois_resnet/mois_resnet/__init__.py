"""A second family of backbones: a ResNet of torchvision in the place of SAM 2.1's encoder.

It is a package as anybody may write it: nothing in mois knows of it. From mois it imports the interfaces, the decoder
and memory of `mois.backbones.SAM2`, and a function that normalises scans.
"""

from mois_resnet.backbone import ResNetSAM
from mois_resnet.data import Discs
from mois_resnet.late_layers import LateLayers
from mois_resnet.mean_token import MeanToken

__all__ = ["Discs", "LateLayers", "MeanToken", "ResNetSAM"]
