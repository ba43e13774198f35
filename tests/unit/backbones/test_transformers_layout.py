"""SAM 2.1 as transformers saves it: renamed tensor by tensor, it answers as transformers' own model does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Sam2Config, Sam2Model, Sam2VideoConfig, Sam2VideoModel

from mois.backbones import SAM2
from mois.backbones.layouts import transformers_name
from mois.backbones.sizes import SIZES
from mois.records import Prompts

PX = 128
GRID = PX // 16


def described(size: str, kind: type = Sam2VideoConfig) -> Sam2VideoConfig:
    """Return transformers' description of one of Meta's sizes, for images of 128 pixels."""
    sizes = SIZES[size]
    widths = [sizes.embed_dim << stage for stage in range(4)]
    trunk = {
        "hidden_size": sizes.embed_dim,
        "num_attention_heads": sizes.num_heads,
        "image_size": [PX, PX],
        "blocks_per_stage": list(sizes.stages),
        "embed_dim_per_stage": widths,
        "num_attention_heads_per_stage": [sizes.num_heads << stage for stage in range(4)],
        "global_attention_blocks": list(sizes.global_att_blocks),
        "window_positional_embedding_background_size": list(sizes.background_size),
        "window_size_per_stage": list(sizes.window_spec),
        "model_type": "sam2_hiera_det_model",
    }
    vision = {
        "backbone_config": trunk,
        "backbone_channel_list": widths[::-1],
        "backbone_feature_sizes": [[4 * GRID, 4 * GRID], [2 * GRID, 2 * GRID], [GRID, GRID]],
    }
    known = {"vision_config": vision, "prompt_encoder_config": {"image_size": PX}}
    return kind(**known, memory_attention_rope_feat_sizes=[GRID, GRID], image_size=PX)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sam2VideoModel, Path]:
    """Return transformers' tiny with random weights, norms and biases among them, and the folder that it saves."""
    torch.manual_seed(0)
    model = Sam2VideoModel(described("tiny")).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.02 if parameter.ndim > 1 else 0.1
            parameter.add_(scale * torch.randn_like(parameter))
            if name.endswith("scale"):
                parameter.normal_()
        model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(9)  # it hides what it is not sure to see
        shared = model.prompt_encoder.shared_embedding.positional_embedding
        model.shared_image_embedding.positional_embedding.copy_(shared)
    folder = tmp_path_factory.mktemp("transformers") / "sam2.1-hiera-tiny"
    model.save_pretrained(folder)
    return model, folder


@pytest.mark.parametrize("given", ["", "model.safetensors"])
def test_it_answers_as_transformers_does(saved: tuple[Sam2VideoModel, Path], given: str) -> None:
    theirs, folder = saved
    ours = SAM2("tiny", str(folder / given), patch_px=PX)
    torch.manual_seed(1)
    images, points = torch.rand(1, PX, PX), torch.tensor([[[30.0, 70.0]]])
    with torch.inference_mode():
        features = ours.encode(images)
        answer = ours.decode(features, Prompts(points, torch.ones(1, 1, dtype=torch.int32)))
        pixels = (features.image - ours.pixel_mean) / ours.pixel_std
        wanted = theirs._single_frame_forward(
            pixel_values=pixels, input_points=points[None], input_labels=torch.ones(1, 1, 1, dtype=torch.int64)
        )
        levels = theirs.get_image_embeddings(pixels)
        no_memory = theirs.no_memory_embedding.view(1, -1, 1, 1)
        for level, one in zip(features.levels, [*levels[:2], levels[2] - no_memory], strict=True):
            torch.testing.assert_close(level, one, atol=1e-4, rtol=0)
        torch.testing.assert_close(answer.logits, wanted.pred_masks[:, 0], atol=1e-4, rtol=0)
        torch.testing.assert_close(answer.iou, wanted.iou_scores.reshape(1, 3), atol=1e-4, rtol=0)
        torch.testing.assert_close(answer.presence, wanted.object_score_logits.flatten(), atol=1e-4, rtol=0)


def test_its_memory_remembers_and_attends_as_transformers_does(saved: tuple[Sam2VideoModel, Path]) -> None:
    theirs, folder = saved
    ours = SAM2("tiny", str(folder), patch_px=PX).sam
    torch.manual_seed(2)
    seen, mask = torch.randn(1, 256, GRID, GRID), torch.randn(1, 1, PX, PX)
    tokens, memory, pointers = torch.randn(GRID**2, 1, 256), torch.randn(GRID**2, 1, 64), torch.randn(4, 1, 64)
    with torch.inference_mode():
        mine = ours.memory_encoder(seen, mask, skip_mask_sigmoid=True)["vision_features"]
        torch.testing.assert_close(mine, theirs.memory_encoder(seen, mask)[0], atol=1e-4, rtol=0)
        torch.testing.assert_close(ours.obj_ptr_proj(tokens), theirs.object_pointer_proj(tokens), atol=1e-4, rtol=0)
        kept = torch.cat([memory, pointers])
        mine = ours.memory_attention(tokens, kept, tokens, torch.zeros_like(kept), num_obj_ptr_tokens=4)
        other = theirs.memory_attention(tokens, kept, tokens, torch.zeros_like(kept), num_object_pointer_tokens=4)
        torch.testing.assert_close(mine.flatten(), other.flatten(), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "size",
    ["small", *(pytest.param(size, marks=pytest.mark.ci) for size in ("base_plus", "large"))],
)
def test_every_name_and_shape_of_a_size_is_known(size: str) -> None:
    with torch.device("meta"):
        theirs = {name: tensor.shape for name, tensor in Sam2VideoModel(described(size)).state_dict().items()}
    ours = {name: tensor.shape for name, tensor in SAM2(size, "random", patch_px=PX).sam.state_dict().items()}  # type: ignore[arg-type]
    rest = {name: shape for name, shape in ours.items() if "point_embeddings" not in name}
    assert {transformers_name(name): shape for name, shape in rest.items()} == {
        name: shape
        for name, shape in theirs.items()
        if name not in ("prompt_encoder.point_embed.weight", "shared_image_embedding.positional_embedding")
    }


def test_its_image_model_lacks_the_memory(tmp_path: Path) -> None:
    Sam2Model(described("tiny", Sam2Config)).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"is transformers' Sam2Model, which lacks SAM 2.1's memory; save its Sam2Video"
    ):
        SAM2("tiny", str(tmp_path), patch_px=PX)


def test_its_sam_2_0_and_its_other_sizes_are_named(saved: tuple[Sam2VideoModel, Path], tmp_path: Path) -> None:
    _, folder = saved
    with pytest.raises(ValueError, match=r"is of size tiny, the model is small; set backbone\.size=tiny"):
        SAM2("small", str(folder), patch_px=PX)
    since = ("occlusion_spatial_embedding_parameter", "temporal_positional_encoding_projection_layer")
    state = load_file(folder / "model.safetensors")
    save_file(
        {name: tensor for name, tensor in state.items() if not name.startswith(since)}, tmp_path / "old.safetensors"
    )
    with pytest.raises(ValueError, match=r"is SAM 2\.0 tiny .* give SAM 2\.1 tiny \(sam2\.1_hiera_tiny\.pt\)"):
        SAM2("tiny", str(tmp_path / "old.safetensors"), patch_px=PX)


def test_a_tensor_that_it_lacks_is_named_as_ours(saved: tuple[Sam2VideoModel, Path], tmp_path: Path) -> None:
    state = load_file(saved[1] / "model.safetensors")
    del state["no_memory_embedding"]
    save_file(state, tmp_path / "part.safetensors")
    with pytest.raises(ValueError, match=r"does not fit the model .*1 missing: no_mem_embed\."):
        SAM2("tiny", str(tmp_path / "part.safetensors"), patch_px=PX)
