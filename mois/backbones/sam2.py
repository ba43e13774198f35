"""SAM 2.1 behind the `Backbone` interface."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from mois.backbones.attention_stack import AttentionStack
from mois.backbones.frozen_prefix import frozen_blocks, is_trained, run_first, run_rest
from mois.backbones.kept_codes import KeptCodes
from mois.backbones.memory_reading import objects_at_once, read_memory
from mois.backbones.rules import FIRST, SAM2Rules
from mois.backbones.sam2_network import Network, codes_of_images, distance_code, tokens_in_a_row
from mois.backbones.sizes import SIZES
from mois.backbones.weights import load_weights
from mois.interfaces import Backbone, Memory, TrackingRules, with_channels
from mois.records import CERTAIN, Features, MaskPrediction, Prompts


class SAM2(Backbone):
    """A frozen SAM 2.1.

    Args:
        size: Size of the model. `nano` (1.1 M parameters) ships with this package; the other sizes are models of Meta.
        weights: `bundled-2` or the earlier `bundled` (both nano only), `random`, a path to an official checkpoint (.pt)
            or .safetensors, or a hub id such as `facebook/sam2.1-hiera-tiny`.
        patch_px: Edge of the square input in pixels, a multiple of 32; by default the size of the training.
        checkpoint_trunk: Recompute activations of the trunk in the backward pass instead of keeping them. This takes
            about a third more time and much less memory.
        seed: Seed of `random` weights.
        rules: Rules for prompts, masks and memories around the network. Null takes the rules of SAM 2.1 for its sizes,
            and for the nano the rules that it was trained with. A rule that is not named has its SAM 2.1 default.

    Raises:
        ValueError: If the size is unknown, the patch is no multiple of 32, or the weights do not fit the model.

    Source: Ravi et al., SAM 2: Segment Anything in Images and Videos, arXiv 2408.00714.
    """

    pixel_mean: Tensor
    pixel_std: Tensor
    most_channels = 3

    def __init__(
        self,
        size: Literal["nano", "tiny", "small", "base_plus", "large"] = "nano",
        weights: str = "bundled-2",
        patch_px: int | None = None,
        checkpoint_trunk: bool = False,
        seed: int = 0,
        rules: SAM2Rules | None = None,
    ) -> None:
        super().__init__()
        if size not in SIZES:
            raise ValueError(f"backbone.size={size} is none; choose one of {', '.join(SIZES)}.")
        sizes = SIZES[size]
        self.rules = rules if rules is not None else FIRST if size == "nano" else SAM2Rules()
        self.patch_px = sizes.patch_px if patch_px is None else patch_px
        if self.patch_px < 32 or self.patch_px % 32:
            near = max(32, self.patch_px // 32 * 32)
            raise ValueError(f"backbone.patch_px={self.patch_px} is no multiple of 32; choose {near}.")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.sam = Network(sizes, self.patch_px)
        self.identity = load_weights(self.sam, size, weights)
        self.strides = (4, 8, 16)
        self.channels = (sizes.width // 8, sizes.width // 4, sizes.width)
        self.width = sizes.width
        self.memory_width = sizes.memory_width
        mean, std = sizes.statistics
        self.register_buffer("pixel_mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self._codes = KeptCodes()
        self.requires_grad_(False)
        self.eval()
        self.sam.sam_mask_decoder.transformer.register_forward_pre_hook(tokens_in_a_row)
        if checkpoint_trunk:
            for block in self.sam.image_encoder.trunk.blocks:
                block.forward = _recompute(block.forward)

    def train(self, mode: bool = True) -> SAM2:
        """Stay in evaluation mode. The mode of SAM2 only switches dropout, and a frozen model must not be noisy."""
        del mode
        return super().train(False)

    @property
    def tracking(self) -> TrackingRules:  # type: ignore[override]
        """See `Backbone.tracking`."""
        return self.rules.tracking

    def behaviour(self) -> dict[str, Any]:
        """See `Backbone.behaviour`: the rules, or {} for `FIRST`."""
        return self.rules.as_dict()

    def behave(self, behaviour: Mapping[str, Any]) -> None:
        """See `Backbone.behave`."""
        self.rules = SAM2Rules.from_dict(behaviour)

    def encode(self, images: Tensor) -> Features:
        """See `Backbone.encode`."""
        out = self.sam.forward_image(self._seen(images))
        return Features(tuple(out["backbone_fpn"]), out["vision_pos_enc"][-1], with_channels(images))

    def frozen_part(self) -> str:
        """See `Backbone.frozen_part`: `encoder`, or `trunk.N` if the first N blocks of the trunk are frozen."""
        encoder, decoder = self.sam.image_encoder, self.sam.sam_mask_decoder
        blocks = frozen_blocks(encoder.trunk)
        if blocks < len(encoder.trunk.blocks) or is_trained(encoder.neck, decoder.conv_s0, decoder.conv_s1):
            return f"trunk.{blocks}" if blocks else ""
        return "encoder"

    def encoder_tensors(self) -> dict[str, Tensor]:
        """See `Backbone.encoder_tensors`: the encoder, and the decoder's two layers for its fine levels."""
        wanted = tuple(
            f"sam.{part}." for part in ("image_encoder", "sam_mask_decoder.conv_s0", "sam_mask_decoder.conv_s1")
        )
        return {name: tensor for name, tensor in self.state_dict().items() if name.startswith(wanted)}

    def encode_frozen(self, images: Tensor) -> tuple[Tensor, ...]:
        """See `Backbone.encode_frozen`."""
        if self.frozen_part() == "encoder":
            return self.encode(images).levels
        trunk = self.sam.image_encoder.trunk
        return run_first(trunk, self._seen(images), frozen_blocks(trunk))

    def encode_rest(self, images: Tensor, frozen: tuple[Tensor, ...]) -> Features:
        """See `Backbone.encode_rest`."""
        encoder, decoder = self.sam.image_encoder, self.sam.sam_mask_decoder
        if self.frozen_part() == "encoder":
            return Features(frozen, encoder.neck.position_encoding(frozen[-1]), with_channels(images))
        levels, codes = encoder.neck(run_rest(encoder.trunk, frozen, frozen_blocks(encoder.trunk)))
        fine, middle, coarse = levels[: -encoder.scalp]
        seen = (decoder.conv_s0(fine), decoder.conv_s1(middle), coarse)
        return Features(seen, codes[-1 - encoder.scalp], with_channels(images))

    def decode(self, features: Features, prompts: Prompts | None, dense: Tensor | None = None) -> MaskPrediction:
        """See `Backbone.decode`. If SAM2 gives three candidates, the best is taken."""
        coarse = features.levels[-1]
        if not features.conditioned:
            coarse = coarse + self.sam.no_mem_embed.view(1, -1, 1, 1)
        if prompts is not None and prompts.mask_logits is not None and self.rules.mask_limit is not None:
            limited = prompts.mask_logits.clamp(-self.rules.mask_limit, self.rules.mask_limit)
            prompts = prompts._replace(mask_logits=limited)
        several = prompts is not None and prompts.points.shape[1] > 1
        choose = (prompts is not None or features.conditioned) and not several
        choose |= features.conditioned and not self.rules.single_mask
        out = self._through_decoder(features, coarse, prompts, dense)
        if not choose:
            logits = out.masks[:, 0]
            if self.rules.stability_fallback and prompts is not None:
                logits = self.sam.sam_mask_decoder._dynamic_multimask_via_stability(out.masks, out.iou)[0][:, 0]
            pointer = self._pointer(out.tokens[:, 0], out.presence)
            return MaskPrediction(logits, out.masks[:, :1], out.iou[:, :1], pointer, out.presence.squeeze(1))
        candidates, iou = out.masks[:, 1:], out.iou[:, 1:]
        row, best = torch.arange(len(iou), device=iou.device), iou.argmax(dim=1)
        pointer = self._pointer(out.tokens[:, 1:][row, best], out.presence)
        return MaskPrediction(candidates[row, best], candidates, iou, pointer, out.presence.squeeze(1))

    def adopt(self, features: Features, masks: Tensor) -> MaskPrediction:
        """See `Backbone.adopt`."""
        if not self.rules.learned_masks:
            return super().adopt(features, masks)
        masks = masks.unsqueeze(1)
        surest = masks.amax((2, 3), keepdim=True)
        inside = ((masks >= 0.5) | (masks >= surest) & (surest > 0)).to(masks.dtype)  # (N, 1, P, P)
        present = (surest > 0).to(masks.dtype)[:, :, 0, 0]  # (N, 1)
        edge = masks.shape[-1] // 4
        shades = (inside * 2 - 1) * CERTAIN
        logits = functional.interpolate(shades, (edge, edge), mode="bilinear", align_corners=False, antialias=True)
        highest = logits.amax((2, 3), keepdim=True)
        small = (highest <= 0) & (surest > 0)  # a mask smaller than a cell keeps its surest cell
        logits = torch.where(small & (logits == highest), 0.2 * CERTAIN, logits).squeeze(1)
        nowhere = masks.new_zeros(len(masks), 1, 2)
        padding = torch.full((len(masks), 1), -1, dtype=torch.int32, device=masks.device)
        prompts = Prompts(nowhere, padding, self.sam.mask_downsample(inside))
        out = self._through_decoder(features, features.levels[-1], prompts, None)
        pointer = present * self._pointer(out.tokens[:, 0], out.presence) + (1 - present) * self.sam.no_obj_ptr
        presence = (present.squeeze(1) * 2 - 1) * CERTAIN
        return MaskPrediction(logits, logits.unsqueeze(1), torch.ones_like(present), pointer, presence)

    def remember(self, features: Features, logits: Tensor, pointer: Tensor) -> Memory:
        """See `Backbone.remember`."""
        return self._remember(features, self._shades(features, logits), logits.flatten(1).amax(1) > 0, pointer)

    def remember_slice(
        self, features: Features, logits: Tensor, pointer: Tensor, presence: Tensor, *, hard: bool = False
    ) -> Memory:
        """See `Backbone.remember_slice`."""
        mask = self._shades(features, logits, hard=hard and self.rules.hard_clicks)
        if not self.rules.score_presence:
            return self._remember(features, mask, logits.flatten(1).amax(1) > 0, pointer)
        present = presence > 0
        return self._remember(features, mask * present.view(-1, 1, 1, 1), present, pointer)

    def attend(self, features: Features, memory: Memory) -> Features:
        """See `Backbone.attend`."""
        coarse = features.levels[-1]
        tokens, position, pointer_tokens = self._memory_tokens(memory, coarse)
        conditioned = self.sam.memory_attention(
            curr=coarse.flatten(2).permute(2, 0, 1),
            curr_pos=features.position.flatten(2).permute(2, 0, 1),
            memory=tokens.transpose(0, 1),
            memory_pos=position.transpose(0, 1),
            num_obj_ptr_tokens=pointer_tokens,
        )
        levels = (*features.levels[:-1], conditioned.permute(1, 2, 0).reshape(coarse.shape))
        return features._replace(levels=levels, conditioned=True)

    def attend_on(self, features: Features, image: Tensor | None, memory: Memory) -> Features:
        """See `Backbone.attend_on`."""
        if torch.is_grad_enabled():
            return super().attend_on(features, image, memory)
        coarse = features.levels[-1]
        tokens, position, pointer_tokens = self._memory_tokens(memory, coarse)
        query, code = (part.flatten(2).transpose(1, 2) for part in (coarse, features.position))
        read = read_memory(self.sam.memory_attention, query, code, image, tokens, position, pointer_tokens)
        conditioned = read.transpose(1, 2).reshape(-1, *coarse.shape[1:])
        picked = features._replace(levels=features.levels[:-1])
        picked = picked if image is None else picked.select(image)
        return picked._replace(levels=(*picked.levels, conditioned), conditioned=True)

    def _memory_tokens(self, memory: Memory, coarse: Tensor) -> tuple[Tensor, Tensor, int]:
        """Return the remembered tokens (N, L, M), their codes (N, L, M), and how many of the last are pointers."""
        batch, count, width = memory.pointers.shape
        last = self.sam.num_maskmem - 1
        order = [
            last if hit else min(abs(step), last) - 1 for step, hit in zip(memory.distance, memory.clicked, strict=True)
        ]
        # views and fills: tensors made from lists would be copies, for which the host waits
        when = torch.cat([self.sam.maskmem_tpos_enc[row] for row in order]).unsqueeze(0)  # (1, T, 1, M)
        position = memory.position.flatten(3).transpose(2, 3) + when  # (N, T, h * w, M)
        code = self._distance_code(memory, width).to(coarse.dtype)
        split = width // self.memory_width
        pointer_code = self.sam.obj_ptr_tpos_proj(code).repeat_interleave(split, 0).expand(batch, -1, -1)
        pointers = memory.pointers.reshape(batch, count * split, self.memory_width)
        tokens = torch.cat([memory.maps.flatten(3).transpose(2, 3).flatten(1, 2), pointers], 1)
        return tokens, torch.cat([position.flatten(1, 2), pointer_code], 1), count * split

    def _distance_code(self, memory: Memory, width: int) -> Tensor:
        """Return the codes of the distances of the pointers, (R, width)."""
        farthest, device = self._farthest(memory), memory.pointers.device

        def code() -> Tensor:  # of fills: a tensor made from a list would be a copy, for which the host waits
            steps = torch.cat([torch.full((1,), float(step), device=device) for step in memory.pointer_steps])
            return distance_code(steps / farthest, width)

        return self._codes.get(("distance", memory.pointer_steps, farthest, width), device, code)

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

    def _seen(self, images: Tensor) -> Tensor:
        """Return the input of the trunk (N, 3, P, P): one channel three times, or two as first, first, second."""
        if self.rules.intensity_limit is not None:
            images = images.clamp(0, self.rules.intensity_limit)
        images = with_channels(images)
        if images.shape[1] == 2:
            images = torch.cat([images[:, :1], images], dim=1)
        return (images - self.pixel_mean) / self.pixel_std

    def _through_decoder(
        self, features: Features, coarse: Tensor, prompts: Prompts | None, dense: Tensor | None
    ) -> _Decoded:
        """Return the output of the mask decoder for a coarsest level (N, D, h, w)."""
        fine, middle, _ = features.levels
        patch_px = features.image.shape[-1]
        sparse, dense_prompt = self._embed_prompts(prompts, len(coarse), patch_px)
        if dense is not None:
            dense_prompt = dense_prompt + dense
        own_codes = None
        if features.windows is not None:
            own_codes = features.windows.cut(self._grid_code(features.windows.tile_px)[0], patch_px // 16)
        with codes_of_images(self.sam.sam_mask_decoder.transformer, own_codes):
            masks, iou, tokens, presence = self.sam.sam_mask_decoder.predict_masks(
                image_embeddings=coarse,
                image_pe=self._grid_code(patch_px),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense_prompt,
                repeat_image=False,
                high_res_features=[fine, middle],
            )
        return _Decoded(masks, iou, tokens, presence)

    def _pointer(self, token: Tensor, presence: Tensor) -> Tensor:
        """Return pointers (N, D) of tokens (N, D). A score (N, 1) not above 0 gives the pointer of no object."""
        return torch.where(presence > 0, self.sam.obj_ptr_proj(token), self.sam.no_obj_ptr)

    def _shades(self, features: Features, logits: Tensor, *, hard: bool = False) -> Tensor:
        """Return masks (N, 1, P, P), 0 to 1, from logits (N, P / 4, P / 4)."""
        patch_px = features.image.shape[-1]
        large = functional.interpolate(logits.unsqueeze(1).float(), (patch_px, patch_px), mode="bilinear")
        return (large > 0).float() if hard else large.sigmoid()

    def _remember(self, features: Features, mask: Tensor, present: Tensor, pointer: Tensor) -> Memory:
        """Return the memory of masks (N, 1, P, P), 0 to 1. `present` (N,) bool says whether the object is present."""
        mask = mask * self.sam.sigmoid_scale_for_mem_enc + self.sam.sigmoid_bias_for_mem_enc
        seen = self._memory_maps(features.levels[-1], mask.to(features.levels[-1].dtype))
        maps = torch.where(present.view(-1, 1, 1, 1), seen, seen + self.sam.no_obj_embed_spatial.view(1, -1, 1, 1))
        codes = self.sam.memory_encoder.position_encoding
        position = codes(seen)  # of the type of the computed maps, which bfloat16 halves
        if features.windows is not None:
            edge = features.windows.tile_px // 16
            code = codes(maps[:1, :, :1, :1].expand(1, -1, edge, edge))[0]
            position = features.windows.cut(code, maps.shape[-1])
        return Memory(maps.unsqueeze(1), position.unsqueeze(1), pointer.unsqueeze(1))

    def _memory_maps(self, coarse: Tensor, mask: Tensor) -> Tensor:
        """Return the maps (N, M, h, w) of masks (N, 1, P, P). On a CPU without gradient, few are computed at once."""
        encoder, at_once = self.sam.memory_encoder, max(1, len(coarse))
        if not torch.is_grad_enabled():
            widest = 4 * coarse.shape[1:].numel()  # of the blocks that fuse picture and mask
            at_once = objects_at_once(len(coarse), widest, coarse.device)
        parts = [
            encoder(*part, skip_mask_sigmoid=True)["vision_features"]
            for part in zip(torch.split(coarse, at_once), torch.split(mask, at_once), strict=True)
        ]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _farthest(self, memory: Memory) -> int:
        """Return the distance of a pointer that is coded as 1."""
        most: int = self.sam.max_obj_ptrs_in_encoder
        if self.rules.scaled_pointers and memory.slices is not None:
            most = max(2, min(most, memory.slices))
        return most - 1

    def _embed_prompts(self, prompts: Prompts | None, batch: int, patch_px: int) -> tuple[Tensor, Tensor]:
        encoder = self.sam.sam_prompt_encoder
        encoder.input_image_size = (patch_px, patch_px)  # sam2 sets these once; any size works
        encoder.image_embedding_size = (patch_px // 16, patch_px // 16)
        if prompts is None:
            if not torch.is_grad_enabled():  # what the encoder gives for two points of padding
                dense = encoder.no_mask_embed.weight.view(1, -1, 1, 1)
                edge = patch_px // 16
                return encoder.not_a_point_embed.weight.expand(batch, 2, -1), dense.expand(batch, -1, edge, edge)
            device = encoder.no_mask_embed.weight.device
            points = torch.zeros(batch, 1, 2, device=device)
            prompts = Prompts(points, torch.full((batch, 1), -1, dtype=torch.int32, device=device))
        sparse, dense = encoder(points=(prompts.points, prompts.labels), boxes=None, masks=prompts.mask_logits)
        return sparse, dense

    def _grid_code(self, patch_px: int) -> Tensor:
        """Return the code of the decoder for the cells of a patch, (1, D, P / 16, P / 16)."""
        layer = self.sam.sam_prompt_encoder.pe_layer
        matrix = layer.positional_encoding_gaussian_matrix
        edge = patch_px // 16
        return self._codes.get(("grid", edge), matrix.device, lambda: layer((edge, edge)).unsqueeze(0), matrix)


def _recompute(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return partial(checkpoint, forward, use_reentrant=False)  # type: ignore[return-value]


class _Decoded(NamedTuple):
    """Output of the mask decoder: masks (N, 4, P / 4, P / 4), iou (N, 4), tokens (N, 4, D), presence (N, 1)."""

    masks: Tensor
    iou: Tensor
    tokens: Tensor
    presence: Tensor
