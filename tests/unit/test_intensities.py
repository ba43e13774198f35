"""What lies around a body is told by the scan, not by the number 0; which rule it was is recorded and compared."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules.nifti import NiftiDataModule
from datamodules.pretraining import held_back_volume
from datamodules.slabs import cut_slab
from datamodules.subjects import prepare_volume
from mois.evaluation.robustness import CHANGES, change_scan
from mois.files.json_records import as_record
from mois.inference.segmenter import VolumeSegmenter
from mois.inference.settings import InferenceSettings
from mois.intensities import CT_WINDOW_HU, FIRST, Normalisation, doubt, find_background, levels, normalise
from mois.session import InteractiveSession
from mois.sharing.bank import ExemplarBank
from mois.sharing.identity import ModelIdentity
from mois.sharing.lesion_model import LesionModel
from tests.support.datasets import scan_with_lesions, write_dataset
from tests.support.fake_model import FakeBackbone, FakePropagation, eight_lesions, make_scan

BODY, CT = Normalisation("body"), Normalisation("window", CT_WINDOW_HU)


def body(background: np.ndarray | float, seed: int = 0, signal: float = 150, spread: float = 40) -> torch.Tensor:
    """Return a scan of noise with a block of tissue in its middle."""
    image = np.broadcast_to(np.asarray(background, np.float32), (24, 20, 12)).copy()
    image[4:-4, 4:-4, 2:-2] = np.random.default_rng(seed).normal(signal, spread, (16, 12, 8))
    return torch.from_numpy(image)


def noise(level: float, spread: float, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(level, spread, (24, 20, 12))


def test_intensities_are_scaled_by_percentiles_of_the_body() -> None:
    image = torch.cat([torch.zeros(500), torch.arange(1.0, 202.0)])  # 1..201: percentiles 2 and 200
    seen = normalise(image)
    assert not seen[:500].any()
    assert seen[500:].max() == pytest.approx(199 / 198)
    assert seen[500] == 0  # below the low percentile
    assert seen[600] == pytest.approx(0.5)  # 101 lies half way
    assert normalise(torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0] * 100 + [1e6])).max() == 2


@pytest.mark.parametrize("number", range(3))
def test_phantoms_are_normalised_as_ever(number: int) -> None:
    volume = held_back_volume(0, number)
    slab = cut_slab(volume, range(8, 15))
    for image in (volume.image, slab.image):
        assert torch.equal(normalise(image), normalise(image, FIRST))


@pytest.mark.parametrize("image", [torch.from_numpy(scan_with_lesions()[0]), eight_lesions().image, body(0).abs()])
def test_scans_whose_background_is_0_are_normalised_as_ever(image: torch.Tensor) -> None:
    assert torch.equal(normalise(image), normalise(image, FIRST))
    assert doubt(image, FIRST) == ""


@pytest.mark.real_data
def test_real_scans_whose_background_is_0_are_normalised_as_ever(real_data: Path) -> None:
    from mois.scans.datasets import read_dataset

    for scan in read_dataset(real_data / "Dataset501_MSLesions"):
        for channel in scan.images:
            image = scan.read(channel).image
            assert torch.equal(normalise(image), normalise(image, FIRST))


@pytest.mark.parametrize("channel", ["", "CT", " ct"])
def test_0_hu_is_tissue_like_any_other(channel: str) -> None:
    image = torch.round(body(-1024.0, signal=20, spread=25))
    image[10, 10, 4:7] = torch.tensor([-1.0, 0.0, 1.0])
    seen = normalise(image, channel=channel)
    below, zero, above = seen[10, 10, 4:7].tolist()
    assert below < zero < above
    assert zero - below == pytest.approx(above - zero, rel=1e-3)
    assert not seen[:4].any()
    assert (seen[4:-4, 4:-4, 2:-2] > 0).float().mean() > 0.98


def test_ct_has_a_window_of_its_own() -> None:
    image = body(-1024.0, signal=20, spread=25)
    image[10, 10, 4:9] = torch.tensor([-161.0, -160.0, 40.0, 240.0, 3000.0])
    assert normalise(image, channel="CT")[10, 10, 4:9].tolist() == pytest.approx([0, 0, 0.5, 1, 2])
    assert levels(image, channel="CT")[1:3] == CT_WINDOW_HU
    masked = torch.where(image == -1024, 0.0, image)  # as skull-stripped brains are
    assert not normalise(masked, channel="CT")[:4].any()
    assert normalise(masked, channel="CT")[10, 10, 6] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("image", "highest"),
    [
        (body(-1024.0), -1024),  # one value, the lowest
        (body(-800.0, signal=0), -800),
        (body(10.0, signal=200), 10),
        (body(noise(10, 2), signal=200), 18),  # noise around a level
        (body(noise(-1000, 10), signal=30), -960),  # air, as CT has it
        (body(noise(100, 3), signal=900, spread=200), 112),  # a camera's offset
    ],
)
def test_a_background_that_is_not_0_is_found(image: torch.Tensor, highest: float) -> None:
    found = find_background(image.numpy())
    truth = torch.ones(image.shape, dtype=torch.bool)
    truth[4:-4, 4:-4, 2:-2] = False
    assert found is not None
    assert (torch.from_numpy(found) == truth).float().mean() > 0.995
    assert image[torch.from_numpy(found)].max() <= highest
    seen = normalise(image)
    assert not seen[torch.from_numpy(found)].any()
    tissue = image[~truth]
    assert levels(image).high == pytest.approx(float(np.percentile(tissue, 99.5)), rel=0.02)
    assert seen[~truth].median() == pytest.approx(0.5, abs=0.1)


def test_air_within_a_padding_is_background_too() -> None:
    image = body(noise(-1000, 10), signal=20, spread=25)
    image[:2], image[-2:], image[:, :2], image[:, -2:] = -3024, -3024, -3024, -3024
    found = find_background(image.numpy())
    assert found is not None
    assert found.mean() == pytest.approx(1 - 16 * 12 * 8 / (24 * 20 * 12), abs=0.01)


def test_what_lies_within_a_difference_of_scans_is_not_taken_for_what_lies_around_it() -> None:
    image = torch.round(body(0.0, signal=0, spread=6))
    inside = image[5:-5, 5:-5, 3:-3]
    assert (inside == 0).float().mean() > 0.04
    seen = normalise(image)[5:-5, 5:-5, 3:-3][inside == 0]
    assert 0.3 < float(seen.median()) < 0.7
    assert (seen == seen.median()).float().mean() > 0.9  # but for chains of zeros to the border
    assert not normalise(image)[:4].any()


@pytest.mark.parametrize(
    "image",
    [
        torch.from_numpy(noise(150, 40)),  # tissue to the border
        torch.from_numpy(noise(1000, 300)),
        body(noise(300, 40), signal=100, spread=20),  # the darkest is in the middle
        torch.arange(1, 24 * 20 * 12 + 1.0).view(24, 20, 12),
    ],
)
def test_where_nothing_tells_the_background_all_is_body(image: torch.Tensor) -> None:
    seen, (outside, low, high, _) = normalise(image), levels(image)
    assert outside is None
    assert (low, high) == pytest.approx(np.percentile(image.float().numpy(), (0.5, 99.5)))
    assert seen.max() <= 2


def test_a_scale_and_an_offset_change_nothing() -> None:
    for image in (body(noise(10, 2), signal=200), body(5.0, signal=200)):
        moved = normalise(image * 3 + 40)
        assert torch.allclose(moved, normalise(image), atol=2e-4)


def test_intensities_that_are_no_numbers_are_refused() -> None:
    image = body(0.0)
    image[3, 3, 3] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        normalise(image)


def test_scans_without_any_contrast_do_not_break() -> None:
    assert not normalise(torch.zeros(4, 4, 4)).any()
    assert normalise(torch.full((4, 4, 4), 7.0)).isfinite().all()
    assert normalise(torch.zeros(3, 1, 1)).shape == (3, 1, 1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rule": "zscore"}, "normalisation.rule='zscore' is unknown; choose auto, body, window, nonzero"),
        ({"rule": "window"}, "needs normalisation.window"),
        ({"rule": "body", "window": (0, 1)}, "is not used by rule=body"),
        ({"rule": "window", "window": (240, -160)}, "the lower one first"),
        ({"rule": "window", "window": (0, float("inf"))}, "must be two numbers"),
    ],
)
def test_a_rule_that_cannot_work_is_refused(given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Normalisation(**given)


def test_auto_is_settled_by_the_name_of_the_channel() -> None:
    assert Normalisation().for_channel("CT") == CT
    assert Normalisation().for_channel("T2") == Normalisation().for_channel() == BODY
    assert Normalisation(window=(-1000, 400)).for_channel("T2") == Normalisation("window", (-1000, 400))
    assert FIRST.for_channel("CT") == FIRST


@pytest.mark.parametrize("rule", [BODY, CT, FIRST, Normalisation()])
def test_a_rule_is_stored_as_json(rule: Normalisation) -> None:
    plain = json.loads(json.dumps(rule.as_dict()))
    assert Normalisation.from_dict(plain) == as_record(plain, Normalisation, "rule") == rule
    settings = InferenceSettings(normalisation=rule)
    assert as_record(json.loads(json.dumps(asdict(settings))), InferenceSettings, "settings") == settings
    assert Normalisation.from_dict(None) == FIRST


def model(rule: Normalisation) -> VolumeSegmenter:
    return VolumeSegmenter(FakeBackbone(), FakePropagation(), InferenceSettings(tile_px=32, normalisation=rule))


def test_training_and_inference_see_the_same_intensities() -> None:
    volume = eight_lesions()
    volume = volume._replace(image=torch.where(volume.image == 0, -1024.0, volume.image - 20), channel="CT")
    for rule in (Normalisation(), BODY, CT):
        encoded = model(rule).encode(volume)
        prepared = prepare_volume(volume, pixel_mm=1.5, patch_px=32, normalisation=rule)
        stack = prepared.scan["image"].data[0].permute(2, 1, 0)
        assert torch.equal(encoded.pictures, stack[:, : encoded.pictures.shape[1], : encoded.pictures.shape[2]])
    assert torch.equal(model(Normalisation()).encode(volume).pictures, model(CT).encode(volume).pictures)
    assert not torch.equal(model(BODY).encode(volume).pictures, model(CT).encode(volume).pictures)


@pytest.mark.parametrize(
    ("channel", "rule", "message"),
    [
        ("CT", BODY, "calls its image 'CT', which would be normalised by the rule window -160 to 240; .* used, body"),
        ("T2", CT, "calls its image 'T2', which would be normalised by the rule body"),
        ("", CT, "no intensity lies below -160"),
        ("T2", FIRST, "not 0, but the model takes 0 for that"),
    ],
)
def test_a_model_whose_rule_does_not_suit_a_scan_says_so(channel: str, rule: Normalisation, message: str) -> None:
    volume = eight_lesions()
    lifted = torch.where(volume.image == 0, 5.0, volume.image)
    with pytest.warns(UserWarning, match=f"scan scan: .*{message}"):
        model(rule).encode(volume._replace(image=lifted, channel=channel))


def test_a_bank_is_of_one_rule(tmp_path: Path) -> None:
    volume = eight_lesions()
    sessions = {rule.rule: InteractiveSession(LesionModel.of(model(rule)), volume) for rule in (BODY, FIRST)}
    sessions["body"].mask(volume.lesions == 1)
    sessions["body"].bank.save(tmp_path / "bank.safetensors")
    assert InteractiveSession(LesionModel.of(model(BODY)), volume).use_bank(tmp_path / "bank.safetensors") == 1
    for bank in (tmp_path / "bank.safetensors", sessions["body"].bank):
        with pytest.raises(ValueError, match="normalised by the rule body, here it is nonzero; make a new bank"):
            sessions["nonzero"].use_bank(bank)
    identity = ModelIdentity.of(sessions["body"]._bench.segmenter.backbone, FakePropagation())
    assert ExemplarBank.load(tmp_path / "bank.safetensors", identity, 1.5).normalisation == BODY


def test_a_session_goes_on_by_its_rule_alone(tmp_path: Path) -> None:
    volume = eight_lesions()
    session = InteractiveSession(LesionModel.of(model(BODY)), volume, tmp_path / "session")
    session.mask(volume.lesions == 1)
    session.close()
    InteractiveSession.load(tmp_path / "session", LesionModel.of(model(Normalisation())), volume).close()
    with pytest.raises(ValueError, match=r"made with inference\.normalisation=.*'body'.*, now it is .*'nonzero'"):
        InteractiveSession.load(tmp_path / "session", LesionModel.of(model(FIRST)), volume)


def test_a_datamodule_says_which_rule_its_scans_were_normalised_by(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data")
    about = json.loads((root / "dataset.json").read_text())
    assert NiftiDataModule(root).normalisation_of_images() == BODY
    mr = NiftiDataModule(root)._key(NiftiDataModule(root).splits.train[0])
    (root / "dataset.json").write_text(json.dumps({**about, "channel_names": {"0": "CT"}}))
    data = NiftiDataModule(root)
    assert data.splits.train[0].read().channel == "CT"
    assert data.normalisation_of_images() == CT
    assert data._key(data.splits.train[0]) != mr  # prepared scans of another rule are others
    assert NiftiDataModule(root, normalisation=BODY).normalisation_of_images() == BODY
    assert NiftiDataModule(root, normalisation=BODY)._key(data.splits.train[0]) == mr


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_scan_keeps_what_lies_around_the_body(name: str) -> None:
    volume = make_scan([])._replace(image=body(-1024.0, signal=20, spread=25))
    new = change_scan(volume, name).image
    outside = volume.image == -1024
    assert torch.equal(new[outside], volume.image[outside])
    assert new.isfinite().all()
    assert new[~outside].median() == pytest.approx(20, abs=0.2 * 1044)  # of the way from air to tissue
    assert not torch.equal(new, volume.image)


@pytest.mark.parametrize("value", [5.0, -1.0, float("nan")])
def test_masks_of_exemplars_are_no_logits(value: float) -> None:
    segmenter = model(BODY)
    encoded = segmenter.encode(eight_lesions())
    mask = torch.zeros_like(encoded.pictures[1])
    mask[12:20, 12:20] = value
    with pytest.raises(ValueError, match=r"a mask holds .*; give bool, or 0 to 1 \(sigmoid of logits\)"):
        segmenter.exemplars(encoded, [(1, mask)])
    assert bool(segmenter.exemplars(encoded, [(1, mask != 0)]).valid.all())


def scanned_ct(frame: float = -2000.0, slab: float | None = 0.0, slices: int = 6) -> torch.Tensor:
    """Return a CT (48, 48, 30) with a body in air, a frame around its circle, and slices of one value at an end."""
    rng = np.random.default_rng(0)
    image = rng.normal(-1000, 10, (48, 48, 30))
    image[12:-12, 12:-12, :] = rng.normal(30, 25, (24, 24, 30))
    image = np.round(image)
    across = ((np.indices((48, 48)) - 23.5) ** 2).sum(0)
    image[across > 24**2] = frame
    if slab is not None:
        image[:, :, :slices] = slab
    return torch.from_numpy(image.astype(np.float32))


@pytest.mark.parametrize("slab", [0.0, 1000.0, -3024.0])
@pytest.mark.parametrize("slices", [1, 6, 20])
@pytest.mark.parametrize("channel", ["", "CT"])
@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1)])
def test_a_slab_of_one_value_is_no_tissue(slab: float, slices: int, channel: str, axes: tuple[int, ...]) -> None:
    whole = scanned_ct(slab=slab, slices=slices)
    seen = normalise(whole.permute(axes).flip(axes.index(2)), channel=channel).flip(axes.index(2))
    alone = normalise(scanned_ct(slab=None)[:, :, slices:], channel=channel)
    seen = seen.permute([axes.index(axis) for axis in range(3)])
    assert not seen[:, :, :slices].any()
    # air is told by a sample of it, which depends on what lies beside it
    assert torch.allclose(seen[:, :, slices:], alone, atol=1e-6 if channel else 0.05)


def test_a_slab_is_taken_off_where_nothing_frames_the_scan() -> None:
    image = torch.from_numpy(np.round(noise(20, 30)).astype(np.float32))
    image[:3] = 0.0
    seen = normalise(image)
    assert not seen[:3].any()
    assert torch.equal(seen[3:], normalise(image[3:]))


@pytest.mark.parametrize("rows", [1, 4])
def test_slices_that_each_hold_another_value_are_no_padding(rows: int) -> None:
    image = torch.linspace(-1000, 1000, 101).reshape(1, -1, 1).expand(rows, -1, rows)
    seen = normalise(image)
    assert seen[0, 25, 0] == pytest.approx(0.25, abs=0.02)
    assert seen[0, 75, 0] == pytest.approx(0.75, abs=0.02)


@pytest.mark.parametrize("window", [(3,), ("a", "b"), (-1e300, 1e300), (0, None)])
def test_a_window_that_is_no_two_intensities_is_refused(window: Any) -> None:
    with pytest.raises(ValueError, match=r"normalisation\.window=.* must be two numbers"):
        Normalisation("window", window)
