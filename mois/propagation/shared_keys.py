"""Exemplar attention with shared keys: what the tokens of the exemplars say enters SAM2's decoder as features.

Axes: N images, R questions about each, B = N x R, K exemplars, L tokens of a question, P edge of the patch.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mois.interfaces import Backbone
from mois.propagation.exemplar_tokens import FAR, TOKENS, ZONE_TOKENS, Scale, TokenSet, take_tokens, zone_means
from mois.propagation.kernel import NEVER, kernel_mean
from mois.propagation.layers import Block, Embedding, Stem, embed, joined, norm, separable
from mois.propagation.merging import merge_most_alike
from mois.propagation.pooling import log_area
from mois.records import Exemplars, Features, SemanticPrediction

FEATURES = 64
"""Numbers of a token."""

KEY = 32
"""Width of the shared projection of queries and keys."""

SIDES = 3
"""The mask in a value: inside, the surroundings, and further tissue. Negative exemplars have nothing inside."""

CONTENT = 16
"""Numbers of a value beside the mask: what is learned from the token and its mask together."""

MAPS = SIDES + 2
"""Maps of a head: the share of each side, the log-odds of inside to outside, and the distance to the tokens."""

WIDTH = 48
BLOCKS = 2
SURE = 1e-4  # share that is added to inside and outside, so that their odds stay finite
FARTHEST = 8.0  # squared distance beyond which a place is unlike every token
TRAINING_TOKENS = 2  # in training, one of so many tokens is compared
_TEMPERATURES = (0.2, 0.05)  # that the heads start from
_HEADS = len(_TEMPERATURES)
_SMALLEST = 1e-6
_ZONES = len(ZONE_TOKENS)


class SharedKeys(nn.Module):
    """Every cell of the query attends to single cells inside and around the exemplars.

    - Queries and keys are squared distances apart under one projection, as in STCN. No position enters them.
    - A value carries the mask of its token, as in space-time memory networks, and a learned content.
    - What is read goes through residual blocks and is added to every feature level. SAM2's decoder answers from there.
    - The log-odds of inside to outside are a draft of the mask. It is supervised, and added to the answer.

    Args:
        backbone: The backbone whose features are compared.

    Source: Oh et al., Video object segmentation using space-time memory networks, arXiv 1904.00607; Cheng et al., STCN,
        arXiv 2106.05210; Perez et al., FiLM, arXiv 1709.07871 (scale and shift of the blocks).
    """

    bytes_per_exemplar = 2 * TOKENS * (FEATURES + 2) + 4

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.strides = backbone.strides
        self.stem = Stem(WIDTH)
        self.levels = nn.ModuleList(nn.Conv2d(channels, WIDTH, 1) for channels in backbone.channels)
        self.fuse = nn.Sequential(norm(WIDTH), nn.GELU(), *separable(WIDTH, 3), norm(WIDTH))
        self.coarse_cells = nn.Conv2d(WIDTH, FEATURES, 1)
        self.fine_cells = nn.Conv2d(self.stem.fine_width, FEATURES, 1)
        self.key = nn.Parameter(torch.empty(_HEADS, FEATURES, KEY))
        self.sharpness = nn.Parameter(torch.tensor([-math.log(t) for t in _TEMPERATURES]))
        self.value = nn.Sequential(nn.Linear(FEATURES + SIDES, WIDTH), nn.GELU(), nn.Linear(WIDTH, CONTENT))
        self.summary = nn.Sequential(nn.Linear(_ZONES * FEATURES + 1, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
        self.no_exemplar = nn.Parameter(0.02 * torch.randn(WIDTH))
        self.verdict = nn.Conv2d(_HEADS * MAPS, 1, 3, padding=1)
        self.enter = nn.Conv2d(WIDTH + _HEADS * (MAPS + CONTENT), WIDTH, 1)
        self.blocks = nn.ModuleList(Block(WIDTH) for _ in range(BLOCKS))
        self.to_levels = nn.ModuleList(nn.Conv2d(WIDTH, channels, 1) for channels in backbone.channels)
        self.presence = nn.Sequential(nn.Linear(2 * WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, 1))
        self._start_from_likeness()
        for name, part in self.named_children():
            if name not in ("summary", "value"):
                part.to(memory_format=torch.channels_last)

    def _start_from_likeness(self) -> None:
        """Let each head begin with a random view of all features, and the draft with the log-odds."""
        with torch.no_grad():
            for head in self.key:
                nn.init.orthogonal_(head)
            self.key.mul_(2 / math.sqrt(FEATURES))
            self.verdict.weight.zero_()
            self.verdict.weight[0, SIDES::MAPS, 1, 1] = 1 / _HEADS
            nn.init.zeros_(self.verdict.get_parameter("bias"))

    def describe_on(self, features: Features, image: Tensor, masks: Tensor) -> Exemplars:
        """Keep single cells in and around M lesions on N images, and the size of each lesion."""
        taken = take_tokens(self._cells(self._embed(features)), features.image, image, masks)
        return taken.map({**taken.tokens, "log_area": log_area(masks).float().unsqueeze(1)})

    def forward(self, features: Features, exemplars: Exemplars, backbone: Backbone) -> SemanticPrediction:
        """Add what the exemplars say to the features of B queries, and decode the union of all lesions like them.

        Notation: h = P / 2, q = P / 4, C = WIDTH, M = 2 heads x 5 maps, V = 2 heads x CONTENT.
        """
        times = exemplars.valid.shape[0] // features.image.shape[0]  # R
        seen = self._embed(features)  # coarse (N, C, q, q), fine (N, F, h, h)
        read = self._read(self._cells(seen), exemplars)  # maps (B, M, h, h), content (B, V, h, h)
        found = functional.avg_pool2d(joined(read.maps, read.content), 2)
        hidden = self.enter(joined(seen.repeat(times).coarse, found))  # (B, C, q, q)
        for block in self.blocks:
            hidden = block(hidden, read.modulation)

        asked = features.repeat(times)
        levels = [
            level + project(functional.avg_pool2d(hidden, stride // 4))
            for level, project, stride in zip(asked.levels, self.to_levels, self.strides, strict=True)
        ]
        answer = backbone.decode(asked._replace(levels=tuple(levels)), None).logits.unsqueeze(1)  # (B, 1, q, q)
        patch = features.image.shape[-2:]
        draft = self.verdict(read.maps)  # (B, 1, h, h)
        answer, draft = (functional.interpolate(part, patch, mode="bilinear").squeeze(1) for part in (answer, draft))
        pooled = torch.cat([hidden.mean((2, 3)), hidden.amax((2, 3))], dim=1)  # (B, 2C)
        return SemanticPrediction(answer + draft, self.presence(pooled).squeeze(1), draft)

    def condense(self, exemplars: Exemplars, most: int) -> Exemplars:
        """Merge the exemplars whose insides and surroundings look most alike, down to `most`."""
        if exemplars.count <= most:
            return exemplars
        tokens = {name: token.float() for name, token in exemplars.tokens.items()}
        each = exemplars.map({name: token.flatten(0, 1).unsqueeze(1) for name, token in tokens.items()})
        flags = {name: getattr(exemplars, name).reshape(-1, 1) for name in ("valid", "weight")}
        alone = TokenSet.of(each.map(**flags, negative=torch.zeros_like(flags["valid"])))
        looks = zone_means(alone.features, alone).view(*exemplars.valid.shape, -1)
        weight = tokens["weight"]
        tokens["features"] = tokens["features"] * weight.unsqueeze(3)  # a slot without a token does not enter the mean
        tokens["inside"] = tokens["inside"] * weight
        merged = merge_most_alike(exemplars.map(tokens), looks, most)
        share = merged.tokens["weight"].clamp(min=_SMALLEST)
        means = {"features": merged.tokens["features"] / share.unsqueeze(3), "inside": merged.tokens["inside"] / share}
        return merged.map({**merged.tokens, **means})

    def _embed(self, features: Features) -> Embedding:
        return embed(features, self.stem, self.levels, self.fuse)

    def _cells(self, embedding: Embedding) -> Tensor:
        """Return the features of each cell, (N, FEATURES, P / 2, P / 2) float32."""
        coarse = functional.interpolate(self.coarse_cells(embedding.coarse), scale_factor=2, mode="bilinear")
        cells: Tensor = coarse + self.fine_cells(embedding.fine)
        return cells.float()

    def _read(self, cells: Tensor, exemplars: Exemplars) -> _Reading:
        """Let cells (N, FEATURES, h, h) attend to the tokens of B = N x R questions."""
        rows, (height, width) = len(exemplars.valid), cells.shape[-2:]
        nothing = self.no_exemplar.expand(rows, -1)
        if exemplars.count == 0:
            maps, content = (cells.new_zeros(rows, _HEADS * size, height, width) for size in (MAPS, CONTENT))
            return _Reading(maps, content, nothing)
        positive = exemplars.positive
        some = positive.any(1)  # (B,)
        with torch.autocast(cells.device.type, enabled=False):
            tokens = TokenSet.of(exemplars, every=TRAINING_TOKENS if self.training else 1)
            scale = Scale.of(tokens)
            keys = scale(tokens.features)  # (B, L, FEATURES)
            asked = scale(cells.flatten(2).transpose(1, 2).repeat_interleave(rows // len(cells), 0))
            read = self._attend(asked, keys, tokens)
            weight = positive * exemplars.weight.float()
            area = (exemplars.tokens["log_area"].float() * weight.unsqueeze(2)).sum(1)
            area = area / weight.sum(1, keepdim=True).clamp(min=_SMALLEST)
            modulation = self.summary(torch.cat([zone_means(keys, tokens), area], dim=1))
        maps, content = (torch.where(some[:, None, None], part, 0.0).reshape(rows, -1, height, width) for part in read)
        return _Reading(maps, content, torch.where(some.unsqueeze(1), modulation, nothing))

    def _attend(self, asked: Tensor, keys: Tensor, tokens: TokenSet) -> tuple[Tensor, Tensor]:
        """Return maps (B, heads x MAPS, n) and content (B, heads x CONTENT, n).

        Args:
            asked: (B, n, FEATURES), standardised cells.
            keys: (B, L, FEATURES), standardised tokens.
            tokens: What the tokens are.
        """
        shared = self.key * (0.5 * self.sharpness.clamp(-3, 5)).exp()[:, None, None]  # (heads, FEATURES, KEY)
        queries = torch.einsum("bnf,hfd->bhnd", asked, shared)
        compared = torch.einsum("blf,hfd->bhld", keys, shared)
        inside = tokens.inside * ~tokens.negative
        far = tokens.zone == FAR
        sides = torch.stack([inside, (1 - inside) * ~far, (1 - inside) * far], dim=2)  # (B, L, SIDES)
        values = torch.cat([sides, self.value(torch.cat([keys, sides], dim=2))], dim=2)
        values = torch.cat([values.unsqueeze(1).expand(-1, _HEADS, -1, -1), compared], dim=3)
        total = tokens.weight.sum(1, keepdim=True).clamp(min=_SMALLEST)
        counts = torch.where(tokens.weight > 0, (tokens.weight / total).clamp(min=1e-30).log(), NEVER)
        mean = kernel_mean(queries, compared, counts.unsqueeze(1).expand(-1, _HEADS, -1), values)
        share, content, alike = mean[..., :SIDES], mean[..., SIDES:-KEY], mean[..., -KEY:]
        odds = (share[..., :1] + SURE).log() - (share[..., 1:].sum(3, keepdim=True) + SURE).log()
        distance = (queries - alike).square().sum(3, keepdim=True).clamp(max=FARTHEST)
        maps = torch.cat([share, 0.5 * odds, distance], dim=3)  # (B, heads, n, MAPS)
        return maps.transpose(2, 3).flatten(1, 2), content.transpose(2, 3).flatten(1, 2)


class _Reading(NamedTuple):
    """What B queries read: maps (B, M, h, h), content (B, V, h, h), and the vector (B, C) that modulates the blocks."""

    maps: Tensor
    content: Tensor
    modulation: Tensor
