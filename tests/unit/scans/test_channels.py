"""Channels of a scan by name: which image is which, and how a model sees them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mois.errors import DataError
from mois.geometry import SliceGrid
from mois.inference.settings import InferenceSettings
from mois.intensities import Normalisation
from mois.records import Channel, Volume
from mois.scans.channels import (
    channel_numbers,
    channels_of,
    named_images,
    neighbours,
    normalised_stack,
    rule_of_channels,
    sequence_of_each,
    wanted_channels,
)

FLAIR, T2 = torch.rand(8, 8, 3) + 1, torch.rand(8, 8, 3) * 50 + 3


def scan(*names: str) -> Volume:
    """Return a scan of 8 x 8 x 3 voxels of 1 mm, with a sequence for each name."""
    further = tuple(Channel(name, T2) for name in names[1:])
    nothing = torch.zeros(8, 8, 3, dtype=torch.int32)
    affine = torch.diag(torch.tensor([1.0, 1, 4, 1], dtype=torch.float64))
    return Volume("s", "p", FLAIR, affine, nothing, {}, channel=names[0], further=further)


def seen(volume: Volume, *names: str) -> torch.Tensor:
    return normalised_stack(volume, SliceGrid.of(volume.shape, volume.affine), 1.0, names=names)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "b", "c", "d"], "are 4 channels; a model sees 1 to 3"),
        (["T2", " t2"], "names a channel twice"),
        (["T2", ""], "a channel needs a name"),
        (["T2@-1", "T2"], "begins with a neighbouring slice; put the slice itself first: T2"),
    ],
)
def test_channels_that_no_model_can_have_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wanted_channels(names)
    with pytest.raises(ValueError, match=r"inference\.channels"):
        InferenceSettings(channels=tuple(names))


def test_channels_are_found_by_name_whatever_their_order() -> None:
    assert channel_numbers(["t2", "FLAIR"], {0: "FLAIR", 1: "T2"}, "here") == [1, 0]
    both = scan("FLAIR", "T2")
    assert torch.equal(seen(both, "T2", "FLAIR"), seen(both, "FLAIR", "T2").flip(0))
    assert torch.equal(seen(both, "T2"), seen(both, "FLAIR", "T2")[1])
    with pytest.raises(DataError, match=r"channel T1 is needed, but dataset\.json names FLAIR, T2"):
        channel_numbers(["T1"], {0: "FLAIR", 1: "T2"}, "here")


def test_one_image_without_a_name_is_the_only_sequence_of_a_model() -> None:
    assert torch.equal(seen(scan(""), "FLAIR"), seen(scan("")))
    assert seen(scan(""), "T2", "T2@-1", "T2@+1").shape == (3, 3, 8, 8)
    for volume, names in ((scan(""), ["FLAIR", "T2"]), (scan("T1"), ["FLAIR"])):
        with pytest.raises(DataError, match="the model sees FLAIR"):
            channels_of(volume, names)
    with pytest.raises(DataError, match="has the channels FLAIR, T2, the model takes one image"):
        channels_of(scan("FLAIR", "T2"), [])


def test_neighbouring_slices_are_channels_and_the_ends_repeat() -> None:
    stack = torch.arange(3.0).view(3, 1, 1)
    assert neighbours(stack, -1).flatten().tolist() == [0, 0, 1]
    assert neighbours(stack, 1).flatten().tolist() == [1, 2, 2]
    one = seen(scan("T2"), "T2", "T2@+1")
    assert torch.equal(one[1, 0], one[0, 1])
    assert sequence_of_each(["T2", "FLAIR", "T2@+1"]) == (0, 1, 0)


def test_the_rule_of_channels_is_settled_if_it_is_one_rule() -> None:
    assert rule_of_channels(Normalisation(), ["FLAIR", "T2"]) == Normalisation("body")
    assert rule_of_channels(Normalisation(), ["CT", "PET"]) == Normalisation()  # CT has a window, PET has none
    assert rule_of_channels(Normalisation(), [], "CT").rule == "window"


def test_files_of_channels_are_given_by_name_in_any_order(tmp_path: Path) -> None:
    given = ["T2=b.nii.gz", "flair=a.nii.gz"]
    assert list(named_images(given, ["FLAIR", "T2"]).items()) == [("FLAIR", Path("a.nii.gz")), ("T2", Path("b.nii.gz"))]
    assert named_images(["a.nii.gz"], []) == {"": Path("a.nii.gz")}
    odd = tmp_path / "a=b.nii.gz"
    odd.touch()
    assert named_images([str(odd)], ["FLAIR"]) == {"FLAIR": odd}
    for wrong, message in (
        (["FLAIR=a.nii.gz"], "channel T2 is missing; the model sees FLAIR, T2; add --image T2=FILE"),
        (["a.nii.gz"], "a.nii.gz is none of its channels"),
        ([*given, "T2=c.nii.gz"], "or one twice"),
    ):
        with pytest.raises(DataError, match=message):
            named_images(wrong, ["FLAIR", "T2"])
