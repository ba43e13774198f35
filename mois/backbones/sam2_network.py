"""The network of SAM 2.1 in any size, built from the classes of sam2. No other file imports sam2."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from sam2.modeling.backbones.hieradet import Hiera
from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder
from sam2.modeling.memory_attention import MemoryAttention, MemoryAttentionLayer
from sam2.modeling.memory_encoder import CXBlock, Fuser, MaskDownSampler, MemoryEncoder
from sam2.modeling.position_encoding import PositionEmbeddingSine, apply_rotary_enc, compute_axial_cis
from sam2.modeling.sam.mask_decoder import MaskDecoder
from sam2.modeling.sam.prompt_encoder import PromptEncoder
from sam2.modeling.sam.transformer import Attention, RoPEAttention, TwoWayTransformer
from sam2.modeling.sam2_base import SAM2Base
from sam2.modeling.sam2_utils import LayerNorm2d, get_1d_sine_pe
from torch import Tensor, nn
from torch.nn import functional

from mois.backbones.memory_reading import mix_values
from mois.backbones.sizes import Sizes


def distance_code(steps: Tensor, width: int) -> Tensor:
    """Return the code of sam2 for T distances (T,), (T, width)."""
    code: Tensor = get_1d_sine_pe(steps, dim=width)
    return code


class Network(SAM2Base):  # type: ignore[misc]
    """The model of sam2 with free sizes of its heads. Tensors have the names of official checkpoints."""

    def __init__(self, sizes: Sizes, patch_px: int) -> None:
        self._sizes = sizes
        trunk = Hiera(
            embed_dim=sizes.embed_dim,
            num_heads=sizes.num_heads,
            stages=sizes.stages,
            global_att_blocks=sizes.global_att_blocks,
            window_pos_embed_bkg_spatial_size=sizes.background_size,
            window_spec=sizes.window_spec,
        )
        neck = FpnNeck(
            position_encoding=_sine(sizes.width),
            d_model=sizes.width,
            backbone_channel_list=trunk.channel_list,
            fpn_top_down_levels=[2, 3],
            fpn_interp_model="nearest",
        )
        if sizes.neck_norm:  # without it, a neck trained from scratch drifts to a std of 11 (position codes: 1)
            for conv in neck.convs:
                conv.add_module("norm", _ChannelNorm(sizes.width))
        super().__init__(
            image_encoder=ImageEncoder(trunk, neck, scalp=1),
            memory_attention=_memory_attention(sizes),
            memory_encoder=_memory_encoder(sizes),
            image_size=patch_px,
            sigmoid_scale_for_mem_enc=20.0,
            sigmoid_bias_for_mem_enc=-10.0,
            use_mask_input_as_output_without_sam=True,
            directly_add_no_mem_embed=True,
            no_obj_embed_spatial=True,
            use_high_res_features_in_sam=True,
            multimask_output_in_sam=True,
            iou_prediction_use_sigmoid=True,
            use_obj_ptrs_in_encoder=True,
            add_tpos_enc_to_obj_ptrs=True,
            proj_tpos_enc_in_obj_ptrs=True,
            use_signed_tpos_enc_to_obj_ptrs=True,
            only_obj_ptrs_in_the_past_for_eval=True,
            pred_obj_scores=True,
            pred_obj_scores_mlp=True,
            fixed_no_obj_ptr=True,
            multimask_output_for_tracking=True,
            use_multimask_token_for_obj_ptr=True,
            multimask_min_pt_num=0,
            multimask_max_pt_num=1,
            use_mlp_for_obj_ptr_proj=True,
        )
        for module in self.modules():
            if type(module) is LayerNorm2d:
                module.__class__ = _ChannelNorm2d

    def _build_sam_heads(self) -> None:
        super()._build_sam_heads()
        sizes = self._sizes
        if sizes.width == 256:
            return
        cells = self.image_size // self.backbone_stride
        self.sam_prompt_encoder = PromptEncoder(
            embed_dim=sizes.width,
            image_embedding_size=(cells, cells),
            input_image_size=(self.image_size, self.image_size),
            mask_in_chans=16,
        )
        self.sam_mask_decoder = MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(
                depth=2, embedding_dim=sizes.width, mlp_dim=sizes.decoder_hidden, num_heads=sizes.decoder_heads
            ),
            transformer_dim=sizes.width,
            iou_head_depth=3,
            iou_head_hidden_dim=sizes.quality_hidden,
            use_high_res_features=True,
            iou_prediction_use_sigmoid=True,
            pred_obj_scores=True,
            pred_obj_scores_mlp=True,
            use_multimask_token_for_obj_ptr=True,
        )
        for name, layer in self.sam_mask_decoder.transformer.named_modules():
            # from scratch, clicks begin to work only once queries and keys of the cross-attentions agree
            if name.endswith(("token_to_image", "image_to_token")):
                with torch.no_grad():
                    layer.q_proj.weight.mul_(3)
                    layer.k_proj.weight.copy_(layer.q_proj.weight)


def tokens_in_a_row(transformer: nn.Module, given: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Put the channels of the maps last in memory. On a CPU the decoder takes a fifth less time, with equal results."""
    image, position, points = given
    own_codes = getattr(transformer, "own_codes", None)
    position = position if own_codes is None else own_codes
    channels_last = torch.channels_last
    return image.contiguous(memory_format=channels_last), position.contiguous(memory_format=channels_last), points


@contextmanager
def codes_of_images(transformer: Any, codes: Tensor | None) -> Iterator[None]:
    """Give each image a position code of its own (N, D, h, w) in the decoder, which knows one for all; None: that one.

    `tokens_in_a_row` must be a hook of the transformer.
    """
    transformer.own_codes = codes
    try:
        yield
    finally:
        transformer.own_codes = None


class _ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (N, C, h, w). On a CPU it is twice as fast as LayerNorm2d of sam2."""

    def forward(self, maps: Tensor) -> Tensor:
        return super().forward(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _ChannelNorm2d(LayerNorm2d):  # type: ignore[misc]
    """LayerNorm2d of sam2 as one operation instead of nine, in the forward and in the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        last = functional.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, self.eps)
        return last.permute(0, 3, 1, 2)


class _RotaryAttention(RoPEAttention):  # type: ignore[misc]
    """Rotary attention of sam2 on a square grid. Its table of rotations is made on the device that uses it.

    Two faults of sam2 are avoided:

    - The constructor of sam2 puts the table on the first GPU, in every process.
    - sam2 keeps a table that was made in inference mode. Training fails with that table.
    """

    def __init__(self, width: int, key_width: int, dropout: float, *, many_grids: bool) -> None:
        Attention.__init__(self, width, num_heads=1, dropout=dropout, kv_in_dim=key_width)
        self.rope_k_repeat = many_grids
        self.freqs_cis = torch.empty(0)
        self._tables: dict[tuple[int, torch.device], Tensor] = {}  # windows of several sides take turns

    def turns(self, cells: int, device: torch.device) -> Tensor:
        """Return the rotation of each pair of channels for each cell of a grid, (cells, width / 2) complex64."""
        if (cells, device) not in self._tables:
            edge = round(cells**0.5)
            with torch.inference_mode(False):
                self._tables[cells, device] = compute_axial_cis(self.internal_dim, edge, edge).to(device)
        self.freqs_cis = self._tables[cells, device]
        return self.freqs_cis

    def forward(self, q: Tensor, k: Tensor, v: Tensor, num_k_exclude_rope: int = 0) -> Tensor:
        self.turns(q.shape[1], q.device)
        layer = self.v_proj
        while hasattr(layer, "get_base_layer"):  # peft's methods change the weight alone, so the layer stays linear
            layer = layer.base_layer
        narrow = type(layer) is nn.Linear and v.shape[-1] < self.internal_dim
        if narrow and q.device.type == "cpu" and not torch.is_grad_enabled():
            return self._project_last(q, k, v, num_k_exclude_rope)
        answer: Tensor = super().forward(q, k, v, num_k_exclude_rope)
        return answer

    def _project_last(self, query: Tensor, key: Tensor, value: Tensor, unturned: int) -> Tensor:
        """Mix narrow values first, and project their means: weights that sum to 1 commute with a linear layer.

        A memory has 64 channels and a projected value 256. On one core a slice that reads 7 maps of 1,024 cells takes
        a quarter less time.
        """
        query, key = self.q_proj(query).unsqueeze(1), self.k_proj(key).unsqueeze(1)
        on_grid = key.shape[2] - unturned
        query, turned = apply_rotary_enc(query, key[:, :, :on_grid], self.freqs_cis, self.rope_k_repeat)
        key = torch.cat([turned, key[:, :, on_grid:]], 2)
        answer: Tensor = self.out_proj(self.v_proj(mix_values(query.squeeze(1), key.squeeze(1), value)))
        return answer


class _Sine(PositionEmbeddingSine):  # type: ignore[misc]
    """Position codes of sam2: one copy for each grid, device and type, which all images share.

    sam2 itself keeps the codes of all images of its first call, and gives every later image its own copy
    (test_position_codes_of_many_images_are_kept_once).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the codes of maps (N, C, h, w): (N, num_pos_feats, h, w) of their type, a view of one copy."""
        key = (*x.shape[-2:], x.device, x.dtype)
        if key not in self.cache:
            with torch.inference_mode(False):  # training fails with a tensor made in inference mode
                code = self._pe(1, x.device, *x.shape[-2:])
                del self.cache[tuple(x.shape[-2:])]
                self.cache[key] = code[0].to(x.dtype)
        shared_code: Tensor = self.cache[key]
        return shared_code.expand(len(x), -1, -1, -1)


def _sine(width: int) -> PositionEmbeddingSine:
    return _Sine(num_pos_feats=width, normalize=True, scale=None, temperature=10000, warmup_cache=False)


def _memory_attention(sizes: Sizes) -> MemoryAttention:
    layer = MemoryAttentionLayer(
        activation="relu",
        cross_attention=_RotaryAttention(sizes.width, sizes.memory_width, sizes.dropout, many_grids=True),
        d_model=sizes.width,
        dim_feedforward=sizes.attention_hidden,
        dropout=sizes.dropout,
        pos_enc_at_attn=False,
        pos_enc_at_cross_attn_keys=True,
        pos_enc_at_cross_attn_queries=False,
        self_attention=_RotaryAttention(sizes.width, sizes.width, sizes.dropout, many_grids=False),
    )
    return MemoryAttention(d_model=sizes.width, pos_enc_at_input=True, layer=layer, num_layers=sizes.attention_layers)


def _memory_encoder(sizes: Sizes) -> MemoryEncoder:
    block = CXBlock(
        dim=sizes.width, kernel_size=7, padding=3, layer_scale_init_value=sizes.layer_scale, use_dwconv=True
    )
    return MemoryEncoder(
        out_dim=sizes.memory_width,
        mask_downsampler=MaskDownSampler(embed_dim=sizes.width, kernel_size=3, stride=2, padding=1),
        fuser=Fuser(block, num_layers=2),
        position_encoding=_sine(sizes.memory_width),
        in_dim=sizes.width,
    )
