"""SAM 2.1 behind the `Backbone` interface. The only file that imports sam2."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from sam2.modeling.backbones.hieradet import Hiera
from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder
from sam2.modeling.memory_attention import MemoryAttention, MemoryAttentionLayer
from sam2.modeling.memory_encoder import CXBlock, Fuser, MaskDownSampler, MemoryEncoder
from sam2.modeling.position_encoding import PositionEmbeddingSine, compute_axial_cis
from sam2.modeling.sam.mask_decoder import MaskDecoder
from sam2.modeling.sam.prompt_encoder import PromptEncoder
from sam2.modeling.sam.transformer import Attention, RoPEAttention, TwoWayTransformer
from sam2.modeling.sam2_base import SAM2Base
from sam2.modeling.sam2_utils import get_1d_sine_pe
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from mois.backbones.attention_stack import AttentionStack
from mois.backbones.frozen_prefix import frozen_blocks, is_trained, run_first, run_rest
from mois.backbones.sizes import SIZES, Sizes
from mois.backbones.weights import load_weights
from mois.interfaces import Backbone, Features, MaskPrediction, Memory, Prompts


class SAM2(Backbone):
    """A frozen SAM 2.1.

    Args:
        size: Which model; `nano` (1.1 M parameters) ships with this package, the others are Meta's.
        weights: `bundled` (nano only), `random`, a path to an official checkpoint (.pt) or .safetensors, or a hub id
            such as `facebook/sam2.1-hiera-tiny`.
        patch_px: Edge of the square input, a multiple of 32; by default what the model was trained at.
        checkpoint_trunk: Recompute the trunk's activations in the backward pass instead of keeping them: about a third
            more time, a fraction of the memory.
        seed: Of the weights where they are `random`.

    Raises:
        ValueError: If the patch is no multiple of 32, or the weights do not match the model tensor for tensor.

    Source: Ravi et al., SAM 2: Segment Anything in Images and Videos, arXiv 2408.00714.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        size: Literal["nano", "tiny", "small", "base_plus", "large"] = "nano",
        weights: str = "bundled",
        patch_px: int | None = None,
        checkpoint_trunk: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        sizes = SIZES[size]
        self.patch_px = sizes.patch_px if patch_px is None else patch_px
        if self.patch_px % 32:
            raise ValueError(
                f"backbone.patch_px={self.patch_px} is no multiple of 32; choose {self.patch_px // 32 * 32}."
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.sam = _Sam(sizes, self.patch_px)
        self.identity = load_weights(self.sam, size, weights)
        self.strides = (4, 8, 16)
        self.channels = (sizes.width // 8, sizes.width // 4, sizes.width)
        self.width = sizes.width
        self.memory_width = sizes.memory_width
        mean, std = sizes.statistics
        self.register_buffer("pixel_mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()
        self.sam.sam_mask_decoder.transformer.register_forward_pre_hook(_tokens_in_a_row)
        if checkpoint_trunk:
            for block in self.sam.image_encoder.trunk.blocks:
                block.forward = _recompute(block.forward)

    def train(self, mode: bool = True) -> SAM2:
        """Stay in evaluation mode: SAM2 has only dropout to switch, and a frozen model is not to be noisy."""
        del mode
        return super().train(False)

    def encode(self, images: Tensor) -> Features:
        """See `Backbone.encode`."""
        image = images.unsqueeze(1)
        out = self.sam.forward_image((image - self.pixel_mean) / self.pixel_std)
        return Features(tuple(out["backbone_fpn"]), out["vision_pos_enc"][-1], image)

    def frozen_part(self) -> str:
        """See `Backbone.frozen_part`: `encoder`, or `trunk.N` where the first N blocks of the trunk are."""
        encoder, decoder = self.sam.image_encoder, self.sam.sam_mask_decoder
        blocks = frozen_blocks(encoder.trunk)
        if blocks < len(encoder.trunk.blocks) or is_trained(encoder.neck, decoder.conv_s0, decoder.conv_s1):
            return f"trunk.{blocks}" if blocks else ""
        return "encoder"

    def encode_frozen(self, images: Tensor) -> tuple[Tensor, ...]:
        """See `Backbone.encode_frozen`."""
        if self.frozen_part() == "encoder":
            return self.encode(images).levels
        trunk = self.sam.image_encoder.trunk
        return run_first(trunk, (images.unsqueeze(1) - self.pixel_mean) / self.pixel_std, frozen_blocks(trunk))

    def encode_rest(self, images: Tensor, frozen: tuple[Tensor, ...]) -> Features:
        """See `Backbone.encode_rest`."""
        encoder, decoder = self.sam.image_encoder, self.sam.sam_mask_decoder
        if self.frozen_part() == "encoder":
            return Features(frozen, encoder.neck.position_encoding(frozen[-1]), images.unsqueeze(1))
        levels, codes = encoder.neck(run_rest(encoder.trunk, frozen, frozen_blocks(encoder.trunk)))
        fine, middle, coarse = levels[: -encoder.scalp]
        seen = (decoder.conv_s0(fine), decoder.conv_s1(middle), coarse)
        return Features(seen, codes[-1 - encoder.scalp], images.unsqueeze(1))

    def decode(self, features: Features, prompts: Prompts | None, dense: Tensor | None = None) -> MaskPrediction:
        """See `Backbone.decode`; the best of three candidates is taken where SAM2 gives three."""
        fine, middle, coarse = features.levels
        batch, patch_px = coarse.shape[0], features.image.shape[-1]
        if not features.conditioned:
            coarse = coarse + self.sam.no_mem_embed.view(1, -1, 1, 1)
        sparse, dense_prompt = self._embed_prompts(prompts, batch, patch_px)
        if dense is not None:
            dense_prompt = dense_prompt + dense
        multimask = features.conditioned or (prompts is not None and prompts.points.shape[1] <= 1)
        candidates, iou, tokens, presence = self.sam.sam_mask_decoder(
            image_embeddings=coarse,
            image_pe=self._grid_code(patch_px),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense_prompt,
            multimask_output=multimask,
            repeat_image=False,
            high_res_features=[fine, middle],
        )
        row = torch.arange(batch, device=coarse.device)
        best = iou.argmax(dim=1)
        token = tokens[row, best] if tokens.shape[1] > 1 else tokens[:, 0]
        seen = (presence > 0).to(token.dtype)
        pointer = seen * self.sam.obj_ptr_proj(token) + (1 - seen) * self.sam.no_obj_ptr
        return MaskPrediction(candidates[row, best], candidates, iou, pointer, presence.squeeze(1))

    def remember(self, features: Features, logits: Tensor, pointer: Tensor) -> Memory:
        """See `Backbone.remember`."""
        patch_px = features.image.shape[-1]
        large = functional.interpolate(logits.unsqueeze(1).float(), (patch_px, patch_px), mode="bilinear")
        mask = large.sigmoid() * self.sam.sigmoid_scale_for_mem_enc + self.sam.sigmoid_bias_for_mem_enc
        out = self.sam.memory_encoder(features.levels[-1], mask.to(features.levels[-1].dtype), skip_mask_sigmoid=True)
        absent = (logits.flatten(1).amax(1) <= 0).to(out["vision_features"].dtype).view(-1, 1, 1, 1)
        maps = out["vision_features"] + absent * self.sam.no_obj_embed_spatial.view(1, -1, 1, 1)
        return Memory(maps.unsqueeze(1), out["vision_pos_enc"][0].unsqueeze(1), pointer.unsqueeze(1))

    def attend(self, features: Features, memory: Memory) -> Features:
        """See `Backbone.attend`."""
        coarse = features.levels[-1]
        batch, slices, width = memory.pointers.shape
        last = self.sam.num_maskmem - 1
        order = [
            last if hit else min(abs(step), last) - 1 for step, hit in zip(memory.distance, memory.clicked, strict=True)
        ]
        # rows as views and numbers as fills: from lists, both would be copies for which the host waits
        when = torch.cat([self.sam.maskmem_tpos_enc[place] for place in order]).unsqueeze(0)  # (1, T, 1, M)
        position = memory.position.flatten(3).transpose(2, 3) + when  # (N, T, h * w, M)
        steps = torch.cat([torch.full((1,), float(step), device=coarse.device) for step in memory.distance])
        code = get_1d_sine_pe(steps / (self.sam.max_obj_ptrs_in_encoder - 1), dim=width).to(coarse.dtype)
        split = width // self.memory_width
        pointer_code = self.sam.obj_ptr_tpos_proj(code).repeat_interleave(split, 0).expand(batch, -1, -1)
        pointers = memory.pointers.reshape(batch, slices * split, self.memory_width)
        conditioned = self.sam.memory_attention(
            curr=coarse.flatten(2).permute(2, 0, 1),
            curr_pos=features.position.flatten(2).permute(2, 0, 1),
            memory=torch.cat([memory.maps.flatten(3).transpose(2, 3).flatten(1, 2), pointers], 1).transpose(0, 1),
            memory_pos=torch.cat([position.flatten(1, 2), pointer_code], 1).transpose(0, 1),
            num_obj_ptr_tokens=slices * split,
        )
        levels = (*features.levels[:-1], conditioned.permute(1, 2, 0).reshape(coarse.shape))
        return features._replace(levels=levels, conditioned=True)

    def attention_stack(self, *, rotary_keys: bool = True) -> nn.Module:
        """See `Backbone.attention_stack`."""
        return AttentionStack(copy.deepcopy(self.sam.memory_attention), rotary_keys)

    def weights(self) -> dict[str, Tensor]:
        """See `Backbone.weights`."""
        tensors: dict[str, Tensor] = self.sam.state_dict()
        return tensors

    def parts(self) -> dict[str, nn.Module]:
        """See `Backbone.parts`."""
        return {
            "trunk": self.sam.image_encoder.trunk,
            "neck": self.sam.image_encoder.neck,
            "memory_attention": self.sam.memory_attention,
            "memory_encoder": self.sam.memory_encoder,
            "decoder": self.sam.sam_mask_decoder,
            "prompt_encoder": self.sam.sam_prompt_encoder,
        }

    def _embed_prompts(self, prompts: Prompts | None, batch: int, patch_px: int) -> tuple[Tensor, Tensor]:
        encoder = self.sam.sam_prompt_encoder
        encoder.input_image_size = (patch_px, patch_px)  # sam2 fixes these when it is built; any size works
        encoder.image_embedding_size = (patch_px // 16, patch_px // 16)
        if prompts is None:
            device = encoder.no_mask_embed.weight.device
            points = torch.zeros(batch, 1, 2, device=device)
            prompts = Prompts(points, torch.full((batch, 1), -1, dtype=torch.int32, device=device))
        sparse, dense = encoder(points=(prompts.points, prompts.labels), boxes=None, masks=prompts.mask_logits)
        return sparse, dense

    def _grid_code(self, patch_px: int) -> Tensor:
        code: Tensor = self.sam.sam_prompt_encoder.pe_layer((patch_px // 16, patch_px // 16)).unsqueeze(0)
        return code


class _Sam(SAM2Base):  # type: ignore[misc]
    """sam2's model with head sizes that it does not let one choose; tensors are named as in official checkpoints."""

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


def _tokens_in_a_row(_: nn.Module, given: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Lay the decoder's maps out as the tokens that it takes them for: a fifth off its time on a CPU, same answer."""
    image, position, points = given
    channels_last = torch.channels_last
    return image.contiguous(memory_format=channels_last), position.contiguous(memory_format=channels_last), points


class _ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (N, C, h, w); sam2's LayerNorm2d in twice the speed on a CPU."""

    def forward(self, maps: Tensor) -> Tensor:
        return super().forward(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _RotaryAttention(RoPEAttention):  # type: ignore[misc]
    """sam2's attention between places of a square grid, whose table of turns is made where and when it is used.

    sam2's own constructor puts the table on the first GPU, from every process; and sam2 keeps one that was made in
    inference mode, with which nothing can be trained any more.
    """

    def __init__(self, width: int, key_width: int, dropout: float, *, many_grids: bool) -> None:
        Attention.__init__(self, width, num_heads=1, dropout=dropout, kv_in_dim=key_width)
        self.rope_k_repeat = many_grids
        self.freqs_cis = torch.empty(0)

    def turns(self, cells: int, device: torch.device) -> Tensor:
        """Return by how much each cell of a grid turns pairs of channels, (cells, width / 2) complex64."""
        if len(self.freqs_cis) != cells or self.freqs_cis.device != device:
            edge = round(cells**0.5)
            with torch.inference_mode(False):
                self.freqs_cis = compute_axial_cis(self.internal_dim, edge, edge).to(device)
        return self.freqs_cis

    def forward(self, q: Tensor, k: Tensor, v: Tensor, num_k_exclude_rope: int = 0) -> Tensor:
        self.turns(q.shape[1], q.device)
        answer: Tensor = super().forward(q, k, v, num_k_exclude_rope)
        return answer


class _Sine(PositionEmbeddingSine):  # type: ignore[misc]
    """sam2's codes of places, kept on the device that uses them; sam2 would copy them there every time."""

    def _pe(self, batch: int, device: torch.device, *size: int) -> Tensor:
        if size in self.cache:
            self.cache[size] = self.cache[size].to(device)
        codes: Tensor = super()._pe(batch, device, *size)
        return codes


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


def _recompute(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return partial(checkpoint, forward, use_reentrant=False)  # type: ignore[return-value]
