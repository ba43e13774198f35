"""Exemplars, and the bank that keeps them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mois.propagation import Similarity
from mois.records import Exemplars, WeightsIdentity
from mois.sharing.bank import Exemplar, ExemplarBank, measure_mask
from mois.sharing.identity import ModelIdentity
from mois.testing import nano_backbone

MODEL = ModelIdentity(WeightsIdentity("nano", "bundled", "a" * 64), "b" * 64, "mois.propagation.Similarity", "c" * 64)


def exemplar(
    key: str, value: float | tuple[float, ...] = 0.0, *, negative: bool = False, weight: float = 1
) -> Exemplar:
    values = value if isinstance(value, tuple) else (value,)
    tokens = {"means": torch.tensor([values]), "log_area": torch.tensor([0.5])}
    return Exemplar(key, "scan1", "anna", (1.5, -20.0, 300.25), 40.0, 0.7, 0.25, negative, weight, tokens=tokens)


def bank_of(*exemplars: Exemplar) -> ExemplarBank:
    bank = ExemplarBank(MODEL, 1.5)
    for one in exemplars:
        bank.add(one)
    return bank


def test_exemplars_have_weight_1_unless_told_and_keep_it_through_every_change() -> None:
    tokens, valid = {"value": torch.arange(6.0).view(2, 3, 1)}, torch.ones(2, 3, dtype=torch.bool)
    plain = Exemplars(tokens, valid, ~valid)
    assert torch.equal(plain.weight, torch.ones(2, 3))
    weight = torch.tensor([[0.0, 1, 2], [3, 4, 5]])
    heavy = plain.map(weight=weight)
    assert heavy.present.tolist() == [[False, True, True], [True, True, True]]
    assert heavy.pick(torch.tensor([2, 0])).weight.tolist() == [[2, 0], [5, 3]]
    assert heavy.reshape(1, 6).weight.tolist() == [[0, 1, 2, 3, 4, 5]]
    assert heavy.reshape(1, 6).expand(2).weight.tolist() == [[0, 1, 2, 3, 4, 5]] * 2
    assert Exemplars.cat([heavy, plain]).weight.tolist() == [[0, 1, 2, 1, 1, 1], [3, 4, 5, 1, 1, 1]]
    assert heavy.each(lambda tensor: tensor[1:]).weight.tolist() == [[3, 4, 5]]


def test_a_mask_is_measured_in_millimetres() -> None:
    picture = torch.zeros(12, 12)
    picture[4:8, 4:8] = 0.2  # the ring, 1 pixel wide
    picture[5:7, 5:7] = 0.8  # the lesion, 4 pixels of 2 x 2 mm
    mask = picture > 0.5
    area_mm2, inside, contrast = measure_mask(picture, mask, pixel_mm=2.0, ring_mm=2.0)
    assert area_mm2 == 16
    assert inside == pytest.approx(0.8)
    assert contrast == pytest.approx(0.6)
    assert measure_mask(picture, torch.zeros(12, 12), 2.0) == (0, 0, 0)
    assert measure_mask(picture[5:7, 5:7], torch.ones(2, 2), 2.0) == (16, pytest.approx(0.8), 0)  # no ring


def test_an_exemplar_is_taken_out_of_a_query() -> None:
    tokens = {"value": torch.arange(6.0).view(1, 2, 3)}
    query = Exemplars(tokens, torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2, dtype=torch.bool))
    picture, mask = torch.full((8, 8), 0.5), torch.zeros(8, 8)
    mask[3, 3] = 1
    one = Exemplar.of(
        "7", query, 1, picture=picture, mask=mask, pixel_mm=1.5, scan="s", patient="p", position_lps_mm=(1, 2, 3)
    )
    assert one.tokens["value"].tolist() == [3, 4, 5]
    assert (one.area_mm2, one.mean_intensity, one.contrast) == (2.25, 0.5, 0)


def test_every_change_counts() -> None:
    bank = bank_of(exemplar("a", 1), exemplar("b", 2))
    assert (bank.version, len(bank), bank.keys()) == (2, 2, ["a", "b"])
    before = bank.copy()
    bank.replace("a", exemplar("other", 5))
    bank.reweigh("b", 0.5)
    bank.mark("b", negative=True)
    bank.remove("a")
    assert (bank.version, bank.keys()) == (6, ["b"])
    assert (bank["b"].weight, bank["b"].negative) == (0.5, True)
    assert "a" not in bank
    assert (before.version, [float(one.tokens["means"]) for one in before]) == (2, [1, 2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda bank: bank.add(exemplar("a")), "the bank holds an exemplar a already; replace it"),
        (lambda bank: bank.remove("z"), "the bank holds no exemplar z; there is a."),
        (lambda bank: bank.replace("z", exemplar("a")), "the bank holds no exemplar z"),
        (lambda bank: bank.reweigh("a", -1), r"exemplar a: weight=-1.0 must be a number from 0 to 1e"),
        (lambda bank: bank.reweigh("a", float("nan")), "weight=nan must be"),
        (lambda bank: bank.add(exemplar("b", (1.0, 2.0))), r"exemplar b has tokens .* at one tile size"),
        (lambda bank: bank.select(0), "count=0 must be 1 or more"),
    ],
)
def test_a_change_that_cannot_be_leaves_the_bank_as_it_was(change, message) -> None:
    bank = bank_of(exemplar("a", 1))
    with pytest.raises(ValueError, match=message):
        change(bank)
    assert (bank.version, bank.keys(), bank["a"].weight) == (1, ["a"], 1)


def test_the_bank_speaks_as_one_query() -> None:
    bank = bank_of(exemplar("a", 1), exemplar("b", 2, negative=True), exemplar("c", 3, weight=2))
    every = bank.exemplars()
    assert every.tokens["means"].shape == (1, 3, 1, 1)
    assert every.negative.tolist() == [[False, True, False]]
    assert every.weight.tolist() == [[1, 1, 2]]
    assert bank.exemplars(["c", "a"]).tokens["means"].flatten().tolist() == [3, 1]
    assert bank.exemplars([]).count == 0
    assert ExemplarBank(MODEL, 1.5).exemplars().count == 0


def test_those_are_chosen_that_differ_most() -> None:
    # on a line: the mean is 20.4, so that 12 is nearest to it; 90 is farthest from 12, then -8 (20 away from 12)
    bank = bank_of(*(exemplar(str(value), value) for value in (0, 8, 12, 90, -8)))
    assert bank.select(1) == ["12"]
    assert bank.select(2) == ["12", "90"]
    assert bank.select(3) == ["12", "90", "-8"]
    assert bank.select(9) == bank.keys()


def test_negatives_are_chosen_apart_and_weight_0_not_at_all() -> None:
    positives = [exemplar(f"p{n}", n) for n in range(6)]
    negatives = [exemplar(f"n{n}", n, negative=True) for n in range(2)]
    bank = bank_of(*positives, *negatives)
    assert sum(key.startswith("n") for key in bank.select(4)) == 1  # 4 x 2 / 8
    assert sum(key.startswith("n") for key in bank.select(2)) == 1  # at least one
    assert bank.select(1)[0].startswith("p")
    for key in ("n0", "n1", "p0"):
        bank.reweigh(key, 0)
    assert bank.select(8) == ["p1", "p2", "p3", "p4", "p5"]


def test_a_bank_comes_back_from_its_file_and_counts_on(tmp_path: Path) -> None:
    bank = bank_of(exemplar("a", 1.25), exemplar("b", 2, negative=True, weight=0.5))
    bank.save(tmp_path / "deep" / "bank.safetensors")
    loaded = ExemplarBank.load(tmp_path / "deep" / "bank.safetensors", MODEL, 1.5)
    assert loaded.version == 2
    for one, same in zip(bank, loaded, strict=True):
        assert replace(one, tokens={}) == replace(same, tokens={})
        assert all(torch.equal(one.tokens[name], same.tokens[name]) for name in one.tokens)
    loaded.remove("a")
    assert loaded.version == 3
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["bank.safetensors"]

    ExemplarBank(MODEL, 1.5).save(tmp_path / "empty.safetensors")
    assert len(ExemplarBank.load(tmp_path / "empty.safetensors", MODEL, 1.5)) == 0


def test_a_bank_of_another_model_is_refused_with_what_differs(tmp_path: Path) -> None:
    bank_of(exemplar("a")).save(tmp_path / "bank.safetensors")
    another = replace(MODEL, backbone=WeightsIdentity("tiny", "x.pt", "f" * 64), adapter_sha256="9" * 64)
    trained = replace(MODEL, adapter_sha256="9" * 64, propagation_sha256="8" * 64)
    swapped = replace(MODEL, propagation="mois.propagation.Attention")
    for other, words in (
        (another, r"bank.safetensors was made by another model: the backbone \(nano, bundled, sha256 aaaaaaaaaaaa "),
        (another, r"instead of tiny, x.pt, sha256 f{12}\); use the bundle that it was made with, or make a new bank.$"),
        (
            trained,
            r": the adapter \(sha256 bbbbbbbbbbbb instead of 999999999999\) and the propagation's weights \(sha256",
        ),
        (swapped, r"the propagation \(mois.propagation.Similarity instead of mois.propagation.Attention\)"),
    ):
        with pytest.raises(ValueError, match=words):
            ExemplarBank.load(tmp_path / "bank.safetensors", other, 1.5)


def test_a_bank_of_another_pixel_size_is_refused_with_both(tmp_path: Path) -> None:
    bank_of(exemplar("a")).save(tmp_path / "bank.safetensors")
    words = "was described at 1.5 mm a pixel, this model looks at 0.7 mm; set inference.pixel_mm=1.5, or make a new"
    with pytest.raises(ValueError, match=words):
        ExemplarBank.load(tmp_path / "bank.safetensors", MODEL, 0.7)
    assert bank_of().copy().pixel_mm == 1.5


def test_a_file_that_is_no_whole_bank_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "bank.safetensors"
    with pytest.raises(ValueError, match="there is no such bank"):
        ExemplarBank.load(path, MODEL, 1.5)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="is no exemplar bank"):
        ExemplarBank.load(path, MODEL, 1.5)
    bank_of(exemplar("a", (1.0, 2.0, 3.0))).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    with pytest.raises(ValueError, match=r"is cut short or no \.safetensors file"):
        ExemplarBank.load(path, MODEL, 1.5)
    path.write_bytes(whole.replace(b'"format_version":"3"', b'"format_version":"4"'))
    with pytest.raises(ValueError, match="is a bank of format 4, this version reads 2 and 3; make it again"):
        ExemplarBank.load(path, MODEL, 1.5)


def test_the_identity_changes_with_every_part_of_the_model() -> None:
    backbone, propagation = nano_backbone(), Similarity(blocks=1)
    propagation.build(backbone)
    first = ModelIdentity.of(backbone, propagation)
    assert first.propagation == "mois.propagation.similarity.Similarity"
    assert ModelIdentity.from_dict(json.loads(json.dumps(first.as_dict()))) == first
    assert first.differences(ModelIdentity.of(backbone, propagation)) == []
    with torch.no_grad():
        next(propagation.parameters()).add_(1e-6)
    (said,) = first.differences(ModelIdentity.of(backbone, propagation))
    assert said.startswith("the propagation's weights (sha256 ")
    with torch.no_grad():
        next(backbone.parameters()).add_(1e-3)
    assert len(first.differences(ModelIdentity.of(backbone, propagation))) == 2
