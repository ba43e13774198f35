"""A training that goes on is the training of its checkpoint, or says what it is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mois.files.json_records import check_seal, parse_json, sealed
from mois.sharing.provenance import collect_provenance, plain_settings
from mois.training.checkpoints.same_run import changed_settings, check_same_data
from tests.support.command_lines import FIT, RUN, failing_line, steps, train

pytestmark = pytest.mark.usefixtures("work_elsewhere")

BASE = {
    "seed_everything": 0,
    "trainer": {"max_steps": 4, "devices": 1, "precision": "32-true", "accumulate_grad_batches": 1},
    "data": {"class_path": "datamodules.NiftiDataModule", "init_args": {"root": "a", "mix": [1, 2], "batch_size": 2}},
    "model": {
        "optimisation": {"learning_rate": 0.001},
        "adapter": {"class_path": "adapters.Lora", "init_args": {"rank": 2}},
        "inference": {"track_memory": 1, "pixel_mm": 1.5},
        "cache": {"folder": None},
    },
}


@pytest.fixture
def failing(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    return partial(failing_line, capsys)


def other(place: str, value: Any) -> dict[str, Any]:
    made = json.loads(json.dumps(BASE))
    inner = made
    *groups, last = place.split(".")
    for group in groups:
        inner = inner[group]
    inner[last] = value
    return made


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("seed_everything", 1),
        ("trainer.precision", "bf16-mixed"),
        ("data.class_path", "datamodules.PretrainDataModule"),
        ("data.init_args.mix", [1, 3]),
        ("model.optimisation.learning_rate", 0.01),
        ("model.adapter.class_path", "adapters.LoHa"),
        ("model.adapter.init_args.rank", 4),
        ("model.inference.pixel_mm", 2.0),
        ("model.adapter", {"class_path": "adapters.Lora", "init_args": {"rank": "2"}}),
    ],
)
def test_what_changes_the_learning_is_refused_by_name(place: str, value: Any) -> None:
    with pytest.raises(ValueError, match="last is of a training with ") as refused:
        changed_settings(BASE, other(place, value), "last")
    assert place.rpartition(".")[0] in str(refused.value)
    assert "set it back to go on, or start a new training in another folder" in str(refused.value)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("trainer.max_steps", 8),
        ("trainer.devices", 2),
        ("trainer.accumulate_grad_batches", 2),
        ("data.init_args.root", "b"),
        ("data.init_args.batch_size", 1),
        ("model.cache.folder", "c"),
    ],
)
def test_where_how_long_and_how_fast_may_change(place: str, value: Any) -> None:
    before = BASE
    for group in place.split("."):
        before = before[group]
    assert changed_settings(BASE, other(place, value), "last") == {place: [before, value]}


def test_what_means_the_same_is_no_change() -> None:
    assert changed_settings(BASE, other("model.inference.track_memory", None), "last") == {}
    assert changed_settings(BASE, other("data.init_args.mix", [1.0, 2.0]), "last") == {}
    assert changed_settings(BASE, other("model.later", 1), "last") == {}  # a setting that came with this version


def test_many_changes_are_told_in_one_line() -> None:
    changed = dict.fromkeys("abcdef", 1)
    with pytest.raises(ValueError, match=r"a=0 \(now 1\), .*d=0 \(now 1\) and 2 more; set it back"):
        changed_settings(dict.fromkeys("abcdef", 0), changed, "last")


def test_other_data_are_refused_where_both_are_known() -> None:
    check_same_data({"data": "1"}, "1", "last")
    check_same_data({"data": "1"}, "unknown", "last")
    check_same_data({}, "2", "last")
    with pytest.raises(ValueError, match="last is of a training on other data"):
        check_same_data({"data": "1"}, "2", "last")


def test_a_training_with_another_rate_or_other_data_is_refused_before_anything_is_written(
    failing: Callable[..., str],
) -> None:
    train(*FIT, "--trainer.max_steps=2")
    config = (RUN / "config.yaml").read_bytes()
    on = [*FIT, "--trainer.max_steps=4", "--ckpt_path=last"]
    assert failing(*on, "--model.rate=0.5").startswith(
        "ckpt_path=run/checkpoints/last.ckpt is of a training with model.rate=0.1 (now 0.5); set it back"
    )
    assert "seed_everything=0 (now 3)" in failing(*on, "--seed_everything=3")
    assert "batch_size=2 (now 4)" in failing(*on, "--data.init_args.batch_size=4")  # of a class that is not ours
    assert "is of a training on other data" in failing(*on, "--data.init_args.root=elsewhere")
    assert (RUN / "config.yaml").read_bytes() == config
    assert steps() == [0, 1]


def test_what_may_change_is_recorded_wherever_the_run_says_what_made_it() -> None:
    train(*FIT, "--trainer.max_steps=2")
    train(*FIT, "--trainer.max_steps=4", "--ckpt_path=last")
    train(*FIT, "--trainer.max_steps=6", "--ckpt_path=last")
    parts = json.loads((RUN / "provenance.json").read_text())["resumed"]
    assert [(part["step"], part["changed"]["trainer.max_steps"]) for part in parts] == [(2, [2, 4]), (4, [4, 6])]
    text = (RUN / "config.yaml").read_text()
    assert text.startswith("# until step 2: trainer.max_steps: 2\n# until step 4: trainer.max_steps: 4\n")
    assert yaml.safe_load(text)["trainer"]["max_steps"] == 6
    checkpoint = torch.load(RUN / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["mois"]["provenance"]["resumed"] == parts


def test_a_training_does_not_go_over_another_one_from_elsewhere(failing: Callable[..., str]) -> None:
    train(*FIT, "--trainer.max_steps=2")
    train(*FIT, "--trainer.max_steps=3", "--trainer.default_root_dir=other")
    on = [*FIT, "--trainer.max_steps=5", "--ckpt_path=other/checkpoints/last.ckpt"]
    assert "holds a training already" in failing(*on)
    train(*on, "--trainer.default_root_dir=third")
    assert "ckpt_path=other/" in Path("third/provenance.json").read_text(encoding="utf-8")


def test_without_a_last_checkpoint_a_training_goes_on_from_its_best(failing: Callable[..., str]) -> None:
    train(*FIT, "--trainer.max_steps=6")
    (RUN / "checkpoints" / "last.ckpt").unlink()
    for previous in (RUN / "checkpoints").glob("previous.ckpt"):
        previous.unlink()
    assert "holds a training already" in failing(*FIT, "--trainer.max_steps=6")
    train(*FIT, "--trainer.max_steps=6", "--ckpt_path=last")
    assert steps() == list(range(6))


def test_a_checkpoint_without_settings_goes_on_unverified(caplog: pytest.LogCaptureFixture) -> None:
    train(*FIT, "--trainer.max_steps=2")
    path = RUN / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["mois"]
    torch.save(checkpoint, path)
    train(*FIT, "--trainer.max_steps=3", "--ckpt_path=last", "--model.rate=0.5")
    assert "unverified: it does not say with which settings it was trained" in caplog.text


@pytest.mark.parametrize(
    ("before", "now"),
    [(None, {"class_path": "a.B"}), ({"class_path": "a.B"}, None), ({}, {"p": 1}), (1, {"p": 2})],
)
def test_a_value_in_the_place_of_a_group_is_a_change(before: Any, now: Any) -> None:
    with pytest.raises(ValueError, match=r"last is of a training with data\.init_args\.painter="):
        changed_settings(other("data.init_args.painter", before), other("data.init_args.painter", now), "last")


def test_one_batch_is_not_all_batches() -> None:
    with pytest.raises(ValueError, match="limit_train_batches"):
        changed_settings(other("trainer.limit_train_batches", 1.0), other("trainer.limit_train_batches", 1), "last")


@pytest.mark.parametrize("value", [[{1: 2}], {1: 0.5, 10: 1.0}, float("inf"), "m\udcfcller"])
def test_what_json_holds_in_another_way_is_no_change(value: Any) -> None:
    now = other("trainer.devices", 1)
    now["data"]["init_args"]["weights"] = value
    assert changed_settings(plain_settings(now), now, "last") == {}
    assert parse_json(json.dumps(sealed(plain_settings(now))), "it") == sealed(plain_settings(now))


def with_table(value: Any) -> dict[str, Any]:
    made = other("data.class_path", "mine.Data")
    made["data"]["init_args"] = {"table": value, "rate": 1}
    return made


@pytest.mark.parametrize(
    ("before", "now"), [({"a": 1}, {"a": 1, "b": 2}), ({"a": 1, "b": 2}, {"a": 1}), ({"a": 1}, {})]
)
def test_a_key_that_came_to_or_left_a_table_of_the_users_class_is_a_change(before: Any, now: Any) -> None:
    with pytest.raises(ValueError, match=r"data\.init_args\.table=\{'a': 1"):
        changed_settings(with_table(before), with_table(now), "last")


def test_an_argument_that_a_users_class_has_only_now_is_no_change() -> None:
    before = with_table({"a": 1})
    del before["data"]["init_args"]["rate"]
    assert changed_settings(before, with_table({"a": 1}), "last") == {}


def test_files_are_compared_by_what_they_hold(tmp_path: Path) -> None:
    here, there, third = (tmp_path / name for name in ("a.safetensors", "b.safetensors", "c.safetensors"))
    for path, text in ((here, "same"), (there, "same"), (third, "other")):
        path.write_text(text)
    key = "model.propagation.init_args.weights"
    before, moved, exchanged = (
        {"model": {"propagation": {"class_path": "mois.propagation.Similarity", "init_args": {"weights": str(path)}}}}
        for path in (here, there, third)
    )
    files = collect_provenance(None, None, before, 0).files
    assert list(files) == [key]
    assert changed_settings(before, moved, "last") == {key: [str(here), str(there)]}
    with pytest.raises(ValueError, match=rf"weights={here} \(now {third}\)"):
        changed_settings(before, exchanged, "last", files)
    here.unlink()
    assert changed_settings(before, moved, "last", files) == {key: [str(here), str(there)]}
    with pytest.raises(ValueError, match="last is of a training with"):
        changed_settings(before, moved, "last")
    here.write_text("other")
    with pytest.raises(ValueError, match=r"\(now with other content\)"):
        changed_settings(before, before, "last", files)


def test_a_split_file_elsewhere_is_left_to_the_fingerprint_of_our_data() -> None:
    before, now = other("data.init_args.splits", "a.json"), other("data.init_args.split", {"file": "b.json"})
    assert changed_settings(before, now, "last") == {"data.init_args.split.file": ["a.json", "b.json"]}


def test_a_setting_under_its_old_name_is_the_same_setting() -> None:
    before, same = other("data.init_args.fold", 1), other("data.init_args.split", {"fold": 1})
    assert changed_settings(before, same, "last") == {}
    with pytest.raises(ValueError, match=r"with data\.init_args\.split\.fold=1 \(now 2\)"):
        changed_settings(before, other("data.init_args.split", {"fold": 2}), "last")


def test_a_record_with_numbers_as_keys_is_as_its_reader_finds_it() -> None:
    check_seal(parse_json(json.dumps(sealed({"a": {10: 1, 9: 2}})), "it"), "it")
