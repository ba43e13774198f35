"""The paper's exemplar attention, without the faults of its reference code."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from mois.interfaces import Backbone, Exemplars, Features, Prompts, Propagation, SemanticPrediction
from mois.propagation.pooling import is_present
from mois.propagation.weights import load_propagation


class Attention(Propagation):
    """Every query token attends to SAM2 memory maps and object pointers of all exemplars; SAM2's decoder answers.

    An exemplar is a whole memory map, as in the paper. Unlike the reference code, exemplars keep their gradient, a
    batch holds different exemplars per query, any size of input works, the empty bank has an embedding of its own that
    does not depend on size, presence is supervised instead of gating the mask, and distance between slices plays
    no part.

    Args:
        rotary_keys: Turn queries and keys by their place on the grid, as the paper does. It draws the attention to the
            same place in the exemplar's slice, which says nothing about likeness; hence off by default.
        tokens: `dense`, every token of a memory map, as in the paper; or `foreground`, those on and around the lesion.
        initial: Start from the backbone's own memory attention, as the paper does, or at random.
        weights: `random` (only the attention may start from the backbone's, see above), `bundled` (pretrained with the
            bundled nano) or a path.

    Source: MOIS-SAM2, arXiv 2509.19277, exemplar attention.
    """

    def __init__(
        self,
        rotary_keys: bool = False,
        tokens: Literal["dense", "foreground"] = "dense",
        initial: Literal["memory_attention", "random"] = "memory_attention",
        weights: str = "random",
    ) -> None:
        super().__init__()
        self.rotary_keys = rotary_keys
        self.kept_tokens = tokens
        self.initial = initial
        self.weights = weights

    def build(self, backbone: Backbone) -> None:
        """Copy the backbone's memory attention and add what tells exemplars apart."""
        self.stack = backbone.attention_stack(rotary_keys=self.rotary_keys)
        if self.initial == "random":
            for layer in self.stack.modules():
                if isinstance(layer, nn.Linear | nn.LayerNorm):
                    layer.reset_parameters()
        self.sign = nn.Parameter(0.02 * torch.randn(2, backbone.memory_width))
        self.no_exemplar = nn.Parameter(0.02 * torch.randn(backbone.width))
        self.presence = nn.Sequential(nn.Linear(2 * backbone.width, 64), nn.GELU(), nn.Linear(64, 1))
        cells = (backbone.patch_px // 16) ** 2
        self.bytes_per_exemplar = 4 * (cells * (2 * backbone.memory_width + 1) + backbone.width)
        load_propagation(self, self.weights, backbone)

    def describe(self, features: Features, masks: Tensor, backbone: Backbone) -> Exemplars:
        """Keep the memory map, the pointer that SAM2 gives for this mask, and which tokens lie on the lesion."""
        logits = 20.0 * functional.avg_pool2d(masks.unsqueeze(1), 4) - 10.0
        no_clicks = torch.full((masks.shape[0], 2), -1, device=masks.device, dtype=torch.int32)  # two: a single answer
        pointer = backbone.decode(features, Prompts(masks.new_zeros(*no_clicks.shape, 2), no_clicks, logits)).pointer
        memory = backbone.remember(features, logits.squeeze(1), pointer)
        near = functional.max_pool2d(functional.max_pool2d(masks.unsqueeze(1), 16), 3, stride=1, padding=1)
        present = is_present(masks)
        return Exemplars(
            {"map": memory.maps, "position": memory.position, "pointer": memory.pointers, "near": near},
            present,
            torch.zeros_like(present),
        )

    def forward(self, features: Features, exemplars: Exemplars, backbone: Backbone) -> SemanticPrediction:
        """Condition the query on all exemplars at once and decode the union of what is like them."""
        features = features.repeat(exemplars.valid.shape[0] // features.image.shape[0])
        coarse = features.levels[-1]
        conditioned = coarse + self.no_exemplar.view(1, -1, 1, 1)
        if exemplars.count:
            some = exemplars.present.any(1).view(-1, 1, 1, 1)
            conditioned = torch.where(some, self._attend(features, exemplars), conditioned)
        tokens = conditioned.flatten(2)
        pooled = torch.cat([tokens.mean(2), tokens.amax(2)], dim=1)
        answer = backbone.decode(features._replace(levels=(*features.levels[:-1], conditioned)), None)
        patch_px = features.image.shape[-1]
        logits = functional.interpolate(answer.logits.unsqueeze(1), (patch_px, patch_px), mode="bilinear").squeeze(1)
        return SemanticPrediction(logits, self.presence(pooled).squeeze(1))

    def _attend(self, features: Features, exemplars: Exemplars) -> Tensor:
        coarse = features.levels[-1]
        maps, position = exemplars.tokens["map"], exemplars.tokens["position"]
        batch, count, memory_width = maps.shape[:3]
        keep = exemplars.present.unsqueeze(2).expand(-1, -1, maps[0, 0, 0].numel())  # (B, K, h * w)
        if self.kept_tokens == "foreground":
            keep = keep & (exemplars.tokens["near"].flatten(2) > 0.1)
        sign = self.sign[exemplars.negative.long()].unsqueeze(2)  # (B, K, 1, M)
        grid = maps.flatten(3).transpose(2, 3)
        grid_position = position.flatten(3).transpose(2, 3) + sign
        pointers = exemplars.tokens["pointer"].reshape(batch, count, -1, memory_width)
        split = pointers.shape[2]
        # a row without exemplars attends to padding; its result is discarded, but softmax needs something to sum
        pointer_keep = (exemplars.present | ~exemplars.present.any(1, keepdim=True)).unsqueeze(2).expand(-1, -1, split)
        # a weight counts like so many of the same exemplar, all of whose tokens are in the softmax
        times = exemplars.weight.clamp(min=1e-4).log().unsqueeze(2)
        never = times.new_tensor(-torch.inf)
        key_mask = [torch.where(part, times, never).flatten(1) for part in (keep, pointer_keep)]
        out: Tensor = self.stack(
            coarse.flatten(2).transpose(1, 2),
            features.position.flatten(2).transpose(1, 2),
            torch.cat([grid.flatten(1, 2), pointers.flatten(1, 2)], dim=1),
            torch.cat([grid_position.flatten(1, 2), sign.expand(-1, -1, split, -1).flatten(1, 2)], dim=1),
            count * split,
            torch.cat(key_mask, dim=1),
        )
        return out.transpose(1, 2).reshape(coarse.shape)
