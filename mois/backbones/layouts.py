"""Recognises the content of a checkpoint, and renames the tensors of SAM 2.1 to the names of Meta."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mois.backbones.checkpoint_files import TensorFile
from mois.backbones.sizes import SIZES

_WRAPPERS = re.compile(r"(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")
"""Parts that torch.compile, checkpointing and FSDP insert between the names of layers."""

_META = "image_encoder.trunk.patch_embed.proj.weight"
_TRANSFORMERS = "vision_encoder.backbone.patch_embed.projection.weight"
_ADAPTED = re.compile(
    r"^base_model\.model\.|\.(lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector|hada_w|lokr_w|ia3_l)"
)
_SINCE_2_1 = ("no_obj_embed_spatial", "obj_ptr_tpos_proj.weight")
"""Tensors of SAM 2.1 that SAM 2.0 lacks."""

_POINTS = re.compile(r"(.*\.)point_embeddings\.(\d)\.weight")

_TRANSFORMERS_NAMES = (
    (r"^image_encoder\.trunk\.", "vision_encoder.backbone."),
    (r"^image_encoder\.neck\.convs\.(\d+)\.conv\.", r"vision_encoder.neck.convs.\1."),
    (r"patch_embed\.proj\.", "patch_embed.projection."),
    (r"pe_layer\.positional_encoding_gaussian_matrix$", "shared_embedding.positional_embedding"),
    (r"^sam_prompt_encoder\.", "prompt_encoder."),
    (r"mask_downscaling\.0\.", "mask_embed.conv1."),
    (r"mask_downscaling\.1\.", "mask_embed.layer_norm1."),
    (r"mask_downscaling\.3\.", "mask_embed.conv2."),
    (r"mask_downscaling\.4\.", "mask_embed.layer_norm2."),
    (r"mask_downscaling\.6\.", "mask_embed.conv3."),
    (r"^sam_mask_decoder\.", "mask_decoder."),
    (r"output_upscaling\.0\.", "upscale_conv1."),
    (r"output_upscaling\.1\.", "upscale_layer_norm."),
    (r"output_upscaling\.3\.", "upscale_conv2."),
    (r"^memory_encoder\.mask_downsampler\.encoder\.12\.", "memory_encoder.mask_downsampler.final_conv."),
    (r"^memory_encoder\.pix_feat_proj\.", "memory_encoder.feature_projection."),
    (r"^memory_encoder\.out_proj\.", "memory_encoder.projection."),
    (r"^memory_encoder\.fuser\.", "memory_encoder.memory_fuser."),
    (r"\.dwconv\.", ".depthwise_conv."),
    (r"\.pwconv(\d)\.", r".pointwise_conv\1."),
    (r"\.gamma$", ".scale"),
    (r"^no_mem_embed$", "no_memory_embedding"),
    (r"^no_mem_pos_enc$", "no_memory_positional_encoding"),
    (r"^maskmem_tpos_enc$", "memory_temporal_positional_encoding"),
    (r"^no_obj_ptr$", "no_object_pointer"),
    (r"^no_obj_embed_spatial$", "occlusion_spatial_embedding_parameter"),
    (r"^obj_ptr_proj\.", "object_pointer_proj."),
    (r"^obj_ptr_tpos_proj\.", "temporal_positional_encoding_projection_layer."),
    (r"\.mlp\.layers\.0\.", ".mlp.proj_in."),
    (r"\.mlp\.layers\.1\.", ".mlp.proj_out."),
    (r"(_mlps\.\d|_head|object_pointer_proj)\.layers\.0\.", r"\1.proj_in."),
    (r"(_mlps\.\d|_head|object_pointer_proj)\.layers\.2\.", r"\1.proj_out."),
    (r"(_mlps\.\d|_head|object_pointer_proj)\.layers\.1\.", r"\1.layers.0."),
    (r"\.norm(\d?)\.", r".layer_norm\1."),
    (r"\.norm_final_attn\.", ".layer_norm_final_attn."),
    (r"\.out_proj\.", ".o_proj."),
)  # fmt: skip
"""Replacements, in order, that turn a name of Meta into the name in `transformers.Sam2VideoModel`."""


def arrange(file: TensorFile, wanted: Sequence[str], size: str, what: str) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint under the names of the model.

    Prefixes of training programs are removed. Names of `transformers.Sam2VideoModel` are translated.

    Args:
        file: Content of the checkpoint.
        wanted: Names of the tensors of the model.
        size: Size of the model, such as "tiny".
        what: Name of the file, for messages.

    Raises:
        ValueError: If the file is something else: an adapter, a bank, SAM 1, SAM 2.0, another size.
    """
    if other := _something_else(file):
        raise ValueError(f"{what} {other}.")
    tensors = _without_prefix(file.tensors)
    if _TRANSFORMERS in tensors:
        tensors = _from_transformers(tensors, wanted, size, what)
    if _META in tensors:
        _check_version_and_size(tensors, size, what)
    elif not set(wanted) & tensors.keys():
        shown = ", ".join(sorted(tensors)[:3]) or "nothing"
        raise ValueError(
            f"{what} holds no tensor of SAM 2.1 ({len(tensors)} others: {shown}); give a checkpoint of SAM 2.1 {size}."
        )
    return tensors


def transformers_name(name: str) -> str:
    """Return the name in transformers of a tensor of Meta."""
    if match := re.fullmatch(r"memory_encoder\.mask_downsampler\.encoder\.(\d+)\.(.*)", name):
        layer, kind = divmod(int(match[1]), 3)
        if layer < 4:
            return f"memory_encoder.mask_downsampler.layers.{layer}.{'conv' if kind == 0 else 'layer_norm'}.{match[2]}"
    for pattern, theirs in _TRANSFORMERS_NAMES:
        name = re.sub(pattern, theirs, name)
    return name


def _something_else(file: TensorFile) -> str:
    """Return the end of a sentence on a file that holds no backbone; "" if it may hold a backbone."""
    names = file.tensors.keys()
    if not names:
        return "holds no tensors, as an adapter that trains nothing leaves it; give the backbone's own checkpoint"
    if any(map(_ADAPTED.search, names)):
        return (
            "is an adapter's file, which holds only what was trained; it is used as part of its bundle (--bundle), and "
            "the backbone's own checkpoint is wanted here"
        )
    if "backbone_sha256" in file.metadata:
        return (
            "is a propagation's file, which goes to model.propagation.init_args.weights; the backbone's own checkpoint "
            "is wanted here"
        )
    if file.metadata.get("format") == "mois exemplar bank":
        return "is an exemplar bank (--bank); the backbone's own checkpoint is wanted here"
    plain = _without_prefix(file.tensors)
    if {"image_encoder.pos_embed", "vision_encoder.pos_embed"} & plain.keys():
        return "is a checkpoint of SAM 1 (Segment Anything, not 2); give one of SAM 2.1 (sam2.1_hiera_*.pt)"
    return ""


def _without_prefix(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the parts that a training program put before and between the names."""
    bare = {_WRAPPERS.sub("", name): tensor for name, tensor in tensors.items()}
    if len(bare) < len(tensors):
        return dict(tensors)
    for anchor in (_META, _TRANSFORMERS, "image_encoder.pos_embed"):
        prefixes = {name.removesuffix(anchor) for name in bare if name.endswith(f".{anchor}")}
        if anchor not in bare and len(prefixes) == 1:
            prefix = prefixes.pop()
            return {name.removeprefix(prefix): tensor for name, tensor in bare.items()}
    return bare


def _from_transformers(tensors: Mapping[str, Tensor], wanted: Sequence[str], size: str, what: str) -> dict[str, Tensor]:
    rest = dict(tensors)
    found: dict[str, Tensor] = {}
    _check_size(rest[_TRANSFORMERS], rest, size, what)
    if not any(name.startswith("memory_attention.") for name in rest):
        raise ValueError(
            f"{what} is transformers' Sam2Model, which lacks SAM 2.1's memory; save its Sam2VideoModel "
            "(Sam2VideoModel.from_pretrained(...).save_pretrained(...)), or give Meta's checkpoint."
        )
    points = rest.pop("prompt_encoder.point_embed.weight", None)  # (4, C): negative, positive, two corners of a box
    rest.pop("shared_image_embedding.positional_embedding", None)  # a copy of the tensor of the prompt encoder
    for name in wanted:
        if match := _POINTS.fullmatch(name):
            if points is not None and len(points) > int(match[2]):
                found[name] = points[int(match[2])].unsqueeze(0)
        elif (theirs := transformers_name(name)) in rest:
            found[name] = rest.pop(theirs)
    return {**found, **rest}


def _check_version_and_size(tensors: Mapping[str, Tensor], size: str, what: str) -> None:
    old = not any(name in tensors for name in _SINCE_2_1) and "no_obj_ptr" in tensors
    if old:
        named = _size_of(tensors[_META], tensors)
        raise ValueError(
            f"{what} is SAM 2.0{f' {named}' if named else ''} ({' and '.join(_SINCE_2_1)} are missing), which works "
            f"otherwise; give SAM 2.1 {size} (sam2.1_hiera_{size}.pt)."
        )
    _check_size(tensors[_META], tensors, size, what)


def _check_size(patches: Tensor, tensors: Mapping[str, Tensor], size: str, what: str) -> None:
    found = _size_of(patches, tensors)
    if found not in ("", size):
        raise ValueError(
            f"{what} is of size {found}, the model is {size}; set backbone.size={found} "
            f"(model.backbone.init_args.size), or give the checkpoint of {size}."
        )


def _size_of(patches: Tensor, tensors: Mapping[str, Tensor]) -> str:
    """Return the size of SAM 2 with this width and number of blocks of the trunk; "" if there is none."""
    blocks = {int(match[1]) for name in tensors if (match := re.search(r"\.blocks\.(\d+)\.", name))}
    shape = (patches.shape[0], len(blocks))
    return next((name for name, one in SIZES.items() if shape == (one.embed_dim, sum(one.stages))), "")


def check_values(tensors: Mapping[str, Tensor], what: str) -> None:
    """Refuse tensors that no model can compute with.

    Raises:
        ValueError: If a tensor is quantised, sparse, without numbers, NaN or infinite; the message names the first.
    """
    for name, tensor in sorted(tensors.items()):
        if fault := _no_plain_numbers(tensor):
            raise ValueError(f"{what}: tensor {name} {fault}; give weights in float32 or float16.")
        broken = int(tensor.numel() - torch.isfinite(tensor.float()).sum())
        if broken:
            raise ValueError(
                f"{what}: {broken} of {tensor.numel()} numbers in tensor {name} are NaN or infinite; give another copy."
            )


def _no_plain_numbers(tensor: Tensor) -> str:
    """Return a part of a sentence on a tensor that is no block of floating-point numbers; "" if it is one."""
    kind = str(tensor.dtype).removeprefix("torch.")
    if tensor.layout != torch.strided:
        return f"is {str(tensor.layout).removeprefix('torch.')}"
    if tensor.is_meta:
        return "has a shape and no numbers (it was saved from the meta device)"
    if tensor.is_complex():
        return f"is {kind}"
    return "" if tensor.is_floating_point() else f"is {kind} (quantised?)"
