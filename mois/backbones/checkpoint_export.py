"""Writes the weights of SAM 2.1 as other programs read them: as Meta's checkpoint, or as a folder of transformers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from mois.backbones.layouts import transformers_name
from mois.backbones.sizes import IMAGENET, SIZES
from mois.files.atomic import whole_file, write_text

POINTS = "prompt_encoder.point_embed.weight"
SHARED = "prompt_encoder.shared_embedding.positional_embedding"
SHARED_AGAIN = "shared_image_embedding.positional_embedding"
"""transformers keeps this tensor twice."""


def write_meta(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write a checkpoint that `sam2.build_sam.build_sam2` loads.

    Args:
        tensors: Tensors by Meta's names.
        file: File to write; .safetensors, or else PyTorch's format.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with whole_file(file) as part:
        if file.suffix == ".safetensors":
            save_file(plain, part)
        else:
            torch.save({"model": plain}, part)


def write_transformers(tensors: Mapping[str, Tensor], size: str, patch_px: int, folder: Path) -> None:
    """Write a folder that `Sam2Model`, `Sam2VideoModel` and their processors load with `from_pretrained`.

    Args:
        tensors: Tensors by Meta's names.
        size: Size of the model, such as "tiny".
        patch_px: Edge of the square input in pixels.
        folder: Folder to write.

    Raises:
        ValueError: If transformers has no model of this size.
    """
    if SIZES[size].neck_norm:
        raise ValueError(f"transformers has no SAM 2.1 of size {size}; leave out --layout transformers.")
    points = sorted(name for name in tensors if re.search(r"\.point_embeddings\.\d\.weight$", name))
    named = {transformers_name(name): tensor for name, tensor in tensors.items() if name not in points}
    named[POINTS] = torch.cat([tensors[name] for name in points])  # (4, C)
    named[SHARED_AGAIN] = named[SHARED].clone()
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}
    with whole_file(folder / "model.safetensors") as part:
        save_file(plain, part, metadata={"format": "pt"})
    write_text(folder / "config.json", json.dumps(transformers_config(size, patch_px), indent=2) + "\n")
    write_text(folder / "processor_config.json", json.dumps(processor_config(patch_px), indent=2) + "\n")


def processor_config(patch_px: int) -> dict[str, Any]:
    """Return the description, for transformers 5, of what is done to images and points before the model.

    Args:
        patch_px: Edge of the square input in pixels; the model's masks have a quarter of it.
    """
    edge, quarter = {"height": patch_px, "width": patch_px}, {"height": patch_px // 4, "width": patch_px // 4}
    common = {
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": list(IMAGENET[0]),
        "image_std": list(IMAGENET[1]),
        "resample": 2,
        "rescale_factor": 1 / 255,
        "size": edge,
    }
    return {
        "processor_class": "Sam2VideoProcessor",
        "target_size": patch_px,
        "point_pad_value": -10,
        "image_processor": {"image_processor_type": "Sam2ImageProcessor", "mask_size": quarter, **common},
        "video_processor": {"video_processor_type": "Sam2VideoVideoProcessor", "return_metadata": False, **common},
    }


def transformers_config(size: str, patch_px: int) -> dict[str, Any]:
    """Return transformers' description of a size: what differs from its defaults, which are those of tiny."""
    sizes, cells = SIZES[size], patch_px // 16
    widths = [sizes.embed_dim << stage for stage in range(4)]
    trunk = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": sizes.embed_dim,
        "num_attention_heads": sizes.num_heads,
        "image_size": [patch_px, patch_px],
        "blocks_per_stage": list(sizes.stages),
        "embed_dim_per_stage": widths,
        "num_attention_heads_per_stage": [sizes.num_heads << stage for stage in range(4)],
        "global_attention_blocks": list(sizes.global_att_blocks),
        "window_positional_embedding_background_size": list(sizes.background_size),
        "window_size_per_stage": list(sizes.window_spec),
    }
    vision = {
        "model_type": "sam2_vision_model",
        "backbone_config": trunk,
        "backbone_channel_list": widths[::-1],
        "backbone_feature_sizes": [[4 * cells, 4 * cells], [2 * cells, 2 * cells], [cells, cells]],
    }
    return {
        "model_type": "sam2_video",
        "architectures": ["Sam2VideoModel"],
        "vision_config": vision,
        "prompt_encoder_config": {"image_size": patch_px},
        "memory_attention_rope_feat_sizes": [cells, cells],
        "image_size": patch_px,
    }
