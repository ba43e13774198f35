"""A ResNet as encoder, with the decoder and the memory of SAM 2.1."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from mois.backbones import SAM2
from mois.interfaces import Backbone, Features, MaskPrediction, Memory, Prompts, WeightsIdentity


class ResNetSAM(Backbone):
    """ResNet-18 and a 1 x 1 layer for each level, then the decoder and the memory of the nano.

    Args:
        weights: File of a `state_dict` of `torchvision.models.resnet18`; "" for random weights.
        heads: Weights of the nano, whose decoder and memory are taken, such as bundled-2 or random.
        patch_px: Edge of the square input in pixels, a multiple of 32.
        seed: Seed of random weights.
    """

    def __init__(self, weights: str = "", heads: str = "bundled-2", patch_px: int = 128, seed: int = 0) -> None:
        super().__init__()
        self.sam2 = SAM2("nano", heads, patch_px, seed=seed)
        self.patch_px, self.strides = patch_px, (4, 8, 16)
        self.channels, self.width = self.sam2.channels, self.sam2.width
        self.memory_width = self.sam2.memory_width
        self.positions = self.sam2.sam.image_encoder.neck.position_encoding
        self.sam2.sam.image_encoder = nn.Identity()  # the ResNet does its work
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = resnet18(weights=None)
            if weights:
                network.load_state_dict(torch.load(weights, weights_only=True))
            self.stem = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
            self.trunk = nn.ModuleList([network.layer1, network.layer2, network.layer3])
            self.neck = nn.ModuleList(
                nn.Conv2d(wide, narrow, 1) for wide, narrow in zip((64, 128, 256), self.channels, strict=True)
            )
        self.identity = WeightsIdentity("resnet18-nano", weights or "random", _sha256(self.state_dict()))
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> ResNetSAM:
        """Stay in evaluation mode: the statistics of the ResNet are part of its weights."""
        del mode
        return super().train(False)

    def encode(self, images: Tensor) -> Features:
        """See `Backbone.encode`."""
        channels = images.unsqueeze(1) if images.dim() == 3 else images  # (N, 1, P, P)
        seen = self.stem((channels - 0.3) / 0.3 * torch.ones(1, 3, 1, 1, device=images.device))
        levels = []
        for stage, narrow in zip(self.trunk, self.neck, strict=True):
            seen = stage(seen)
            levels.append(narrow(seen))  # (N, C, P / stride, P / stride)
        return Features(tuple(levels), self.positions(levels[-1]), channels)

    def decode(self, features: Features, prompts: Prompts | None, dense: Tensor | None = None) -> MaskPrediction:
        """See `Backbone.decode`."""
        return self.sam2.decode(features, prompts, dense)

    def remember(self, features: Features, logits: Tensor, pointer: Tensor) -> Memory:
        """See `Backbone.remember`."""
        return self.sam2.remember(features, logits, pointer)

    def attend(self, features: Features, memory: Memory) -> Features:
        """See `Backbone.attend`."""
        return self.sam2.attend(features, memory)

    def attention_stack(self, *, rotary_keys: bool = True) -> nn.Module:
        """See `Backbone.attention_stack`."""
        return self.sam2.attention_stack(rotary_keys=rotary_keys)

    def weights(self) -> dict[str, Tensor]:
        """See `Backbone.weights`."""
        return dict(self.state_dict())

    def parts(self) -> dict[str, nn.Module]:
        """See `Backbone.parts`."""
        kept = self.sam2.sam
        heads = {"memory_attention": kept.memory_attention, "memory_encoder": kept.memory_encoder}
        return {"trunk": self.trunk, "neck": self.neck, "decoder": kept.sam_mask_decoder, **heads}


def _sha256(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()
