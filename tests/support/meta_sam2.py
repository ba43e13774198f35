"""Meta's own SAM 2.1 with random weights: what ours is compared with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import sam2.sam2_video_predictor as video
import torch
from sam2.build_sam import build_sam2, build_sam2_video_predictor
from sam2.sam2_image_predictor import SAM2ImagePredictor
from torch import Tensor, nn

CONFIGS = {
    "tiny": "configs/sam2.1/sam2.1_hiera_t.yaml",
    "small": "configs/sam2.1/sam2.1_hiera_s.yaml",
    "base_plus": "configs/sam2.1/sam2.1_hiera_b+.yaml",
    "large": "configs/sam2.1/sam2.1_hiera_l.yaml",
}
MEAN, STD = (torch.tensor(values).view(1, 3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def meta_model(size: str, px: int, seed: int = 0) -> Any:
    """`build_sam2` with weights of which none is trivial: norms, biases and layer scales are random too."""
    torch.manual_seed(seed)
    model = build_sam2(CONFIGS[size], device="cpu", hydra_overrides_extra=[f"++model.image_size={px}"])
    randomise(model)
    return model


@contextmanager
def without_numbers() -> Iterator[None]:
    """Models that are built while this holds have shapes alone; Hiera asks for the numbers of one `linspace`."""
    with torch.device("meta"), mock.patch.object(torch, "linspace", partial(torch.linspace, device="cpu")):
        yield


def meta_predictor(size: str, px: int, weights: dict[str, Tensor]) -> Any:
    """`build_sam2_video_predictor` with these weights, which keeps what it remembers in float32."""
    extra = [f"++model.image_size={px}"]
    predictor = build_sam2_video_predictor(CONFIGS[size], device="cpu", hydra_overrides_extra=extra)
    predictor.load_state_dict(weights)
    seen: dict[bytes, Any] = {}
    encode = predictor.forward_image

    def once(images: Tensor) -> Any:  # every state asks again
        key = images.numpy().tobytes()
        if key not in seen:
            seen[key] = encode(images)
        return {name: list(maps) for name, maps in seen[key].items()}

    predictor.forward_image = once
    return predictor


def meta_image_predictor(model: Any, image: Tensor) -> SAM2ImagePredictor:
    """`SAM2ImagePredictor` that has seen an image (P, P), 0 to 1; its own transforms take bytes."""
    predictor = SAM2ImagePredictor(model)
    predictor._bb_feat_sizes = [(model.image_size // stride,) * 2 for stride in (4, 8, 16)]  # fixed at those of 1024
    with mock.patch.object(type(predictor._transforms), "__call__", return_value=as_seen(image[None])[0]):
        predictor.set_image(image.numpy()[..., None])
    return predictor


def as_seen(images: Tensor) -> Tensor:
    """Pictures (N, P, P), 0 to 1, as the trunk takes them."""
    return (images.unsqueeze(1) - MEAN) / STD


@contextmanager
def full_precision() -> Iterator[None]:
    """The video predictor rounds memories to bfloat16; for as long as this holds it does not."""

    class Torch(SimpleNamespace):
        bfloat16 = torch.float32

        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

    with mock.patch.object(video, "torch", Torch()):
        yield


def video_state(predictor: Any, images: Tensor) -> Any:
    """A fresh state of pictures (T, P, P), 0 to 1."""
    edge = images.shape[-1]
    with mock.patch.object(video, "load_video_frames", return_value=(as_seen(images), edge, edge)):
        return predictor.init_state("")


def randomise(model: nn.Module) -> None:
    """Make norms, biases and scales matter, memories be heard, and masks so steep that most are stable."""
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith("gamma"):
                tensor.normal_(0.5, 0.1)
            elif name.endswith(("pos_embed", "pos_embed_window")):
                tensor.normal_(0, 0.1)
            elif tensor.ndim == 1:
                tensor.normal_(1.0 if name.endswith("weight") else 0.0, 0.2)
            elif "embed" in name or "tpos" in name:
                tensor.normal_(0, 0.5)
            elif "hypernetworks_mlps" in name and "layers.2" in name:
                tensor.mul_(5)
            elif "cross_attn_image" in name:
                tensor.mul_(3)
            elif name.startswith(("memory_encoder", "obj_ptr")):
                tensor.mul_(2)


def save_checkpoint(model: nn.Module, path: Path) -> Path:
    """Write weights as Meta's files hold them."""
    torch.save({"model": model.state_dict()}, path)
    return path


def bodies(count: int, px: int, seed: int = 0) -> Tensor:
    """Pictures (N, P, P), 0 to 1: a disc that moves through smooth noise."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(count, 1, px // 8, px // 8, generator=generator)
    smooth = nn.functional.interpolate(noise, (px, px), mode="bilinear").squeeze(1)
    line = torch.arange(px, dtype=torch.float32)
    centre = px * (0.4 + 0.02 * torch.arange(count, dtype=torch.float32))
    away = (line[None, :, None] - centre[:, None, None]) ** 2 + (line[None, None, :] - centre[:, None, None]) ** 2
    return (0.6 * smooth + 0.4 * (away < (px / 8) ** 2)).clamp(0, 1)
