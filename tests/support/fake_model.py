"""A model that can be computed by hand: a lesion is every pixel of one intensity, and looking alike is having it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from mois.interfaces import Backbone, Memory, Propagation
from mois.records import Exemplars, Features, MaskPrediction, Prompts, SemanticPrediction, Volume, WeightsIdentity

SKIN, BODY, TYPE_A, TYPE_B, BLADDER = 10.0, 30.0, 80.0, 100.0, 110.0
"""Raw intensities; they are normalised to 0, 0.2, 0.7, 0.9 and 1."""
CERTAIN = 10.0


class FakeBackbone(Backbone):
    """Segments all pixels of the clicked (or remembered) intensity.

    Attributes:
        encoded: How many images have been encoded.
        attended: Distance and flag of every slice that was remembered, by call of `attend`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.patch_px, self.strides, self.channels, self.width, self.memory_width = 32, (4, 8, 16), (1, 1, 1), 1, 1
        self.identity = WeightsIdentity("fake", "random", "")
        self.anchor = nn.Parameter(torch.zeros(1))
        self.encoded = 0
        self.attended: list[list[tuple[int, bool]]] = []

    def encode(self, images: Tensor) -> Features:
        self.encoded += len(images)
        image = images.unsqueeze(1)
        levels = tuple(functional.avg_pool2d(image, stride) for stride in self.strides)
        return Features(levels, torch.zeros_like(levels[-1]), image)

    def decode(self, features: Features, prompts: Prompts | None, dense: Tensor | None = None) -> MaskPrediction:
        image = features.image[:, 0]
        if prompts is None:
            value = features.levels[-1][:, 0, 0, 0]
        else:
            x, y = prompts.points[:, 0].long().T
            value = image[torch.arange(len(image)), y, x]
        like = ((image - value[:, None, None]).abs() < 0.05).float()
        logits = (functional.avg_pool2d(like.unsqueeze(1), 4) * 2 - 1)[:, 0] * CERTAIN
        present = torch.where(like.flatten(1).any(1), CERTAIN, -CERTAIN)
        return MaskPrediction(logits, logits.unsqueeze(1), torch.ones(len(image), 1), value.unsqueeze(1), present)

    def remember(self, features: Features, logits: Tensor, pointer: Tensor) -> Memory:
        maps = torch.zeros(len(logits), 1, 1, 2, 2)
        return Memory(maps, maps, pointer.unsqueeze(1))

    def attend(self, features: Features, memory: Memory) -> Features:
        self.attended.append(list(zip(memory.distance, memory.clicked, strict=True)))
        value = memory.pointers[:, 0, 0].view(-1, 1, 1, 1)  # of the clicked slice
        levels = (*features.levels[:-1], value.expand_as(features.levels[-1]))
        return features._replace(levels=levels, conditioned=True)

    def attention_stack(self, *, rotary_keys: bool = True) -> nn.Module:
        return nn.Identity()

    def weights(self) -> dict[str, Tensor]:
        return self.state_dict()

    def parts(self) -> dict[str, nn.Module]:
        return {}


class FakePropagation(Propagation):
    """Finds all pixels of an exemplar's mean intensity; without exemplars everything of 0.5 to 0.95.

    Args:
        deaf: Ignore the exemplars.
    """

    bytes_per_exemplar = 4

    def __init__(self, *, deaf: bool = False) -> None:
        super().__init__()
        self.deaf = deaf

    def build(self, backbone: Backbone) -> None:
        pass

    def describe(self, features: Features, masks: Tensor, backbone: Backbone) -> Exemplars:
        inside = (masks > 0.5).float()
        value = (features.image[:, 0] * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)
        valid = inside.flatten(1).any(1, keepdim=True)
        return Exemplars({"value": value.view(-1, 1, 1)}, valid, torch.zeros_like(valid))

    def forward(self, features: Features, exemplars: Exemplars, backbone: Backbone) -> SemanticPrediction:
        times = exemplars.valid.shape[0] // features.image.shape[0]
        image = features.image.repeat_interleave(times, 0)  # (B, 1, P, P)
        alike = (image - exemplars.tokens["value"].unsqueeze(3)).abs() < 0.05  # (B, K, P, P)
        found = (alike & exemplars.valid[:, :, None, None]).any(1)
        asked = exemplars.valid.any(1)[:, None, None] & (not self.deaf)
        found = torch.where(asked, found, (image[:, 0] > 0.5) & (image[:, 0] < 0.95))
        return SemanticPrediction((found.float() * 2 - 1) * CERTAIN, torch.full((len(found),), CERTAIN))


class Undecided(FakePropagation):
    """Says the same of every pixel. Only its plain answer finds what has an exemplar's mean intensity."""

    def forward(self, features: Features, exemplars: Exemplars, backbone: Backbone) -> SemanticPrediction:
        answer = super().forward(features, exemplars, backbone)
        return answer._replace(logits=torch.full_like(answer.logits, -0.5))

    def plain_answer(self, features: Features, exemplars: Exemplars) -> Tensor:
        return super().forward(features, exemplars, FakeBackbone()).logits


def make_scan(
    boxes: list[tuple[float, tuple[slice, slice, slice]]],
    *,
    shape: tuple[int, int, int] = (6, 64, 48),
    annotated: bool = True,
    subject: str = "scan",
) -> Volume:
    """Return an axial scan of 1.5 mm pixels, slices 5 mm apart, with a box of one intensity per lesion.

    Lesions are numbered from 1 in the order of the boxes; TYPE_A is class 1, TYPE_B is class 2. Boxes are in the
    stack's axes (slice, row, column). A rim of air (4 pixels) and of skin (2 pixels) surrounds the body. The last row
    of skin is as bright as a bladder, so that every scan is normalised alike.
    """
    stack = torch.zeros(shape)
    stack[:, 4:-4, 4:-4] = SKIN
    stack[:, 6:-6, 6:-6] = BODY
    lesions = torch.zeros(shape, dtype=torch.int32)
    for number, (value, box) in enumerate(boxes, start=1):
        stack[box] = value
        lesions[box] = number
    stack[:, -5, 4:-4] = BLADDER
    affine = torch.diag(torch.tensor([-1.5, -1.5, 5.0, 1.0], dtype=torch.float64))
    # Rows of axial pictures run to the back (-y), columns to the patient's left (-x): voxel axes (column, row, slice).
    image, found = stack.permute(2, 1, 0).contiguous(), lesions.permute(2, 1, 0).contiguous()
    classes = {number: 1 if value == TYPE_A else 2 for number, (value, _) in enumerate(boxes, start=1)}
    if not annotated:
        found, classes = torch.zeros_like(found), {}
    return Volume(subject, subject, image, affine, found, classes)


def box(slices: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int]) -> tuple[slice, slice, slice]:
    """Return a box from inclusive starts and exclusive stops."""
    return slice(*slices), slice(*rows), slice(*columns)


# Eight lesions of 64 voxels, four of either type, each on a slice of its own with an empty one between.
PLACES = [(1 + 2 * n, *place) for n, place in enumerate([(12, 12), (32, 12), (12, 28), (32, 28)] * 2)]
BOXES = [box((s, s + 1), (y, y + 8), (x, x + 8)) for s, y, x in PLACES]
TYPES = [TYPE_A, TYPE_B, TYPE_B, TYPE_A, TYPE_B, TYPE_A, TYPE_A, TYPE_B]


def eight_lesions() -> Volume:
    """Return a scan of the lesions `BOXES`."""
    return make_scan(list(zip(TYPES, BOXES, strict=True)), shape=(17, 64, 48))
