"""Checks of the contracts of backbones, propagations, adapters and datamodules, for plug-ins of anybody.

Call a check from a test: `check_propagation(MyPropagation())`. It raises `ContractError` with the first clause that
does not hold.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Collection, Iterable
from itertools import islice
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from mois.backbones.example_answers import IDENTITY, answers, largest_change, without_gradient
from mois.backbones.sam2 import SAM2
from mois.interfaces import Adapter, Backbone, Memory, Propagation
from mois.records import Episode, Exemplars, Features, MaskPrediction, Prompts, Volume

TOLERANCE = 1e-4


class ContractError(AssertionError):
    """A clause of a contract does not hold."""


def nano_backbone(seed: int = 0) -> SAM2:
    """Return the smallest real SAM2, with random weights."""
    return SAM2("nano", "random", seed=seed)


def example_patches(count: int, patch_px: int = 128, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return noise images (count, P, P) with a bright disc each, and the discs' masks (count, P, P) as float."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, patch_px, patch_px, generator=generator)
    centres = (0.3 + 0.4 * torch.rand(count, 2, generator=generator)) * patch_px
    line = torch.arange(patch_px, dtype=torch.float32)
    distance = (line[None, :, None] - centres[:, :1, None]) ** 2 + (line[None, None, :] - centres[:, 1:, None]) ** 2
    masks = (distance < (patch_px / 10) ** 2).float()
    return images + masks, masks


def check_backbone(backbone: Backbone) -> None:
    """Check sizes, that images of a batch do not see each other, that other input sizes work, and that it is frozen."""
    images, _ = example_patches(2, backbone.patch_px)
    with torch.no_grad():
        features = backbone.encode(images)
        for level, stride, channels in zip(features.levels, backbone.strides, backbone.channels, strict=True):
            wanted = (2, channels, backbone.patch_px // stride, backbone.patch_px // stride)
            _require(
                tuple(level.shape) == wanted, f"a feature level has shape {tuple(level.shape)}, declared is {wanted}"
            )
        clicks = Prompts(torch.full((2, 1, 2), backbone.patch_px / 2), torch.ones(2, 1, dtype=torch.int32))
        both = backbone.decode(features, clicks)
        one = backbone.decode(backbone.encode(images[:1]), Prompts(clicks.points[:1], clicks.labels[:1]))
        _require(_close(both.logits[:1], one.logits), "an image's mask depends on the other images of its batch")
        memory = backbone.remember(features, both.logits, both.pointer)
        _require(memory.maps.shape[2] == backbone.memory_width, "a memory map is not memory_width wide")
        followed = backbone.decode(backbone.attend(features, memory), None)
        _require(followed.logits.shape == both.logits.shape, "tracking answers in another shape than clicking")
        _check_tracking(backbone, features, both)
        again = backbone.encode_rest(images, backbone.encode_frozen(images))
        same = all(_close(one, two) for one, two in zip(again.levels, features.levels, strict=True))
        _require(same and _close(again.position, features.position), "encode_frozen and encode_rest are not encode")
        other = backbone.encode(example_patches(1, backbone.patch_px // 2 // 32 * 32 or 32)[0])
        _require(bool(backbone.decode(other, None).logits.isfinite().all()), "another input size gives no finite mask")
        for count in range(2, backbone.most_channels + 1):
            alike = backbone.encode(images.unsqueeze(1).expand(-1, count, -1, -1))
            _require(alike.image.shape[1] == count, f"the features of {count} channels lack their image")
            same = all(_close(one, two) for one, two in zip(alike.levels, features.levels, strict=True))
            _require(same, f"{count} equal channels are not seen as one")
    _require(not any(p.requires_grad for p in backbone.parameters()), "a backbone is not frozen when it is made")
    _require(not backbone.train().training, "train() switches a frozen backbone out of evaluation mode")


def check_propagation(propagation: Propagation, backbone: Backbone | None = None) -> None:
    """Check a propagation that was not built yet: order, weights, independence, sizes, bytes and gradients."""
    backbone = backbone or nano_backbone()
    propagation.build(backbone)
    images, masks = example_patches(6, backbone.patch_px)
    query = backbone.encode(example_patches(2, backbone.patch_px, seed=1)[0])
    exemplars = propagation.describe(backbone.encode(images), masks, backbone).reshape(2, 3)
    size = exemplars.bytes_per_exemplar()
    _require(
        size <= propagation.bytes_per_exemplar,
        f"an exemplar takes {size} bytes, declared are {propagation.bytes_per_exemplar}",
    )

    with torch.no_grad():
        _check_rows_and_order(propagation, backbone, query, exemplars)
        _check_weights(propagation, backbone, query, exemplars)
        _check_much_padding(propagation, backbone, query, exemplars)
        _check_sizes_and_masks(propagation, backbone, query, masks)
        _check_prepared(propagation, backbone, query, exemplars)
        _check_channels(propagation, backbone)
        _check_plain_answer(propagation, query, exemplars)
    _check_gradients(propagation, backbone, query, exemplars)


def _check_rows_and_order(propagation: Propagation, backbone: Backbone, query: Features, exemplars: Exemplars) -> None:
    """Check that order does not matter, and that samples of a batch do not see each other."""
    answer = propagation(query, exemplars, backbone)
    base = answer.logits
    if answer.cores is not None:
        _require(answer.cores.shape == base.shape, f"cores have shape {tuple(answer.cores.shape)}, not that of logits")
        _require(bool(answer.cores.isfinite().all()), "cores are not finite")
    _require(base.shape == (2, backbone.patch_px, backbone.patch_px), f"logits have shape {tuple(base.shape)}")
    turned = propagation(query, exemplars.pick(torch.tensor([2, 0, 1])), backbone).logits
    _require(_close(base, turned), "the order of exemplars matters")
    first = query.select(slice(0, 1))
    single = propagation(first, _rows(exemplars, slice(0, 1)), backbone).logits
    _require(_close(base[:1], single), "a query sees its neighbour in the batch, or its exemplars")
    many = propagation(first, exemplars, backbone).logits
    repeated = propagation(query.select(torch.tensor([0, 0])), exemplars, backbone).logits
    _require(_close(many, repeated), "several questions about one image differ from the same asked one by one")
    unlike = propagation(query, exemplars.map(negative=torch.ones_like(exemplars.negative)), backbone).logits
    _require(bool(unlike.isfinite().all()), "negative exemplars alone give no finite answer")


def _check_plain_answer(propagation: Propagation, query: Features, exemplars: Exemplars) -> None:
    """Check the plain answer, if there is one: shape, order, and one question asked alone."""
    plain = propagation.plain_answer(query, exemplars)
    if plain is None:
        return
    _require(plain.shape == query.image[:, 0].shape, f"plain answers have shape {tuple(plain.shape)}")
    turned = propagation.plain_answer(query, exemplars.pick(torch.tensor([2, 0, 1])))
    _require(turned is not None and _close(plain, turned), "the order of exemplars matters for the plain answer")
    single = propagation.plain_answer(query.select(slice(0, 1)), _rows(exemplars, slice(0, 1)))
    _require(single is not None and _close(plain[:1], single), "the plain answer to a query sees its neighbour")
    nothing = propagation.plain_answer(query, exemplars.pick(slice(0, 0)))
    _require(nothing is None or bool(nothing.isfinite().all()), "no exemplars give no finite plain answer")


def _check_weights(propagation: Propagation, backbone: Backbone, query: Features, exemplars: Exemplars) -> None:
    """Check that padding and weight 0 are as if absent, and that weight 2 is as if given twice."""

    def answer(some: Exemplars) -> Tensor:
        logits: Tensor = propagation(query, some, backbone).logits
        return logits

    none = answer(exemplars.pick(slice(0, 0)))
    _require(bool(none.isfinite().all()), "no exemplars give no finite answer")
    padded = answer(exemplars.map(valid=torch.zeros_like(exemplars.valid)))
    _require(_close(none, padded), "exemplars that are all padding differ from no exemplars")
    first = exemplars.valid.clone()
    first[:, 1:] = False
    alone = answer(exemplars.pick(slice(0, 1)))
    _require(_close(alone, answer(exemplars.map(valid=first))), "padding is looked at")
    weight = torch.ones_like(exemplars.weight)
    weight[:, 1:] = 0
    _require(_close(alone, answer(exemplars.map(weight=weight))), "exemplars of weight 0 differ from absent ones")
    light = answer(exemplars.map(weight=torch.zeros_like(weight)))
    _require(_close(none, light), "exemplars that are all of weight 0 differ from no exemplars")
    twice = answer(exemplars.pick(torch.tensor([0, 0, 1, 2])))
    weight = torch.ones_like(exemplars.weight)
    weight[:, 0] = 2
    heavy = answer(exemplars.map(weight=weight))
    _require(_close(twice, heavy), "an exemplar of weight 2 differs from one that is given twice")


def _check_much_padding(propagation: Propagation, backbone: Backbone, query: Features, exemplars: Exemplars) -> None:
    """Check, as at inference, that a question beside one with many more exemplars is answered as it is alone."""
    training = propagation.training
    propagation.eval()
    wide = exemplars.pick(torch.arange(24) % exemplars.count)
    valid = wide.valid.clone()
    valid[:, exemplars.count :] = False
    alone, beside = (propagation(query, some, backbone).logits for some in (exemplars, wide.map(valid=valid)))
    propagation.train(training)
    _require(_close(alone, beside), "the number of exemplars with padding changes the answer")


def _check_sizes_and_masks(propagation: Propagation, backbone: Backbone, query: Features, masks: Tensor) -> None:
    """Check another input size, that `describe_on` gives what `describe` gives, and that an empty mask is not valid."""
    other_px = backbone.patch_px // 2 // 32 * 32 or 32
    small = example_patches(1, other_px, seed=2)
    small_features = backbone.encode(small[0])
    answer = propagation(small_features, propagation.describe(small_features, small[1], backbone), backbone)
    _require(answer.logits.shape[-1] == other_px, "another input size gives no answer of its size")
    image = torch.tensor([1, 0, 1])
    on_two = propagation.describe_on(query, image, masks[:3], backbone)
    apart = propagation.describe(query.select(image), masks[:3], backbone)
    same = all(_close(apart.tokens[name], token) for name, token in on_two.tokens.items())
    _require(same and bool((apart.valid == on_two.valid).all()), "describe_on gives other exemplars than describe")
    empty = propagation.describe(query, torch.zeros_like(masks[:2]), backbone)
    _require(not bool(empty.valid.any()), "an empty mask makes a valid exemplar")


def _check_channels(propagation: Propagation, backbone: Backbone) -> None:
    """Check that each number of channels which the backbone sees is answered, within the bytes of an exemplar."""
    for count in range(2, backbone.most_channels + 1):
        patches = [example_patches(2, backbone.patch_px, seed=seed) for seed in range(count)]
        features = backbone.encode(torch.stack([images for images, _ in patches], dim=1))
        exemplars = propagation.describe(features, patches[0][1], backbone)
        answer = propagation(features, exemplars, backbone)
        _require(bool(answer.logits.isfinite().all()), f"{count} channels give no finite answer")
        wanted = (2, backbone.patch_px, backbone.patch_px)
        _require(answer.logits.shape == wanted, f"{count} channels give logits of shape {tuple(answer.logits.shape)}")
        size = exemplars.bytes_per_exemplar()
        _require(size <= propagation.bytes_per_exemplar, f"an exemplar of {count} channels takes {size} bytes")


def check_adapter(adapter: Adapter, backbone: Backbone | None = None, propagation: Propagation | None = None) -> None:
    """Check an adapter that was not attached yet.

    - Attached, it changes no answer (`IDENTITY`).
    - Each trained tensor gets a gradient; after one step, those of the adapter's own get one other than 0. Nothing
      else changes.
    - What `save` wrote gives the same tensors and answers in another backbone.
    - `disabled` gives the first answers back exactly, unless the adapter refuses with a ValueError.
    - `merge`, if the adapter can do it, keeps the answers (`TOLERANCE`) and leaves the backbone's own tensors alone.
    """
    from mois.propagation import Similarity

    backbone = backbone or nano_backbone()
    propagation = propagation or Similarity()
    propagation.build(backbone)
    others = copy.deepcopy((adapter, backbone, propagation))
    with torch.no_grad():
        before = answers(backbone)
    own = {name: (tensor, tensor.detach().clone()) for name, tensor in backbone.state_dict(keep_vars=True).items()}
    adapter.attach(backbone, propagation)
    backbone.eval()  # dropout of an adapter gives no answer twice
    with torch.no_grad():
        changed = largest_change(before, answers(backbone))
    _require(changed <= IDENTITY, f"attaching alone changes what the backbone answers (by {changed:.1g})")
    _train_two_steps(backbone, own.keys())
    for name, (tensor, first) in own.items():
        _require(tensor.requires_grad or torch.equal(tensor, first), f"{name} is frozen, and changed")
    _check_saved(adapter, backbone, *others)
    _check_disabled(adapter, backbone, before)
    _check_merged(adapter, backbone, own.keys())


def _train_two_steps(backbone: Backbone, own: Collection[str]) -> None:
    """Train what an adapter trains of a backbone, and check the gradients.

    Args:
        backbone: Backbone with the adapter.
        own: Names of the backbone's tensors without the adapter. An example may give one of them a gradient of 0.
    """
    trained = {name: tensor for name, tensor in backbone.named_parameters() if tensor.requires_grad}
    if not trained:
        return
    optimiser = torch.optim.AdamW(trained.values(), lr=1e-3)
    for step in range(2):
        idle = without_gradient(backbone)
        if step:
            idle += [name for name in trained.keys() - own if not trained[name].grad.any()]  # type: ignore[union-attr]
        of_all = f"of {len(trained)} trained tensors get no gradient{' after one step' if step else ''}"
        _require(not idle, f"{len(idle)} {of_all}: {', '.join(idle[:5])}")
        optimiser.step()


def _check_saved(
    adapter: Adapter, backbone: Backbone, other: Adapter, fresh: Backbone, propagation: Propagation
) -> None:
    """Check that what an adapter saves gives the same model in another backbone, by another adapter like it."""
    other.attach(fresh, propagation)
    fresh.eval()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        adapter.save(Path(folder))
        other.load(Path(folder))
        saved, loaded = backbone.state_dict(), fresh.state_dict()
        apart = sorted(saved.keys() ^ loaded.keys()) or [k for k in saved if not torch.equal(saved[k], loaded[k])]
        _require(not apart, f"load does not give back what save wrote: {', '.join(apart[:5])}")
        same = all(torch.equal(one, two) for one, two in zip(answers(backbone), answers(fresh), strict=True))
        _require(same, "a saved and loaded adapter gives other answers")


def _check_disabled(adapter: Adapter, backbone: Backbone, before: list[Tensor]) -> None:
    """Check that an adapter that is off gives the first answers, and is as it was afterwards, or that it refuses."""
    try:
        with adapter.disabled():
            pass
    except ValueError:
        return
    trained = [name for name, tensor in backbone.named_parameters() if tensor.requires_grad]
    with torch.no_grad():
        on = answers(backbone)
        with adapter.disabled():
            off = answers(backbone)
        again = answers(backbone)
    _require(all(map(torch.equal, before, off)), "a disabled adapter does not give the backbone's answers exactly")
    same = trained == [name for name, tensor in backbone.named_parameters() if tensor.requires_grad]
    _require(same and all(map(torch.equal, on, again)), "an adapter that was disabled is not as it was before")


def _check_merged(adapter: Adapter, backbone: Backbone, names: Collection[str]) -> None:
    """Check that a merged adapter keeps the answers. `merge` may refuse with a ValueError."""
    with torch.no_grad():
        apart = answers(backbone)
        try:
            adapter.merge()
        except ValueError:
            return
        changed = largest_change(apart, answers(backbone))
    _require(changed <= TOLERANCE, f"merging changes what the backbone answers (by {changed:.1g})")
    _require(backbone.state_dict().keys() == names, "a merged backbone has other tensors than a plain one")


def check_datamodule(datamodule: LightningDataModule) -> None:
    """Check that a datamodule yields episodes to train on and whole volumes to validate on."""
    said = getattr(datamodule, "validates_on_trained_scans", False)
    kind = "a method" if callable(said) else type(said).__name__
    _require(isinstance(said, bool), f"validates_on_trained_scans is {kind}, not a bool")
    datamodule.prepare_data()
    datamodule.setup("fit")
    episodes: Iterable[object] = datamodule.train_dataloader()
    episode = next(iter(episodes))
    _require(isinstance(episode, Episode), f"train_dataloader yields {type(episode).__name__}, not Episode")
    for name, value in zip(Episode._fields, episode, strict=True):  # type: ignore[call-overload]
        wanted = (
            torch.bool
            if name.endswith(("masks", "valid", "targets", "lesions", "is_lesion", "cores"))
            else torch.float32
        )
        _require(value.dtype == wanted, f"Episode.{name} is {value.dtype}, not {wanted}")
    for volume in islice(datamodule.val_dataloader(), 1):
        _require(isinstance(volume, Volume), f"val_dataloader yields {type(volume).__name__}, not Volume")


def _check_tracking(backbone: Backbone, features: Features, answer: MaskPrediction) -> None:
    """Check that any number of remembered slices is attended to, and that rules, masks and behaviour are taken."""
    rules = backbone.tracking
    latest: list[Memory] = []
    clicked = backbone.remember_slice(features, answer.logits, answer.pointer, answer.presence, hard=True)
    for step in range(1, 5):
        known = [(step, clicked), (step - 9, clicked)]  # one behind, one ahead
        followed = backbone.decode(backbone.attend(features, rules.gather(known, latest, slices=9)), None)
        _require(bool(followed.logits.isfinite().all()), f"after {step} slices tracking gives no finite mask")
        seen = backbone.remember_slice(features, followed.logits, followed.pointer, followed.presence)
        latest = rules.keep(seen, latest)
    masks = torch.zeros(2, *features.image.shape[-2:])
    masks[0, 8:24, 8:24] = 1
    given = backbone.adopt(features, masks)
    _require(given.logits.shape == answer.logits.shape, "a reader's mask comes back in another shape than an answer")
    shown = (given.logits > 0).flatten(1).any(1).tolist()
    _require(shown == [True, False], "a reader's mask is lost, or an empty one shows something")
    backbone.behave(backbone.behaviour())


def _check_prepared(propagation: Propagation, backbone: Backbone, query: Features, exemplars: Exemplars) -> None:
    """Check that prepared exemplars give the answers of plain ones."""
    prepared = propagation.prepare(exemplars)
    negative, weight = torch.zeros_like(exemplars.negative), torch.ones_like(exemplars.weight)
    negative[:, 0], weight[:, 1] = True, 2
    for change in (
        lambda some: some,
        lambda some: some.pick(slice(1, 2)),
        lambda some: some.pick(slice(0, 0)),
        lambda some: some.map(negative=negative, weight=weight),
        lambda some: propagation.prepare(some),
    ):
        plain, ready = (propagation(query, change(some), backbone).logits for some in (exemplars, prepared))
        _require(_close(plain, ready), "prepared exemplars (or some of them, or reweighed ones) give another answer")


def _check_gradients(propagation: Propagation, backbone: Backbone, query: Features, exemplars: Exemplars) -> None:
    """Check that each trainable tensor gets a gradient."""
    trainable = [(name, p) for name, p in propagation.named_parameters() if p.requires_grad]
    if not trainable:
        return
    mixed = exemplars.negative.clone()
    mixed[:, -1] = True
    valid = exemplars.valid.clone()
    total = torch.zeros(())
    for flags in (valid, torch.zeros_like(valid)):
        answer = propagation(query, exemplars.map(valid=flags, negative=mixed), backbone)
        total = total + answer.logits.square().mean() + answer.presence.square().mean()
    gradients = torch.autograd.grad(total, [p for _, p in trainable], allow_unused=True)
    without = [name for (name, _), gradient in zip(trainable, gradients, strict=True) if gradient is None]
    _require(not without, f"{len(without)} trainable tensors get no gradient: {', '.join(without[:5])}")


def _rows(exemplars: Exemplars, rows: slice) -> Exemplars:
    return exemplars.each(lambda tensor: tensor[rows])


def _close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(torch.allclose(one, other, atol=TOLERANCE, rtol=1e-3))


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ContractError(otherwise)
