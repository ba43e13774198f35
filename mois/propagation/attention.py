"""The exemplar attention of the MOIS-SAM2 paper, without the faults of its reference code."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from mois.errors import check_choice
from mois.interfaces import Backbone, Propagation
from mois.propagation.pooling import is_present
from mois.propagation.shared_keys import SharedKeys
from mois.propagation.weights import load_propagation
from mois.records import Exemplars, Features, Prompts, SemanticPrediction

MAX_FOREGROUND_BYTES = 16 << 10
"""Upper limit of the size of an exemplar with `tokens=foreground`."""


class Attention(Propagation):
    """Every token of the query attends to the SAM2 memory maps and object pointers of all exemplars.

    SAM2's decoder then turns the attended features into a mask. An exemplar is a whole memory map, as in the paper.
    Six things differ from the reference code:

    - Exemplars keep their gradient.
    - Each query of a batch has its own exemplars.
    - Any size of input works.
    - An empty bank has a learned embedding, which does not depend on the size of the input.
    - Presence is supervised. It does not gate the mask.
    - The distance between slices plays no part.

    With `keys=shared` the attention is repaired: queries and keys have one projection, values carry the mask, and
    position plays no part (`mois.propagation.shared_keys`). The other options are for `keys=memory` alone.

    Args:
        rotary_keys: Rotate queries and keys by their position on the grid, as the paper does. Rotation favours the
            same position in the slice of the exemplar. Position says nothing about likeness, so the default is off.
        tokens: `dense` keeps every token of a memory map, as in the paper. `foreground` keeps only the tokens on and
            around the lesion, up to 16 KiB. Of a larger lesion it keeps evenly spread tokens.
        initial: Start from the memory attention of the backbone, as the paper does, or at random.
        weights: `random` (the attention itself starts as `initial` says), `bundled` (pretrained with the bundled nano;
            for `keys=memory`) or a path.
        keys: `memory` attends to memory maps, as in the paper. `shared` attends to single cells inside and around the
            lesion under a projection that queries and keys share, at most 16 KiB an exemplar.

    Source: MOIS-SAM2, arXiv 2509.19277, exemplar attention.
    """

    def __init__(
        self,
        rotary_keys: bool = False,
        tokens: Literal["dense", "foreground"] = "dense",
        initial: Literal["memory_attention", "random"] = "memory_attention",
        weights: str = "random",
        keys: Literal["memory", "shared"] = "memory",
    ) -> None:
        super().__init__()
        check_choice("propagation.tokens", tokens, ("dense", "foreground"))
        check_choice("propagation.initial", initial, ("memory_attention", "random"))
        check_choice("propagation.keys", keys, ("memory", "shared"))
        if keys == "shared":
            _refuse_options_of_memory_keys(rotary_keys, tokens, initial, weights)
        self.keys = keys
        self.rotary_keys = rotary_keys
        self.kept_tokens = tokens
        self.initial = initial
        self.weights = weights

    def build(self, backbone: Backbone) -> None:
        """Copy the memory attention of the backbone, and add embeddings for sign and for an empty bank.

        With shared keys, make the layers of those instead.
        """
        if self.keys == "shared":
            self.shared = SharedKeys(backbone)
            self.bytes_per_exemplar = self.shared.bytes_per_exemplar
            load_propagation(self, self.weights, backbone)
            return
        self.stack = backbone.attention_stack(rotary_keys=self.rotary_keys)
        if self.initial == "random":
            for layer in self.stack.modules():
                if isinstance(layer, nn.Linear | nn.LayerNorm):
                    layer.reset_parameters()
        self.sign = nn.Parameter(0.02 * torch.randn(2, backbone.memory_width))
        self.no_exemplar = nn.Parameter(0.02 * torch.randn(backbone.width))
        self.presence = nn.Sequential(nn.Linear(2 * backbone.width, 64), nn.GELU(), nn.Linear(64, 1))
        token = 4 * (2 * backbone.memory_width + 1)
        self.most = (MAX_FOREGROUND_BYTES - 4 * backbone.width) // token
        cells = (backbone.patch_px // 16) ** 2
        kept = cells if self.kept_tokens == "dense" else min(self.most, cells)
        self.bytes_per_exemplar = kept * token + 4 * backbone.width
        load_propagation(self, self.weights, backbone)

    def describe(self, features: Features, masks: Tensor, backbone: Backbone) -> Exemplars:
        """Keep the tokens of the memory map with their position code, and the pointer of SAM2 for this mask.

        With shared keys, keep single cells in and around the lesion.
        """
        if self.keys == "shared":
            return self.shared.describe_on(features, torch.arange(len(masks), device=masks.device), masks)
        logits = 20.0 * functional.avg_pool2d(masks.unsqueeze(1), 4) - 10.0
        # two clicks: SAM2 gives one mask
        no_clicks = torch.full((masks.shape[0], 2), -1, device=masks.device, dtype=torch.int32)
        pointer = backbone.decode(features, Prompts(masks.new_zeros(*no_clicks.shape, 2), no_clicks, logits)).pointer
        memory = backbone.remember(features, logits.squeeze(1), pointer)
        maps, position = (part.flatten(3).transpose(2, 3) for part in (memory.maps, memory.position))
        cells = torch.arange(maps.shape[2], device=masks.device).expand(len(masks), -1)
        if self.kept_tokens == "foreground":
            cells = _foreground(masks, self.most)
            index = cells.clamp(min=0)[:, None, :, None].expand(-1, -1, -1, maps.shape[3])
            maps, position = maps.gather(2, index), position.gather(2, index)  # (N, 1, T, M)
        tokens = {"map": maps, "position": position, "cell": cells.float().unsqueeze(1), "pointer": memory.pointers}
        present = is_present(masks)
        return Exemplars(tokens, present, torch.zeros_like(present))

    def describe_on(self, features: Features, image: Tensor, masks: Tensor, backbone: Backbone) -> Exemplars:
        """Describe M lesions on N images. With shared keys, embed each image only once."""
        if self.keys == "shared":
            return self.shared.describe_on(features, image, masks)
        return super().describe_on(features, image, masks, backbone)

    @property
    def merges(self) -> bool:
        """Whether `condense` merges exemplars: with shared keys."""
        return self.keys == "shared"

    def condense(self, exemplars: Exemplars, most: int) -> Exemplars:
        """With shared keys, merge the exemplars that look most alike. Memory maps are not merged."""
        return self.shared.condense(exemplars, most) if self.merges else exemplars

    def prepare(self, exemplars: Exemplars) -> Exemplars:
        """Drop the token slots that no exemplar fills."""
        if self.keys == "shared" or self.kept_tokens == "dense" or exemplars.count == 0:
            return exemplars
        filled = (exemplars.tokens["cell"] >= 0).sum(2) * exemplars.present  # the zeros of padding look like cells
        longest = max(1, int(filled.amax()))  # the only wait for the device, once per bank
        short = {name: exemplars.tokens[name][:, :, :longest] for name in ("map", "position", "cell")}
        return exemplars.map(exemplars.tokens | short)

    def forward(self, features: Features, exemplars: Exemplars, backbone: Backbone) -> SemanticPrediction:
        """Condition the query on all exemplars at once, and decode the union of all lesions that look like them."""
        if self.keys == "shared":
            answer_of_shared: SemanticPrediction = self.shared(features, exemplars, backbone)
            return answer_of_shared
        features = features.repeat(exemplars.valid.shape[0] // features.image.shape[0])
        coarse = features.levels[-1]
        conditioned = coarse + self.no_exemplar.view(1, -1, 1, 1)
        if exemplars.count:
            has_exemplars = exemplars.present.any(1).view(-1, 1, 1, 1)
            conditioned = torch.where(has_exemplars, self._attend(features, exemplars), conditioned)
        tokens = conditioned.flatten(2)
        pooled = torch.cat([tokens.mean(2), tokens.amax(2)], dim=1)
        answer = backbone.decode(features._replace(levels=(*features.levels[:-1], conditioned)), None)
        patch_px = features.image.shape[-1]
        logits = functional.interpolate(answer.logits.unsqueeze(1), (patch_px, patch_px), mode="bilinear").squeeze(1)
        return SemanticPrediction(logits, self.presence(pooled).squeeze(1))

    def _attend(self, features: Features, exemplars: Exemplars) -> Tensor:
        coarse = features.levels[-1]
        maps, position = exemplars.tokens["map"], exemplars.tokens["position"]  # (B, K, T, M)
        batch, count, _, memory_width = maps.shape
        cells = exemplars.tokens["cell"]  # (B, K, T)
        keep = exemplars.present.unsqueeze(2) & (cells >= 0)
        sign = self.sign[exemplars.negative.long()].unsqueeze(2)  # (B, K, 1, M)
        pointers = exemplars.tokens["pointer"].reshape(batch, count, -1, memory_width)
        split = pointers.shape[2]
        # a row without exemplars attends to padding, because softmax needs a term; its result is discarded
        pointer_keep = (exemplars.present | ~exemplars.present.any(1, keepdim=True)).unsqueeze(2).expand(-1, -1, split)
        # weight w counts as w copies of the exemplar, with all their tokens in the softmax
        times = exemplars.weight.clamp(min=1e-4).log().unsqueeze(2)
        never = times.new_full((), -torch.inf)
        key_mask = [torch.where(part, times, never).flatten(1) for part in (keep, pointer_keep)]
        out: Tensor = self.stack(
            coarse.flatten(2).transpose(1, 2),
            features.position.flatten(2).transpose(1, 2),
            torch.cat([maps.flatten(1, 2), pointers.flatten(1, 2)], dim=1),
            torch.cat([(position + sign).flatten(1, 2), sign.expand(-1, -1, split, -1).flatten(1, 2)], dim=1),
            count * split,
            torch.cat(key_mask, dim=1),
            cells.clamp(min=0).long().flatten(1) if self.rotary_keys else None,
        )
        return out.transpose(1, 2).reshape(coarse.shape)


def _refuse_options_of_memory_keys(rotary_keys: bool, tokens: str, initial: str, weights: str) -> None:
    """Refuse options that mean nothing with shared keys."""
    options = {"rotary_keys": (rotary_keys, False), "tokens": (tokens, "dense")}
    options["initial"] = (initial, "memory_attention")
    for name, (given, default) in options.items():
        if given != default:
            raise ValueError(
                f"propagation.{name}={given} needs propagation.keys=memory; leave {name} out with keys=shared."
            )
    if weights == "bundled":
        raise ValueError(
            "propagation.weights=bundled are of keys=memory; with keys=shared give random, or a path to a .safetensors "
            "file."
        )


def _foreground(masks: Tensor, most: int) -> Tensor:
    """Return the cells of the coarsest grid that lie on a lesion or next to it.

    Args:
        masks: (N, P, P), 0 to 1.
        most: Largest number of cells to keep. If there are more, evenly spread cells are kept.

    Returns:
        Cells (N, T) int64 in the order of the grid. T is `most`, or the number of all cells if that is smaller. Unused
        entries are -1.
    """
    nearby = functional.max_pool2d(functional.max_pool2d(masks.unsqueeze(1), 16), 3, stride=1, padding=1)
    on_lesion = nearby.flatten(1) > 0.1
    cells = on_lesion.logical_not().long().argsort(dim=1, stable=True)  # cells of the lesion come first
    number = on_lesion.sum(1, keepdim=True)
    slot = torch.arange(min(most, cells.shape[1]), device=masks.device).unsqueeze(0)
    spread = torch.where(number > most, slot * number // most, slot)
    return cells.gather(1, spread).masked_fill(slot >= number, -1)
