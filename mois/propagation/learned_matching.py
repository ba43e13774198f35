"""Learned matching: pixels are compared with single pixels of the exemplars, and a network decides what follows."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mois.filters import FILTERS, filter_bank
from mois.interfaces import Backbone, Propagation
from mois.propagation.exemplar_tokens import (
    CORE,
    FAR,
    NEAR,
    RIM,
    TOKENS,
    ZONE_TOKENS,
    Scale,
    TokenSet,
    for_each_question,
    kernel_log_odds,
    take_tokens,
    zone_means,
)
from mois.propagation.kernel import NEVER, kernel_mean
from mois.propagation.layers import Block, Embedding, Stem, check_sizes, embed, joined, norm, separable
from mois.propagation.pooling import log_area
from mois.propagation.weights import load_propagation
from mois.records import Exemplars, Features, SemanticPrediction

FEATURES = 64
"""Numbers of a token: the filter bank, and what is learned."""

VALUES = 5
"""What a token is: core, rim, surroundings, further tissue, inside of a negative exemplar."""

MAPS = VALUES + 2
"""Maps of a head: a share for each value, the log-odds of inside to outside, and the distance to the tokens."""

_TEMPERATURES = (0.2, 0.05, 0.5, 0.1)  # that the heads start from
SURE = 1e-4
"""Share that is added to inside and outside, so that their odds stay finite."""

TRAINING_TOKENS = 2
"""In training, one of so many tokens is compared: it takes a third off a step."""

MOST_TOKENS = 256
"""Tokens of a question. Five exemplars with 600, 300 or 200 tokens give the same Dice within 0.03."""

PLAIN_TOKENS = 640
"""Tokens of a question for the plain answer: all of five exemplars. With 256, right was .08 less on plant nuclei."""

PLAIN_TEMPERATURE = 0.2
"""Width of the kernel of the plain answer, as in `Matching`."""

FARTHEST = 8.0
"""Squared distance beyond which a place is unlike every token."""

_SMALLEST = 1e-6
_ZONES = len(ZONE_TOKENS)


class LearnedMatching(Propagation):
    """Compares every pixel with single pixels inside and around the exemplars, and lets the comparison decide.

    - A token is a cell of 2 x 2 pixels of an exemplar: 20 answers of a filter bank, 44 learned features, the share of
      it that is inside the lesion, and the zone it was taken from (core, rim, surroundings, further tissue).
    - All tokens of a question standardise the features. So contrast and brightness of the scan play no part.
    - Each head measures a distance of its own. A softmax over all tokens gives each pixel the share of every zone.
      This is attention with one projection for queries and keys, and with mask values.
    - The shares enter a small network, SAM2's decoder (as a dense prompt), and the final layer at half resolution. The
      exemplars also scale and shift the channels of the network.

    Args:
        width: Channels of the embedding.
        blocks: Residual blocks of the network.
        heads: Distances.
        weights: `random`, `bundled-2` (pretrained with the bundled nano of that name) or a path. Weights without cores
            may be given to a propagation with cores: the cores begin as the masks.
        cores: Whether to answer with the cores of the lesions too, so that touching lesions come apart.

    Source: Oh et al., Video object segmentation using space-time memory networks, arXiv 1904.00607; Cheng et al., STCN,
        arXiv 2106.05210 (shared keys, squared distance); Perez et al., FiLM, arXiv 1709.07871.
    """

    def __init__(
        self, width: int = 64, blocks: int = 5, heads: int = 2, weights: str = "random", cores: bool = True
    ) -> None:
        super().__init__()
        check_sizes(width, blocks)
        if not 1 <= heads <= len(_TEMPERATURES):
            raise ValueError(f"propagation.heads={heads} must be 1 to {len(_TEMPERATURES)}.")
        self.width = width
        self.depth = blocks
        self.heads = heads
        self.weights = weights
        self.cores = cores

    def build(self, backbone: Backbone) -> None:
        """Make the layers. Channels lie last in memory: on a CPU this takes a tenth off the time of a tile."""
        width, maps = self.width, self.heads * MAPS
        self.bytes_per_exemplar = 2 * TOKENS * (FEATURES + 2) + 4
        self.stem = Stem(width)
        fine = self.stem.fine_width
        self.levels = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in backbone.channels)
        self.fuse = nn.Sequential(norm(width), nn.GELU(), *separable(width, 3), norm(width))
        self.coarse_cells = nn.Conv2d(width, FEATURES - FILTERS, 1)
        self.fine_cells = nn.Conv2d(fine, FEATURES - FILTERS, 1)
        self.metric = nn.Parameter(torch.empty(self.heads, FEATURES, FEATURES // 2))
        self.sharpness = nn.Parameter(torch.tensor([-math.log(t) for t in _TEMPERATURES[: self.heads]]))
        self.prior = nn.Parameter(torch.zeros(self.heads, _ZONES + 1))
        self.summary = nn.Sequential(nn.Linear(_ZONES * FEATURES + 1, width), nn.GELU(), nn.Linear(width, width))
        self.no_exemplar = nn.Parameter(0.02 * torch.randn(width))
        self.verdict = nn.Conv2d(maps, 1, 3, padding=1)
        self.enter = nn.Conv2d(width + maps, width, 1)
        self.blocks = nn.ModuleList(Block(width) for _ in range(self.depth))
        self.to_prompt = nn.Conv2d(width, backbone.width, 1)
        self.to_fine = nn.Conv2d(width + 1, fine, 1)
        self.final = nn.Sequential(
            nn.Conv2d(2 * fine + maps, fine, 3, padding=1), nn.GELU(), nn.Conv2d(fine, 1 + self.cores, 3, padding=1),
        )  # fmt: skip
        self.presence = nn.Sequential(nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, 1))
        self._start_from_matching()
        load_propagation(self, self.weights, backbone)
        for name, part in self.named_children():
            if name != "summary":
                part.to(memory_format=torch.channels_last)

    def _start_from_matching(self) -> None:
        """Let each head begin with a random view of all features, and the verdict with the log-odds."""
        with torch.no_grad():
            for head in self.metric:
                nn.init.orthogonal_(head)
            self.metric.mul_(2 / math.sqrt(FEATURES))
            self.verdict.weight.zero_()
            self.verdict.weight[0, VALUES::MAPS, 1, 1] = 1 / self.heads
            nn.init.zeros_(self.verdict.get_parameter("bias"))
            nn.init.zeros_(self.final.get_parameter("2.bias"))

    def complete(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Give weights that were saved without cores a second channel of zeros, if this propagation has cores."""
        last = {name: part for name, part in tensors.items() if name in ("final.2.weight", "final.2.bias")}
        if not self.cores or any(len(part) != 1 for part in last.values()):
            return tensors
        return tensors | {name: torch.cat([part, torch.zeros_like(part)]) for name, part in last.items()}

    def describe(self, features: Features, masks: Tensor, backbone: Backbone) -> Exemplars:
        """Keep T cells of each image, in and around its lesion, and the lesion's size."""
        return self.describe_on(features, torch.arange(len(masks), device=masks.device), masks, backbone)

    def describe_on(self, features: Features, image: Tensor, masks: Tensor, backbone: Backbone) -> Exemplars:
        """Look at each image once, whatever the number of lesions on it."""
        taken = take_tokens(self._cells(features, self._embed(features)), features.image, image, masks)
        return taken.map({**taken.tokens, "log_area": log_area(masks).float().unsqueeze(1)})

    def forward(self, features: Features, exemplars: Exemplars, backbone: Backbone) -> SemanticPrediction:
        """Find the pixels that look like the positive exemplars and unlike what is around them.

        Notation: N images, R questions about each, B = N x R, P edge of the patch, h = P / 2, q = P / 4, C = `width`
        channels, F channels of the fine embedding, M = 7 maps for each head.
        """
        times = exemplars.valid.shape[0] // features.image.shape[0]  # R
        seen = self._embed(features)  # coarse (N, C, q, q), fine (N, F, h, h)
        match = self._match(features, seen, exemplars)  # maps (B, M, h, h), modulation (B, C)
        embedding = seen.repeat(times)

        hidden = self.enter(joined(embedding.coarse, functional.avg_pool2d(match.maps, 2)))  # (B, C, q, q)
        for block in self.blocks:
            hidden = block(hidden, match.modulation)

        prompt = self.to_prompt(functional.avg_pool2d(hidden, 4))  # (B, backbone.width, P / 16, P / 16)
        answer = backbone.decode(features.repeat(times), None, dense=prompt).logits.unsqueeze(1)  # (B, 1, q, q)

        fine = self.to_fine(joined(hidden, answer))  # (B, F, q, q)
        fine = functional.interpolate(fine, scale_factor=2, mode="bilinear")  # (B, F, h, h)
        draft = self.verdict(match.maps)  # (B, 1, h, h)
        answers = self.final(joined(fine, embedding.fine, match.maps))  # (B, 1 or 2, h, h)
        logits = answers[:, :1] + draft
        parts = [logits, draft]
        if self.cores:  # a core is learned as the difference to the mask, which it does not change
            parts.append(logits.detach() + answers[:, 1:])
        patch = features.image.shape[-2:]
        parts = [functional.interpolate(part, patch, mode="bilinear").squeeze(1) for part in parts]
        pooled = torch.cat([hidden.mean((2, 3)), hidden.amax((2, 3))], dim=1)  # (B, 2C)
        return SemanticPrediction(parts[0], self.presence(pooled).squeeze(1), *parts[1:])

    def plain_answer(self, features: Features, exemplars: Exemplars) -> Tensor | None:
        """Compare the answers of the filter bank alone, as `Matching` does; (B, P, P). None without exemplars."""
        if exemplars.count == 0:
            return None
        with torch.autocast(features.image.device.type, enabled=False):
            tokens = TokenSet.of(exemplars, most=PLAIN_TOKENS)
            tokens = tokens._replace(features=tokens.features[..., :FILTERS])
            cells = _filters(features)  # (N, F, h, h)
            odds = kernel_log_odds(cells.flatten(2).transpose(1, 2), tokens, PLAIN_TEMPERATURE)
            odds = odds.view(-1, 1, *cells.shape[-2:])
            return functional.interpolate(odds, features.image.shape[-2:], mode="bilinear").squeeze(1)

    def both_answers(
        self, features: Features, exemplars: Exemplars, plain_of: Exemplars | None, backbone: Backbone
    ) -> tuple[SemanticPrediction, Tensor | None]:
        """Filter each image once for both answers."""
        if plain_of is not None and plain_of.count:
            features = features._replace(filters=filter_bank(features.image))
        return super().both_answers(features, exemplars, plain_of, backbone)

    def _embed(self, features: Features) -> Embedding:
        return embed(features, self.stem, self.levels, self.fuse)

    def _cells(self, features: Features, embedding: Embedding) -> Tensor:
        """Return the features of each cell, (N, F, P / 2, P / 2) float32."""
        coarse = functional.interpolate(self.coarse_cells(embedding.coarse), scale_factor=2, mode="bilinear")
        learned = coarse + self.fine_cells(embedding.fine)
        return torch.cat([_filters(features), learned.float()], dim=1)

    def _match(self, features: Features, seen: Embedding, exemplars: Exemplars) -> _Match:
        """Compare the cells (N, F, h, h) of N images with the tokens of B = N x R questions."""
        rows, height, width = len(exemplars.valid), *seen.fine.shape[-2:]
        nothing = self.no_exemplar.expand(rows, -1)
        if exemplars.count == 0:
            maps = torch.zeros(rows, self.heads * MAPS, height, width, device=seen.fine.device)
            return _Match(maps, nothing)
        cells = self._cells(features, seen)
        some = exemplars.positive.any(1)  # (B,)
        with torch.autocast(cells.device.type, enabled=False):
            tokens = TokenSet.of(exemplars, TRAINING_TOKENS if self.training else 1, MOST_TOKENS)
            scale = Scale.of(tokens)
            keys = scale(tokens.features)  # (B, L, F)
            maps = self._compare(cells.flatten(2).transpose(1, 2), scale, keys, tokens)
            means = zone_means(keys, tokens)
            weight = exemplars.positive * exemplars.weight.float()
            area = (exemplars.tokens["log_area"].float() * weight.unsqueeze(2)).sum(1)
            area = area / weight.sum(1, keepdim=True).clamp(min=_SMALLEST)
        modulation = self.summary(torch.cat([means, area], dim=1))
        maps = torch.where(some[:, None, None], maps, 0.0).reshape(rows, -1, height, width)
        return _Match(maps, torch.where(some.unsqueeze(1), modulation, nothing))

    def _compare(self, cells: Tensor, scale: Scale, keys: Tensor, tokens: TokenSet) -> Tensor:
        """Return the maps (B, heads x 7, n) of cells (N, n, F), given the standardised tokens (B, L, F)."""
        metric = self.metric * (0.5 * self.sharpness.clamp(-3, 5)).exp()[:, None, None]  # (heads, F, D)
        asked = scale(for_each_question(cells, len(keys)))
        queries = torch.matmul(asked, metric.transpose(0, 1).flatten(1))  # (B, n, heads x D): half of einsum's time
        queries = queries.view(*queries.shape[:2], self.heads, -1).transpose(1, 2)
        compared = torch.einsum("blf,hfd->bhld", keys, metric)
        values, log_weight = self._values(tokens)  # (B, L, 5), (B, heads, L)
        values = torch.cat([values.unsqueeze(1).expand(-1, self.heads, -1, -1), compared], dim=3)
        mean = kernel_mean(queries, compared, log_weight, values)  # (B, heads, n, 5 + D)
        share, alike = mean[..., :VALUES], mean[..., VALUES:]
        inside = share[..., CORE] + share[..., RIM]
        outside = share[..., NEAR] + share[..., FAR] + share[..., _ZONES]
        odds = (inside + SURE).log() - (outside + SURE).log()
        apart = queries - alike  # from what the tokens make of this place
        far = (apart.square() if torch.is_grad_enabled() else apart.square_()).sum(3)
        maps = torch.cat([share, 0.5 * odds.unsqueeze(3), far.clamp(max=FARTHEST).unsqueeze(3)], dim=3)
        return maps.permute(0, 1, 3, 2).flatten(1, 2)

    def _values(self, tokens: TokenSet) -> tuple[Tensor, Tensor]:
        """Return what each token is, (B, L, 5), and its weight in the softmax, (B, heads, L), as a logarithm.

        The weight is the token's share of all weights, times the learned prior of its zone.
        """
        inside = tokens.inside * ~tokens.negative
        foreign = tokens.inside * tokens.negative
        outside = 1 - inside - foreign
        core, rim, far = (tokens.zone == zone for zone in (CORE, RIM, FAR))
        values = torch.stack([inside * core, inside * ~core, outside * ~far, outside * far, foreign], dim=2)
        kind = torch.where(tokens.negative & (core | rim), _ZONES, tokens.zone)  # (B, L)
        total = tokens.weight.sum(1, keepdim=True).clamp(min=_SMALLEST)
        weight = torch.where(tokens.weight > 0, (tokens.weight / total).clamp(min=1e-30).log(), NEVER)
        return values, self.prior[:, kind].transpose(0, 1) + weight.unsqueeze(1)


def _filters(features: Features) -> Tensor:
    """Return the answers of the filter bank, (N, 20, P / 2, P / 2) float32."""
    return filter_bank(features.image) if features.filters is None else features.filters


class _Match(NamedTuple):
    """What the comparison gives: maps (B, heads x 7, h, h), and the vector (B, C) that modulates the network."""

    maps: Tensor
    modulation: Tensor
