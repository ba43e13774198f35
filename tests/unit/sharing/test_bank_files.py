"""The file of a bank holds what a model computed, as it was written, or it is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mois.files.json_records import sealed
from mois.files.tensor_records import read_tensors, tensors_sha256
from mois.sharing.bank import ExemplarBank
from mois.sharing.bank_record import FORMAT
from tests.support.paths import FIXTURES
from tests.unit.sharing.test_bank import MODEL, bank_of, exemplar

FIRST = FIXTURES / "format_1" / "bank.safetensors"


def rewrite(path: Path, edit: Callable[[dict[str, Any], dict[str, Tensor]], object]) -> None:
    """Write a bank that says something else, and whose digests are right."""
    tensors, metadata = read_tensors(path)
    content = json.loads(metadata["content"])
    edit(content, tensors)
    content["tensors_sha256"] = tensors_sha256(tensors)
    save_file(tensors, path, {**metadata, "content": json.dumps(sealed(content))})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    bank_of(exemplar("a", 1.0), exemplar("b", 2.0)).save(tmp_path / "bank.safetensors")
    return tmp_path / "bank.safetensors"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e38, 2e9])
def test_a_token_that_no_model_computes_is_refused(path: Path, value: float) -> None:
    rewrite(path, lambda _, tensors: tensors["means"][1].fill_(value))
    with pytest.raises(
        ValueError, match=r"means holds values that are not finite, or beyond 1e\+09; give another file"
    ):
        ExemplarBank.load(path, MODEL, 1.5)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c, t: t.update(means=t["means"].double()), "means is torch.float64, not float32"),
        (lambda c, t: t.update(means=t["means"].long()), "means is torch.int64, not float32"),
        (lambda c, t: t.update(means=t["means"][:1]), "tokens and entries differ in number"),
        (lambda c, t: t.update(means=torch.zeros(())), "tokens and entries differ in number"),
        (lambda c, t: t.clear(), "its exemplars have no tokens"),
        (lambda c, t: c.update(version=-1), "a version is 0 or more"),
        (lambda c, t: c.update(version="1"), "version is '1': should be a valid integer"),
        (lambda c, t: c.update(pixel_mm=0), "pixel_mm above 0"),
        (lambda c, t: c.update(more=1), "holds more, which this version does not know"),
        (lambda c, t: c["exemplars"][0].update(key="b"), "two exemplars have the key b"),
        (lambda c, t: c["exemplars"][0].update(key=""), "an exemplar needs a key"),
        (lambda c, t: c["exemplars"][0].update(position_lps_mm=[1, 2]), "exemplars.0.position_lps_mm"),
        (lambda c, t: c["exemplars"][0].update(negative="no"), "exemplars.0.negative is 'no'"),
        (lambda c, t: c["exemplars"][0].update(weight=-2), "weight=-2.0 must be a number from 0"),
        (lambda c, t: c["exemplars"][0].pop("contrast"), "lacks exemplars.0.contrast"),
        (lambda c, t: c.update(identity=[]), "identity"),
        (lambda c, t: c["identity"].update(backbone={"name": "nano"}), "lacks identity.backbone.source"),
    ],
)
def test_a_record_of_another_form_is_refused(path: Path, edit: Callable[..., object], message: str) -> None:
    rewrite(path, edit)
    with pytest.raises(ValueError, match=message):
        ExemplarBank.load(path, MODEL, 1.5)


def test_every_flipped_byte_is_noticed(path: Path) -> None:
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=r"\S"):
            ExemplarBank.load(path, MODEL, 1.5)


def test_a_bank_without_digest_is_called_unverified_and_a_damaged_new_one_never_passes_as_such(path: Path) -> None:
    tensors, metadata = read_tensors(FIRST)
    model = replace(MODEL.from_dict(json.loads(metadata["identity"])))
    with pytest.warns(UserWarning, match="unverified: format 2"):
        old = ExemplarBank.load(FIRST, model, float(metadata["pixel_mm"]))
    assert len(old) == 6

    tensors, metadata = read_tensors(path)
    save_file(tensors, path, {**metadata, "format_version": "2"})
    with pytest.raises(ValueError, match="holds content, unlike a bank of format 2"):
        ExemplarBank.load(path, MODEL, 1.5)
    plain = json.loads(metadata["content"])
    first = {"version": "1", "pixel_mm": "1.5", "exemplars": json.dumps(plain["exemplars"])}
    first |= {"format": FORMAT, "format_version": "2", "identity": json.dumps(plain["identity"])}
    save_file(tensors, path, first)
    with pytest.raises(ValueError, match="identity holds arguments, unlike a bank of format 2"):
        ExemplarBank.load(path, MODEL, 1.5)


def test_an_exemplar_of_nothing_is_refused_when_it_is_made() -> None:
    with pytest.raises(ValueError, match="exemplar a: means holds values that are not finite"):
        exemplar("a", float("nan"))
    assert {*load_file(FIRST)} == {"log_area", "means"}
