"""Plans of small datasets, each number computed by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from mois.errors import DataError
from mois.planning import rules
from mois.planning.config_text import config_text
from mois.planning.contrast import lesion_contrast
from mois.planning.plan import DatasetFacts, make_plan
from mois.records import Volume
from mois.scans.dataset_description import DatasetDescription
from mois.scans.dataset_facts import ScanFacts

DESCRIPTION = DatasetDescription({1: "lesion"}, ".nii.gz", {0: "T2", 1: "T1"})


def scan(
    patient: str, lesions: int = 20, slices: int = 40, lesion_slices: int = 3, across_mm: float = 12.0
) -> ScanFacts:
    """Return a scan with voxels of 1 x 1 x 2 mm, so 0.002 ml, and lesions of 1 ml, so 500 voxels."""
    every = np.ones(lesions)
    return ScanFacts(
        (2.0, 1.0, 1.0), (200.0, 200.0), every.astype(np.int64), across_mm * every, every, 0, False,
        f"{patient}_scan", patient, slices, (lesion_slices * every).astype(np.int64), 0.002,
    )  # fmt: skip


def facts(*scans: ScanFacts, contrasts: dict[int, list[float]] | None = None) -> DatasetFacts:
    return DatasetFacts(Path("data"), DESCRIPTION, scans, contrasts or {0: []}, 0, has_splits=False)


def test_ten_patients_of_twenty_lesions() -> None:
    plan = make_plan(facts(*(scan(f"p{number}") for number in range(10))))
    assert plan.sizes == (1.0, 128)  # 12 mm across are 12 pixels of 1 mm; twice 12 pixels are below 128
    assert plan.split.val_subjects == ("p2_scan", "p7_scan")  # a fifth, from the middle of each half
    assert plan.steps == 600  # 160 lesions x 40 / 4 = 1600, at most 600
    assert plan.episodes_per_epoch == 600  # 600 steps of 4 in 4 epochs
    assert plan.adaptation.parts == ("trunk", "memory_attention", "decoder")  # 8 patients, 160 lesions
    assert (plan.clip, plan.exemplars, plan.prompted) == (3, 3, 5)
    assert plan.min_lesion_voxels == 30  # 500 voxels are more than the largest minimum
    assert (plan.surface_mm, plan.bins_ml) == (
        None,
        [1.0],
    )  # 2 mm fit lesions of 12 mm; all are in one bin of the usual


def test_names_with_rare_letters_are_in_the_config_as_they_are() -> None:
    given = facts(*(scan(f"𠮷野{number}🧠") for number in range(10)))._replace(root=Path("/data/脑🧠"))
    data = yaml.safe_load(config_text(make_plan(given), Path("c.yaml")))["data"]["init_args"]
    assert data["root"] == "/data/脑🧠"
    assert data["split"] == {"val_subjects": ["𠮷野2🧠_scan", "𠮷野7🧠_scan"]}


def test_two_patients_of_six_lesions() -> None:
    plan = make_plan(facts(scan("a", 6, lesion_slices=1), scan("b", 6, lesion_slices=1)))
    assert plan.split.val_slab == 0.25
    assert plan.steps == 100  # 12 lesions, three quarters train: 9 x 40 / 4 = 90, at least 100
    assert plan.adaptation.parts == ()
    assert plan.clip == 1  # a lesion shows on one slice
    assert plan.exemplars == 3
    assert plan.prompted == 1  # a slab has 6 / 4 lesions, half of them are 0.75


def test_large_lesions_have_large_patches_and_small_batches() -> None:
    plan = make_plan(facts(scan("a"), scan("b", 3, across_mm=200.0), scan("c", 3, across_mm=200.0)))
    assert plan.sizes == (1.0, 512)  # a tenth is 200 pixels across; twice that are 400
    assert plan.batch_size == 1  # 4 x (128 / 512)^2 = 0.25, at least 1
    assert "tile_px: 512" in config_text(plan, Path("c.yaml"))


@pytest.mark.parametrize(
    ("scans", "has_splits", "fold", "subjects", "slab"),
    [
        ([scan("a"), scan("b")], True, 0, (), 0.0),
        ([scan("a")], False, None, (), 0.25),
        ([scan("a", slices=1)], False, None, (), 0.0),
        ([scan("a", 9, slices=5), scan("b", 2, slices=5), scan("c", 5, slices=5)], False, None, ("c_scan",), 0.0),
        ([scan(name, number) for number, name in enumerate("abcdef")], False, None, ("d_scan",), 0.0),
    ],
)
def test_who_validates(
    scans: list[ScanFacts], has_splits: bool, fold: int | None, subjects: tuple[str, ...], slab: float
) -> None:
    """The last row: a has no lesion; of b to f with 1 to 5 lesions, d is in the middle."""
    split = rules.choose_split(scans, has_splits)
    assert (split.fold, split.val_subjects, split.val_slab) == (fold, subjects, slab)


def test_all_scans_of_a_patient_validate() -> None:
    scans = [scan(name, 10 if name == "c" else 20) for name in "abcde"]  # c is in the middle, with both of its scans
    assert rules.choose_split([*scans, scan("c", 10)._replace(subject="c_later")], has_splits=False).val_subjects == (
        "c_scan",
        "c_later",
    )


@pytest.mark.parametrize(("middle", "clip"), [(1, 1), (2, 3), (11, 3), (12, 5)])
def test_clip(middle: int, clip: int) -> None:
    assert rules.choose_clip([1, middle, middle, middle, 50]) == clip


def test_a_backbone_that_does_not_track_has_no_adapter_in_its_memory() -> None:
    assert rules.choose_adaptation(8, 100, clip=1).parts == ("trunk", "decoder")
    assert rules.choose_adaptation(8, 99, clip=3).parts == ()
    assert rules.choose_adaptation(7, 100, clip=3).parts == ()


def test_channel_with_the_largest_contrast() -> None:
    assert rules.choose_channel({0: [1.0, 2.0, 3.0], 1: [0.0, 2.5, 9.0]}) == 1  # medians 2 and 2.5
    assert rules.choose_channel({0: [1.0], 1: [1.0]}) == 0
    assert make_plan(facts(scan("a"), contrasts={0: [1.0], 1: [2.0]})).reasons["channel"] == (
        "lesions stand out most in it (T2 1, T1 2); or name up to three together in channels"
    )


def test_contrast_of_lesions() -> None:
    """Lesions are 10 and 14, the ring is 2 and 4 in turn: means 12 and 3, deviations 2 and 1."""
    lesions = torch.zeros(20, 20, 4, dtype=torch.int32)
    lesions[8:12, 8:12] = 1
    columns = torch.arange(20).view(1, 20, 1).expand(20, 20, 4) % 2
    image = torch.where(lesions > 0, 10.0 + 4 * columns, 2.0 + 2 * columns)
    volume = Volume("a", "a", image, torch.eye(4, dtype=torch.float64), lesions, {1: 1})
    assert lesion_contrast(volume) == pytest.approx(9 / np.sqrt((4 + 1) / 2))
    assert lesion_contrast(volume._replace(lesions=torch.zeros_like(lesions), classes={})) == 0


def test_nothing_to_plan() -> None:
    with pytest.raises(DataError, match="data: no training scan has a lesion"):
        make_plan(facts(scan("a", 0)))
    with pytest.raises(DataError, match="no channel is there for every scan"):
        make_plan(facts(scan("a"))._replace(contrasts={}))


def test_every_derived_value_of_a_config_says_where_it_comes_from() -> None:
    text = config_text(make_plan(facts(*(scan(f"p{number}") for number in range(10)))), Path("c.yaml"))
    assert text.startswith("# mois fit --config c.yaml\n")
    for name in ("max_epochs", "adapter", "prompted", "split", "pixel_mm", "patch_px", "clip", "exemplars"):
        (line,) = [line for line in text.splitlines() if line.strip().startswith(f"{name}:")]
        assert " # " in line
    content = yaml.safe_load(text)
    assert content["data"]["init_args"]["split"] == {"val_subjects": ["p2_scan", "p7_scan"]}
    assert content["model"]["adapter"]["init_args"]["placement"]["parts"] == ["trunk", "memory_attention", "decoder"]


def test_scans_of_one_class_are_mixed_with_episodes_that_show_what_exemplars_are_for() -> None:
    one, other = scan("a"), scan("b")
    two = other._replace(classes=2 * other.classes)
    of_one = yaml.safe_load(config_text(make_plan(facts(one, other)), Path("c.yaml")))
    of_two = yaml.safe_load(config_text(make_plan(facts(one, two)), Path("c.yaml")))
    assert (of_one["data"]["init_args"]["replay"], of_one["data"]["init_args"]["mix"]) == (0.5, {"background": 0.4})
    assert of_one["data"]["init_args"]["augmentation"] == {"affine": 0.8, "zoom": 0.5}
    assert of_one["model"]["learning"] == {"corrections": 2, "first_masks": 0.3}
    assert {"replay", "mix", "augmentation"}.isdisjoint(of_two["data"]["init_args"])
    assert of_two["model"]["learning"] == {"corrections": 2}
