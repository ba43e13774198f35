"""Thousands of damaged files of every format: each loads, or ends in one line; nothing else is raised.

`MOIS_MUTATIONS=2000` tries more of each format.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules.nifti import NiftiDataModule
from datamodules.prepared import PreparedScans, map_entry
from datamodules.splits import read_splits
from mois.cli.messages import explain
from mois.cli.train import MoisCLI
from mois.errors import DataError
from mois.evaluation.figures import SubjectReport
from mois.files.json_records import as_record, parse_json, read_json, read_record
from mois.files.tensor_records import parse_tensors, read_tensors
from mois.files.text import read_table
from mois.report.results import Results
from mois.scans.dataset_description import read_description as read_dataset
from mois.session.journal import read_journal
from mois.session.prompts.prompt_file import read_prompts
from mois.session.state import TYPE_KEYS, StateRecord
from mois.sharing.bank import ExemplarBank
from mois.sharing.bundle_record import read_description
from mois.sharing.identity import ModelIdentity
from mois.training.checkpoints.checkpoint_io import read_training
from mois.training.feature_cache import FeatureCache
from tests.support.paths import FIXTURES

FIRST = FIXTURES / "format_1"
COUNT = int(os.environ.get("MOIS_MUTATIONS", "200"))
ODD: list[Any] = [None, True, -1, 0, 1e308, 2**70, "", "x", "../../x", "\ud800", [], {}, [[]], {"a": None}, "\x00", "1"]
IDENTITY = ModelIdentity.from_dict(
    json.loads(read_tensors(FIRST / "bank.safetensors").metadata["identity"]), "the fixture"
)


def mutated(content: bytes, chance: random.Random) -> bytes:
    """Return a file with some bytes changed, cut out, put in, doubled or exchanged; or with another JSON value."""
    if chance.random() < 0.5:
        try:
            return json.dumps(changed(json.loads(content), chance)).encode()
        except ValueError:
            pass
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 8))):
        place = chance.randrange(len(data) + 1)
        match chance.randrange(6):
            case 0 if place < len(data):
                data[place] ^= 1 << chance.randrange(8)
            case 1:
                del data[place : place + chance.choice((1, 4, 64))]
            case 2:
                data[place:place] = chance.randbytes(chance.choice((1, 4, 64)))
            case 3:
                data[place:place] = data[: chance.choice((1, 16, 256))]
            case 4:
                del data[place:]
            case _:
                data[place:place] = chance.choice((b"NaN", b"\x00", b"{", b"[" * 3000, b'"', b"1e999", b"-", b"\xff"))
    return bytes(data)


def changed(value: Any, chance: random.Random) -> Any:
    """Return JSON in which one value somewhere is another one, is missing, or has another name."""
    if isinstance(value, dict) and value and chance.random() < 0.85:
        key = chance.choice(list(value))
        match chance.randrange(8):
            case 0:
                return {name: one for name, one in value.items() if name != key}
            case 1:
                return {**value, chance.choice(("more", "", key + "x")): 1}
            case _:
                return {**value, key: changed(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.85:
        place = chance.randrange(len(value))
        return [*value[:place], changed(value[place], chance), *value[place + 1 :]]
    return chance.choice(ODD)


def checkpoint(path: Path) -> None:
    state = {"a": torch.zeros(4)}
    torch.save({"state_dict": state, "global_step": 1, "epoch": 0, "pytorch-lightning_version": "2.6.6"}, path)


def cache_entry(path: Path) -> None:
    path.parent.mkdir(parents=True)
    cache = FeatureCache(path.parents[1], 1.0)
    cache.write("ab12", (torch.ones(4, 4, dtype=torch.float16),))
    assert path.is_file()


def bank_of_now(path: Path) -> None:
    with warnings.catch_warnings(action="ignore"):
        ExemplarBank.load(FIRST / "bank.safetensors", IDENTITY, 0.75).save(path)


def session_journal(path: Path) -> None:
    shutil.copyfile(FIRST / "session" / "journal.jsonl", path)


def splits(path: Path) -> None:
    folds = [{"train": ["p0", "p1"], "val": ["p2"]}, {"train": ["p2"], "val": ["p0"]}]
    path.write_text(json.dumps(folds), encoding="utf-8")


def state(path: Path) -> StateRecord:
    content = parse_tensors(path.read_bytes(), str(path)).metadata.get("state", "")
    return as_record(parse_json(content, path.name), StateRecord, path.name, later=TYPE_KEYS)


class Parsed(MoisCLI):
    """Reads the settings of a training and stops before anything is made of them."""

    def before_instantiate_classes(self) -> None:
        raise SystemExit(0)


def read_config(path: Path) -> None:
    """Read a config as `train.py` does, which ends the process with one line where it cannot."""
    said = io.StringIO()
    try:
        with redirect_stderr(said), redirect_stdout(said):
            Parsed(["fit", f"--config={path}"])
    except SystemExit as end:
        if end.code == 0:
            return
        text = said.getvalue()
        if end.code != 2 or "Traceback" in text or not text.startswith("error: ") or text.count("\n") != 1:
            raise RuntimeError(f"it ended with {end.code} and {text[-200:]!r}") from end
        raise DataError("one line") from end


def prepared_entry(path: Path) -> None:
    """Write a prepared scan, and keep another one that nobody damages."""
    data = NiftiDataModule(FIRST / "data", prepared=path.parent / "whole", patch_px=32, pixel_mm=2.0, batch_size=1)
    data.setup("fit")
    shutil.copyfile(min((path.parent / "whole").glob("*.scan")), path)


def read_prepared(path: Path) -> None:
    """Map an entry, its checksum unread and then read; a damaged one is made again."""
    whole = min((path.parent / "whole").glob("*.scan"))
    content = path.read_bytes()
    for check in (False, True):
        path.write_bytes(content)
        PreparedScans(path.parent).get(path.stem, "p", "p", lambda: map_entry(whole, "p", "p"), check=check)


FORMATS: dict[str, tuple[Callable[[Path], object] | Path, str, Callable[[Path], object]]] = {
    "bundle": (FIRST / "bundle" / "bundle.json", "bundle.json", lambda p: read_description(p.parent)),
    "adapter": (FIRST / "bundle" / "adapter" / "adapter_config.json", "adapter_config.json", read_json),
    "tensors": (FIRST / "bank.safetensors", "x.safetensors", read_tensors),
    "bank 2": (FIRST / "bank.safetensors", "b.safetensors", lambda p: ExemplarBank.load(p, IDENTITY, 0.75)),
    "bank 3": (bank_of_now, "c.safetensors", lambda p: ExemplarBank.load(p, IDENTITY, 0.75)),
    "journal": (session_journal, "journal.jsonl", read_journal),
    "state": (FIRST / "session" / "states" / "000001.safetensors", "000001.safetensors", state),
    "checkpoint": (checkpoint, "last.ckpt", read_training),
    "metrics": (FIRST / "evaluated" / "metrics.json", "metrics.json", lambda p: Results.read(p.parent)),
    "lesions": (FIRST / "evaluated" / "lesions.csv", "lesions.csv", lambda p: Results.read(p.parent)),
    "candidates": (FIRST / "evaluated" / "candidates.csv", "candidates.csv", lambda p: Results.read(p.parent)),
    "finished": (
        FIRST / "evaluated" / "finished" / "p0.json",
        "p0.json",
        lambda p: SubjectReport.from_json(read_record(p, dict[str, Any]).get("report")),
    ),
    "prompts": (FIRST / "prompts.json", "prompts.json", read_prompts),
    "dataset": (FIRST / "data" / "dataset.json", "dataset.json", read_dataset),
    "splits": (splits, "splits.json", read_splits),
    "subjects": (FIRST / "evaluated" / "subjects.csv", "subjects.csv", read_table),
    "captions": (
        FIRST / "evaluated" / "overlays" / "worst" / "captions.json",
        "overlays/worst/captions.json",
        lambda p: Results.read(p.parents[2]).captions(),
    ),
    "config": (FIRST / "run" / "config.yaml", "config.yaml", read_config),
    "prepared": (prepared_entry, "a.scan", read_prepared),
    "cache": (cache_entry, "ab/ab12.safetensors", lambda p: FeatureCache(p.parents[1], 1.0).read("ab12")),
}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings(action="ignore"):
        yield


@pytest.mark.ci
@pytest.mark.parametrize("name", list(FORMATS))
def test_a_damaged_file_loads_or_ends_in_one_line(tmp_path: Path, name: str) -> None:
    source, file, read = FORMATS[name]
    if name in ("lesions", "candidates", "captions"):
        shutil.copytree(FIRST / "evaluated", tmp_path, dirs_exist_ok=True)
    path = tmp_path / file
    if isinstance(source, Path):
        path.write_bytes(source.read_bytes())
    else:
        source(path)
    whole, chance = path.read_bytes(), random.Random(f"{name} 7")
    read(path)
    faults = []
    for number in range(COUNT):
        path.write_bytes(mutated(whole, chance))
        try:
            read(path)
        except Exception as error:
            line = explain(error)
            if line is None or "\n" in line or len(line) > 2000:
                faults.append((number, type(error).__name__, str(error)[:200]))
    assert faults == []


@pytest.mark.ci
def test_no_damaged_file_of_the_present_formats_is_taken_for_another(tmp_path: Path) -> None:
    bank = tmp_path / "bank.safetensors"
    bank_of_now(bank)
    whole, chance = bank.read_bytes(), random.Random(11)
    good = [(one.key, one.sha256) for one in ExemplarBank.load(bank, IDENTITY, 0.75)]
    for _ in range(COUNT):
        bank.write_bytes(mutated(whole, chance))
        try:
            taken = ExemplarBank.load(bank, IDENTITY, 0.75)
        except (ValueError, OSError):
            continue
        assert [(one.key, one.sha256) for one in taken] == good
