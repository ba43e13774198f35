"""Options and settings under their old names work, and one line says the new name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from jsonargparse import auto_cli

from datamodules import NiftiDataModule
from datamodules.splits import SplitSettings
from mois.cli.commands import EvaluateParser
from mois.cli.evaluate_options import OutputOptions, ProtocolOptions, ReaderOptions, protocol_settings
from mois.cli.old_options import evaluate_option, with_new_evaluate_keys, with_new_options
from mois.cli.old_training_options import TrainingNames
from mois.evaluation.settings import ProtocolSettings
from mois.sharing.old_settings import SPLIT, with_current_names

NIFTI = "--data=datamodules.NiftiDataModule"


def groups(
    reader: ReaderOptions = ReaderOptions(),  # noqa: B008
    protocol: ProtocolOptions = ProtocolOptions(),  # noqa: B008
    output: OutputOptions = OutputOptions(),  # noqa: B008
) -> tuple[ReaderOptions, ProtocolOptions, OutputOptions]:
    """Return the groups of options."""
    return reader, protocol, output


def parsed(*words: str) -> tuple[ReaderOptions, ProtocolOptions, OutputOptions]:
    given: tuple[ReaderOptions, ProtocolOptions, OutputOptions] = auto_cli(
        groups, args=list(with_new_options(words, evaluate_option)), as_positional=False, parser_class=EvaluateParser
    )
    return given


OLD = [
    *("--prompted=2", "--clicks", "3", "--reader", "largest", "--noise_mm=1", "--miss=0.5", "--masks=true"),
    *("--counts=[0,1]", "--curve_clicks=[1]", "--target_class=2", "--surface_mm=1", "--bins_ml=[1]"),
    *("--protocol=paper", "--robustness=true", "--title=T"),
]
NEW = (
    ReaderOptions("largest", 2, 3, 1.0, 0.5, "true"),
    ProtocolOptions((0, 1), (1,), 2, 1.0, (1.0,), "paper"),
    OutputOptions(robustness=True, title="T"),
)


def test_old_options_of_evaluate_work_and_name_the_new_ones() -> None:
    with pytest.warns(UserWarning, match="is now") as said:
        assert parsed(*OLD) == NEW
    lines = [str(one.message) for one in said]
    assert len(lines) == 14
    assert "--clicks is now --reader.clicks" in lines
    assert "--reader is now --reader.strategy" in lines
    assert "--protocol is now --protocol.rules" in lines


@pytest.mark.filterwarnings("error")
def test_new_options_and_groups_are_taken_without_a_word(tmp_path: Path) -> None:
    (tmp_path / "reader.yaml").write_text("clicks: 3\n")
    words = [f"--reader={tmp_path / 'reader.yaml'}", '--protocol={"rules": "paper"}', "--reader.miss=0.5"]
    assert parsed(*words) == (ReaderOptions(clicks=3, miss=0.5), ProtocolOptions(rules="paper"), OutputOptions())


def test_a_config_of_evaluate_with_old_names_works(tmp_path: Path) -> None:
    old = {"clicks": 3, "reader": "largest", "surface_mm": 1.0, "output": {"title": "T"}, "robustness": True}
    config = tmp_path / "old.yaml"
    config.write_text(yaml.safe_dump(old))
    with pytest.warns(UserWarning, match="clicks is now reader.clicks"):
        reader, protocol, output = parsed(f"--config={config}")
    assert reader == ReaderOptions("largest", clicks=3)
    assert protocol.surface_mm == 1.0
    assert output == OutputOptions(robustness=True, title="T")
    assert with_new_evaluate_keys("reader: {clicks: 3}") == "reader: {clicks: 3}"
    assert with_new_evaluate_keys("just a text") == "just a text"


def test_options_become_the_settings_of_the_protocol() -> None:
    settings = protocol_settings(*NEW[:2], seed=7)
    assert (settings.reader.strategy, settings.reader.seed, settings.reader.miss) == ("largest", 7, 0.5)
    assert (settings.prompted, settings.clicks, settings.masks) == (2, 3, "true")
    assert (settings.counts, settings.rules, settings.bins_ml) == ((0, 1), "paper", (1.0,))


@pytest.mark.parametrize(
    ("reader", "protocol", "message"),
    [
        (
            ReaderOptions(clicks=0),
            ProtocolOptions(),
            "--reader.clicks=0 and --protocol.curve_clicks=() must be at least",
        ),
        (ReaderOptions(prompted=-1), ProtocolOptions(counts=()), "--reader.prompted=-1 and --protocol.counts="),
        (ReaderOptions(miss=1.0), ProtocolOptions(), "--reader.miss=1.0 must be at least 0 and below 1"),
        (ReaderOptions(), ProtocolOptions(surface_mm=0.0), "--protocol.surface_mm=0.0 must be a number"),
    ],
)
def test_an_option_out_of_range_is_named_as_it_is_given(
    reader: ReaderOptions, protocol: ProtocolOptions, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        protocol_settings(reader, protocol, seed=0)


def test_options_that_are_not_given_are_those_of_the_protocol() -> None:
    usual = protocol_settings(ReaderOptions(), ProtocolOptions(), seed=0)
    assert usual == ProtocolSettings(counts=(0, 1, 3, 5, 10, 20))


def test_old_settings_of_the_splits_work_on_the_command_line() -> None:
    words = ["fit", NIFTI, "--data.init_args.fold=0", "--data.splits", "s.json", "--data.init_args.val_subjects+=p1"]
    with pytest.warns(UserWarning, match="is now") as said:
        new = TrainingNames(words).arguments(words)
    assert new[2:] == [
        "--data.init_args.split.fold=0", "--data.init_args.split.file", "s.json",
        "--data.init_args.split.val_subjects+=p1",
    ]  # fmt: skip
    assert str(said[0].message) == "--data.init_args.fold is now --data.init_args.split.fold"
    others = ["fit", "--data=datamodules.PretrainDataModule", "--data.init_args.val_subjects=2"]
    assert TrainingNames(others).arguments(others) == others


def test_old_settings_of_the_splits_work_in_a_config() -> None:
    names = TrainingNames(["fit", NIFTI])
    old = "data:\n  init_args: {root: a, fold: 0, splits: null, seed: 1}\n"
    with pytest.warns(UserWarning, match=r"data\.init_args\.fold is now data\.init_args\.split\.fold"):
        new = yaml.safe_load(names.config(old))
    assert new == {"data": {"init_args": {"root": "a", "split": {"fold": 0, "file": None}, "seed": 1}}}
    assert TrainingNames(["fit", "--data=my.Data"]).config(old) == old
    other = "data: {class_path: datamodules.PretrainDataModule, init_args: {val_subjects: 2}}"
    assert names.config(other) == other


@pytest.mark.parametrize("place", ["", "data"])
@pytest.mark.parametrize("joined", [True, False])
def test_old_settings_work_in_a_file_of_the_data_alone(tmp_path: Path, place: str, joined: bool) -> None:
    file = tmp_path / "data.yaml"
    init_args = {"root": "a", "fold": 0}
    file.write_text(yaml.safe_dump({"class_path": NIFTI[7:], "init_args": init_args} if place else init_args))
    words = ["fit", NIFTI, *([f"--data={file}"] if joined else ["--data", str(file)]), "--seed_everything=1"]
    with pytest.warns(UserWarning, match=r"^data\.init_args\.fold is now data\.init_args\.split\.fold$"):
        new = TrainingNames(words).arguments(words)
    now = {"root": "a", "split": {"fold": 0}}
    content = yaml.safe_load(new[2].removeprefix("--data=") if joined else new[3])
    assert content == ({"class_path": NIFTI[7:], "init_args": now} if place else now)
    assert new[-1] == "--seed_everything=1"
    file.write_text("{root: a, split: {fold: 0}}")
    assert TrainingNames(words).arguments(words) == words


def test_rare_letters_in_a_file_with_old_settings_stay_the_same(tmp_path: Path) -> None:
    file = tmp_path / "data.yaml"
    file.write_text("{root: 𠮷野, fold: 0}", encoding="utf-8")
    words = ["fit", NIFTI, f"--data={file}"]
    with pytest.warns(UserWarning, match=r"split\.fold"):
        new = TrainingNames(words).arguments(words)
    assert yaml.safe_load(new[2].removeprefix("--data="))["root"] == "𠮷野"


def test_old_arguments_of_the_datamodule_work_in_python() -> None:
    with pytest.warns(UserWarning, match="NiftiDataModule: fold is now split.fold, splits is now split.file"):
        made = NiftiDataModule(Path("a"), fold=0, splits=Path("s.json"))  # type: ignore[call-arg]
    assert made.split == SplitSettings(fold=0, file=Path("s.json"))
    with pytest.warns(UserWarning, match=r"fold is now split\.fold"):
        in_their_places = NiftiDataModule(Path("a"), 0, 1, None, None, None, None, 0.0, False)  # type: ignore[arg-type, call-arg]
    assert (in_their_places.split, in_their_places.instances) == (SplitSettings(fold=1), False)
    with pytest.raises(ValueError, match=r"fold is now split\.fold; leave out fold where split is given"):
        NiftiDataModule(Path("a"), split=SplitSettings(), fold=0)  # type: ignore[call-arg]


def test_a_setting_under_both_names_is_refused() -> None:
    with pytest.raises(ValueError, match=r"fold and data\.init_args\.split\.fold are the same; leave out data"):
        SPLIT.with_group({"fold": 0, "split": {"fold": 1}})
    of_others = {"data": {"class_path": "my.Data", "init_args": {"fold": 0}}}
    assert with_current_names(of_others) == of_others
