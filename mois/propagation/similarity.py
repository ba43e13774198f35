"""The default propagation: cosines to compact exemplars, refined by a small network and SAM2's decoder."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mois.interfaces import Backbone, Propagation
from mois.propagation.layers import Block, Embedding, Stem, check_sizes, embed, joined, norm, separable
from mois.propagation.merging import merge_most_alike
from mois.propagation.pooling import is_present, log_area, masked_mean, zones
from mois.propagation.weights import load_propagation
from mois.records import Exemplars, Features, SemanticPrediction

ZONES = ("core", "rim", "outside")
POOLS = 2  # the mean over exemplars, and the most alike one
MIN_WEIGHT = 1e-4  # a smaller sum of weights is divided by this
MIN_SHARE = 1e-30  # stands in for the sum of shares where there is no exemplar
MIN_SQUARED_NORM = 1e-24  # a smaller embedding has no direction
MIN_TEMPERATURE = 0.03  # keeps exp(1 / temperature) far within float32
CPU_COSINES, ACCELERATOR_COSINES = (
    1 << 18,
    1 << 25,
)  # cosines computed at once: the cache of a core, or a GPU, holds them
_MAPS = 2 * POOLS * len(ZONES)  # positive and negative


class Similarity(Propagation):
    """Compares every pixel with every exemplar, and derives the lesion mask from the comparison.

    - Embedding of a pixel: SAM2's feature levels and a shallow view of the image itself. Lesion types differ in fine
      texture and rim, and a stride of 16 has lost both.
    - Exemplar: three mean embeddings (core, rim, surroundings) and the lesion's size, under 1 KiB.
    - Likeness: cosines between pixels and exemplars, pooled over the exemplars by mean and by soft maximum. Positive
      and negative exemplars are pooled apart. The order and the number of exemplars play no part.
    - Likeness enters three places: a small network, SAM2's decoder (as a dense prompt), and the final layer at half
      resolution. The exemplars also scale and shift the channels of the network.

    Args:
        width: Channels of the embedding.
        blocks: Residual blocks of the network.
        temperature: Temperature of the soft maximum over exemplars.
        weights: `random`, `bundled` (pretrained with the bundled nano) or a path.

    Source: Perez et al., FiLM, arXiv 1709.07871 (scale and shift of channels); Butoi et al., UniverSeg, arXiv
        2304.06131 (training with exemplars in the input).
    """

    def __init__(self, width: int = 48, blocks: int = 3, temperature: float = 0.1, weights: str = "random") -> None:
        super().__init__()
        check_sizes(width, blocks)
        if temperature < MIN_TEMPERATURE:
            raise ValueError(f"propagation.temperature={temperature} must be {MIN_TEMPERATURE} or more.")
        self.width = width
        self.depth = blocks
        self.temperature = temperature
        self.weights = weights

    def build(self, backbone: Backbone) -> None:
        """Make the layers. Channels lie last in memory: on a CPU this takes a tenth off the time of a tile."""
        width = self.width
        self.bytes_per_exemplar = 4 * (len(ZONES) * width + 1)
        self.stem = Stem(width)
        self.levels = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in backbone.channels)
        self.fuse = nn.Sequential(norm(width), nn.GELU(), *separable(width, 3), norm(width))
        self.compare = nn.ModuleDict({zone: nn.Conv2d(width, width, 1) for zone in ZONES})
        self.summary = nn.Sequential(nn.Linear(len(ZONES) * width + 1, width), nn.GELU(), nn.Linear(width, width))
        self.no_exemplar = nn.Parameter(0.02 * torch.randn(width))
        self.verdict = nn.Conv2d(_MAPS, 1, 1)
        self.enter = nn.Conv2d(width + _MAPS, width, 1)
        self.blocks = nn.ModuleList(Block(width) for _ in range(self.depth))
        self.to_prompt = nn.Conv2d(width, backbone.width, 1)
        self.to_fine = nn.Conv2d(width + _MAPS + 1, self.stem.fine_width, 1)
        self.final = nn.Sequential(
            nn.Conv2d(2 * self.stem.fine_width, self.stem.fine_width, 3, padding=1), nn.GELU(),
            nn.Conv2d(self.stem.fine_width, 1, 1),
        )  # fmt: skip
        self.presence = nn.Sequential(nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, 1))
        self._start_from_cosines()
        load_propagation(self, self.weights, backbone)
        for name, part in self.named_children():
            if name != "compare":  # used as matrices; DDP needs gradients with the layout of their parameters
                part.to(memory_format=torch.channels_last)

    def describe(self, features: Features, masks: Tensor, backbone: Backbone) -> Exemplars:
        """Keep a lesion's mean embeddings (core, rim, surroundings) and its size."""
        return self._pool(self._embed(features).coarse, masks)

    def describe_on(self, features: Features, image: Tensor, masks: Tensor, backbone: Backbone) -> Exemplars:
        """Describe M lesions on N images, and embed each image only once."""
        embedding = self._embed(features).coarse
        return self._pool(embedding if len(embedding) == 1 else embedding[image], masks)

    def _pool(self, embedding: Tensor, masks: Tensor) -> Exemplars:
        zone = zones(masks, 4)
        means = torch.stack([masked_mean(embedding, weights) for weights in zone], dim=1)
        present = is_present(masks)
        tokens = {"means": means.unsqueeze(1), "log_area": log_area(masks).unsqueeze(1)}
        return Exemplars(tokens, present, torch.zeros_like(present))

    def prepare(self, exemplars: Exemplars) -> Exemplars:
        """Compute the unit directions and the summary of each exemplar from its means."""
        if exemplars.count == 0 or "directions" in exemplars.tokens:
            return exemplars
        means = exemplars.tokens["means"]  # (B, K, 3, C)
        with torch.autocast(means.device.type, enabled=False):
            weight, bias = self._projections()
            directions = torch.einsum("bkzc,zdc->bkzd", means.float(), weight) + bias
        summary = self.summary(torch.cat([means.flatten(2), exemplars.tokens["log_area"]], dim=2))
        unit = functional.normalize(directions, dim=3)
        return exemplars.map({"directions": unit, "summary": summary})

    def condense(self, exemplars: Exemplars, most: int) -> Exemplars:
        """Merge the prepared exemplars that have the most similar directions, down to `most` exemplars."""
        if exemplars.count <= most:
            return exemplars
        merged = merge_most_alike(exemplars, exemplars.tokens["directions"].float().flatten(2), most)
        return merged.map({**merged.tokens, "directions": functional.normalize(merged.tokens["directions"], dim=3)})

    def forward(self, features: Features, exemplars: Exemplars, backbone: Backbone) -> SemanticPrediction:
        """Find the pixels that look like the positive exemplars and unlike the negative exemplars.

        ::

            exemplars -> prepare ----+--------------+
                                     v              v
            features -> _embed -> _likeness     _summarise
                          |          |              |
                          |          v              v
                          +------> enter -------> blocks -> hidden -> to_prompt -> decode -> answer
                          |          |                        |                                |
                          |          |                        +-----------> to_fine <----------+
                          |          v                                         |
                          |       verdict -> draft                             v
                          +------------------------------------------------> final -> logits = final + draft

        Notation:
            N: images. R: questions per image. B = N x R: questions, the R questions of an image in a row.
            K: exemplars of a question.
            P: edge of the patch in pixels. q = P / 4.
            C: channels, `width`. F: channels of the fine embedding. M = 12: maps of likeness.

        Args:
            features: Features of N images.
            exemplars: (B, K) exemplars, positive and negative, with weights. K may be 0.
            backbone: The backbone that made the features. Its decoder is used.

        Returns:
            Logits (B, P, P), presence (B,), and the draft (B, P, P): the logits that the cosines alone give.
        """
        times = exemplars.valid.shape[0] // features.image.shape[0]  # R
        exemplars = self.prepare(exemplars)
        seen = self._embed(features)  # coarse (N, C, q, q), fine (N, F, 2q, 2q)
        likeness = self._likeness(seen.coarse, exemplars)  # (B, M, q, q)
        embedding = seen.repeat(times)  # coarse (B, C, q, q), fine (B, F, 2q, 2q)
        modulation = self._summarise(exemplars, embedding.coarse)  # (B, C)

        hidden = self.enter(joined(embedding.coarse, likeness))  # (B, C, q, q)
        for block in self.blocks:
            hidden = block(hidden, modulation)  # (B, C, q, q)

        prompt = self.to_prompt(functional.avg_pool2d(hidden, 4))  # (B, backbone.width, P / 16, P / 16)
        answer = backbone.decode(features.repeat(times), None, dense=prompt).logits.unsqueeze(1)  # (B, 1, q, q)

        fine = self.to_fine(joined(hidden, likeness, answer))  # (B, F, q, q)
        fine = functional.interpolate(fine, scale_factor=2, mode="bilinear")  # (B, F, 2q, 2q)
        patch = features.image.shape[-2:]  # P, P
        draft = functional.interpolate(self.verdict(likeness), patch, mode="bilinear")  # (B, 1, P, P)
        logits = self.final(joined(fine, embedding.fine))  # (B, 1, 2q, 2q)
        logits = functional.interpolate(logits, patch, mode="bilinear")  # (B, 1, P, P)
        pooled = torch.cat([hidden.mean((2, 3)), hidden.amax((2, 3))], dim=1)  # (B, 2C)
        return SemanticPrediction((logits + draft).squeeze(1), self.presence(pooled).squeeze(1), draft.squeeze(1))

    def _start_from_cosines(self) -> None:
        """Set the first weights of the verdict: high for core and rim of an exemplar, low for its surroundings."""
        with torch.no_grad():
            self.verdict.weight.zero_()
            weights = self.verdict.weight.view(2, POOLS, len(ZONES))  # sign, pool, zone
            weights[0, 1] = torch.tensor([4.0, 4.0, -4.0])
            weights[1, 1] = torch.tensor([-2.0, -2.0, 2.0])
            nn.init.constant_(self.verdict.get_parameter("bias"), -4.0)
            nn.init.zeros_(self.final.get_parameter("2.bias"))

    def _embed(self, features: Features) -> Embedding:
        return embed(features, self.stem, self.levels, self.fuse)

    def _likeness(self, pixels: Tensor, exemplars: Exemplars) -> Tensor:
        """Return the cosines of pixels to prepared exemplars, pooled over the exemplars, in float32.

        The soft maximum is an attention over exemplars, with the cosines themselves as values. The mean is the cosine
        to a mean direction. Both are matrix products. Without gradient the pixels are compared piece by piece. A piece
        fits the processor's cache, so that hundreds of exemplars take little memory.

        Args:
            pixels: (N, C, h, w), embeddings of N images.
            exemplars: Prepared exemplars of B = N x R questions.

        Returns:
            (B, 12, h, w): 2 signs x (mean, soft maximum) x (core, rim, surroundings).
        """
        images, _, height, width = pixels.shape
        rows, count = exemplars.valid.shape
        if count == 0:
            return pixels.new_zeros(rows, _MAPS, height, width)
        with torch.autocast(pixels.device.type, enabled=False):
            flat = pixels.float().flatten(2)  # (N, C, h w)
            targets = self._targets(exemplars, images)
            if torch.is_grad_enabled():
                likeness = self._compare(flat, targets)  # (N, R, 12, h w)
            else:
                likeness = flat.new_empty(images, rows // images, _MAPS, height * width)
                step = self._pixels_at_once(targets)
                for image in range(images):
                    image_targets = targets.of_image(image)
                    for start in range(0, height * width, step):
                        piece = slice(start, start + step)
                        pixels_of_piece = flat[image : image + 1, :, piece]  # (1, C, step)
                        likeness[image, ..., piece] = self._compare(pixels_of_piece, image_targets)[0]
        return likeness.to(pixels.dtype).view(rows, _MAPS, height, width)

    @staticmethod
    def _pixels_at_once(targets: _Targets) -> int:
        """Return how many pixels are compared at once."""
        cosines = targets.directions[0, ..., 0].numel()  # R x 3 x (K + 2), of one pixel
        if targets.directions.device.type != "cpu":
            return max(1024, ACCELERATOR_COSINES // cosines)
        return min(max(64, CPU_COSINES // cosines), 4096)

    def _targets(self, exemplars: Exemplars, images: int) -> _Targets:
        """Return the directions to compare pixels with, and the weights of the exemplars, for B = N x R questions."""
        signs = torch.stack([exemplars.positive, exemplars.present_negative], dim=1)  # (B, 2, K)
        weight = signs * exemplars.weight.float().unsqueeze(1)  # (B, 2, K): weight 2 counts as two
        each = exemplars.tokens["directions"].float()  # (B, K, 3, C)
        mean = torch.einsum("bsk,bkzc->bszc", weight, each)  # (B, 2, 3, C)
        mean = mean / weight.sum(2).clamp(min=MIN_WEIGHT)[:, :, None, None]
        directions = torch.cat([each / self.temperature, mean], dim=1).transpose(1, 2)  # (B, 3, K + 2, C)
        soft_weight = signs * exemplars.weight.float().clamp(min=MIN_WEIGHT).unsqueeze(1)  # (B, 2, K)
        return _Targets(
            directions.reshape(images, -1, *directions.shape[1:]),
            soft_weight.view(images, -1, 1, *soft_weight.shape[1:]),
        )

    def _projections(self) -> tuple[Tensor, Tensor]:
        """Return the projection of embeddings for each zone: weight (3, C, C) and bias (3, C), float32."""
        parts = [self.compare[zone] for zone in ZONES]
        weight = torch.stack([part.get_parameter("weight").flatten(1) for part in parts])
        return weight.float(), torch.stack([part.get_parameter("bias") for part in parts]).float()

    def _compare(self, pixels: Tensor, targets: _Targets) -> Tensor:
        """Return the likeness (N, R, 12, p) of p pixels (N, C, p) to the exemplars of N x R questions."""
        weight, bias = self._projections()
        each = torch.baddbmm(bias.view(-1, 1), weight.flatten(0, 1).expand(len(pixels), -1, -1), pixels)  # (N, 3 C, p)
        each = each.view(len(pixels), 1, len(ZONES), self.width, -1)  # (N, 1, 3, C, p)
        square = torch.linalg.vecdot(each, each, dim=3).clamp(min=MIN_SQUARED_NORM)  # (N, 1, 3, p)
        cosines = (targets.directions @ each) * square.rsqrt().unsqueeze(3)  # (N, R, 3, K + 2, p)
        scaled, mean = cosines[..., :-2, :], cosines[..., -2:, :]  # (N, R, 3, K, p), (N, R, 3, 2, p)
        share = scaled.exp()
        total = (targets.weight @ share).clamp(min=MIN_SHARE)  # (N, R, 3, 2, p)
        soft = self.temperature * (targets.weight @ (share * scaled)) / total  # (N, R, 3, 2, p)
        pools = torch.stack([mean, soft], dim=2)  # (N, R, pool, 3, sign, p)
        return pools.permute(0, 1, 4, 2, 3, 5).flatten(2, 4)  # (N, R, 12, p)

    def _summarise(self, exemplars: Exemplars, like: Tensor) -> Tensor:
        """Return the mean summary of the positive exemplars of each question, (B, C).

        A question without positive exemplars gets a learned vector. `like` gives B, the dtype and the device.
        """
        learned = self.no_exemplar.to(like.dtype).expand(like.shape[0], -1)
        if exemplars.count == 0:
            return learned
        keep = exemplars.positive.unsqueeze(2)
        weight = keep * exemplars.weight.to(like.dtype).unsqueeze(2)
        mean = (exemplars.tokens["summary"] * weight).sum(1) / weight.sum(1).clamp(min=MIN_WEIGHT)
        return torch.where(keep.any(1), mean.to(like.dtype), learned)


class _Targets(NamedTuple):
    """Directions to compare the pixels of N images with, for R questions about each image.

    Attributes:
        directions: (N, R, 3, K + 2, C). First K unit vectors divided by the temperature; then the mean direction of the
            positive exemplars and the mean direction of the negative exemplars.
        weight: (N, R, 1, 2, K), weight of each exemplar among the positive and among the negative exemplars.
    """

    directions: Tensor
    weight: Tensor

    def of_image(self, image: int) -> _Targets:
        return _Targets(self.directions[image : image + 1], self.weight[image : image + 1])
