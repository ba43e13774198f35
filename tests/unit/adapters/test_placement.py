"""Where adapters go: one record for all adapters of peft; the arguments that it replaced work, and one line says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import IA3Config

from adapters import IA3, LoHa, LoKr, Lora, PeftAdapter, Placement
from mois.backbones import SAM2
from mois.cli.old_training_options import TrainingNames
from mois.files.json_records import sealed
from mois.inference.settings import InferenceSettings
from mois.propagation import Prototype, Sam2Only
from mois.sharing.bundle import Bundle, write_bundle
from mois.sharing.bundle_record import ModelSpec
from mois.sharing.old_settings import PLACEMENT, with_current_names
from mois.testing import nano_backbone

LORA = "--model.adapter=adapters.Lora"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"parts": ["brain"]}, r"placement\.parts holds 'brain'; allowed are decoder, memory_attention"),
        ({"parts": []}, r"placement\.parts is empty; name a part, or set model\.adapter=adapters\.Frozen"),
        ({"parts": "trunk"}, r"placement\.parts='trunk' must be a list"),
        ({"stages": [7]}, r"placement\.stages holds 7; allowed are 1 \(finest\) to 4"),
        ({"stages": []}, r"placement\.stages is empty; name a stage, or leave trunk out"),
        ({"stages": 4}, r"placement\.stages=4 must be a list"),
        ({"propagation": "some"}, r"placement\.propagation='some'; allowed are full and frozen"),
    ],
)
def test_a_field_that_cannot_be_is_refused_by_its_key(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^model\.adapter\.init_args\.{message}"):
        Placement(**fields)
    assert Placement(["decoder"], []).stages == ()  # stages count for the trunk alone


def test_a_part_without_a_layer_of_these_stages_is_met_with_its_layers() -> None:
    backbone = nano_backbone()
    backbone.parts()["trunk"].stage_ends = [100]  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"'trunk' with stages \(4,\) matches no layer; there are blocks.0.attn.qkv"):
        Lora(placement=Placement(["trunk"], [4])).attach(backbone, Sam2Only())


@pytest.mark.parametrize("kind", [Lora, LoHa, LoKr, IA3])
def test_old_arguments_work_in_python(kind: Callable[..., PeftAdapter]) -> None:
    with pytest.warns(UserWarning, match=r"\w: parts is now placement\.parts, stages is now placement\.stages$"):
        assert kind(parts=["trunk"], stages=[4]).placement == Placement(["trunk"], [4])
    with pytest.raises(ValueError, match=r"^propagation is now placement\.propagation; leave out propagation where"):
        kind(placement=Placement(), propagation="frozen")


class Scales(PeftAdapter):
    """An adapter of somebody else, written before there was a placement."""

    def __init__(self, parts: tuple[str, ...] = ("decoder",), stages: tuple[int, ...] = (4,)) -> None:
        super().__init__(parts, stages, "frozen")  # type: ignore[call-arg, arg-type]

    def config(self, targets: list[str]) -> IA3Config:
        """Return the settings of peft for these layers."""
        return IA3Config(target_modules=targets, feedforward_modules=[])


def test_an_adapter_of_others_keeps_its_own_arguments() -> None:
    with pytest.warns(UserWarning, match="parts is now placement.parts"):
        made = Scales()
    assert made.placement == Placement(["decoder"], [4], "frozen")
    assert not PLACEMENT.takes(f"{__name__}.Scales")
    words = ["fit", f"--model.adapter={__name__}.Scales", "--model.adapter.init_args.parts=[trunk]"]
    assert TrainingNames(words).arguments(words) == words


class Inherits(Lora):
    """An adapter of somebody else that has the arguments of ours."""


def test_old_settings_work_on_the_command_line() -> None:
    for name in ("adapters.Lora", "adapters.lora.IA3", f"{__name__}.Inherits"):
        words = [
            "fit",
            f"--model.adapter={name}",
            "--model.adapter.init_args.parts=[trunk]",
            "--model.adapter.stages+=4",
        ]
        with pytest.warns(
            UserWarning, match=r"--model\.adapter\.init_args\.parts is now --model\.adapter\.init_args\."
        ):
            new = TrainingNames(words).arguments(words)
        key = "--model.adapter.init_args.placement"
        assert new[2:] == [f"{key}.parts=[trunk]", f"{key}.stages+=4"]
    full = ["fit", "--model.adapter=adapters.Full", "--model.adapter.init_args.propagation=frozen"]
    assert TrainingNames(full).arguments(full) == full


@pytest.mark.parametrize("place", ["", "model", "model.adapter"])
def test_old_settings_work_in_files(tmp_path: Path, place: str) -> None:
    adapter = {"class_path": "adapters.Lora", "init_args": {"rank": 2, "stages": [4]}}
    now = {"class_path": "adapters.Lora", "init_args": {"rank": 2, "placement": {"stages": [4]}}}
    tables = {"": ("model", "adapter"), "model": ("adapter",), "model.adapter": ()}[place]
    file = tmp_path / "adapter.yaml"
    for table in reversed(tables):
        adapter, now = {table: adapter}, {table: now}
    file.write_text(yaml.safe_dump(adapter))
    says = r"^model\.adapter\.init_args\.stages is now model\.adapter\.init_args\.placement\.stages$"
    names = TrainingNames(["fit"])
    with pytest.warns(UserWarning, match=says):
        text = names.arguments([f"--{place}={file}"])[0] if place else names.config(file.read_text())
    assert yaml.safe_load(text.removeprefix(f"--{place}=")) == now


def test_a_record_with_old_settings_is_that_of_the_same_training() -> None:
    old = {"model": {"adapter": {"class_path": "adapters.Lora", "init_args": {"rank": 2, "parts": ["trunk"]}}}}
    assert with_current_names(old)["model"]["adapter"]["init_args"] == {"rank": 2, "placement": {"parts": ["trunk"]}}
    assert old["model"]["adapter"]["init_args"] == {"rank": 2, "parts": ["trunk"]}


@pytest.mark.filterwarnings("error")
def test_a_bundle_with_old_arguments_makes_the_same_model(tmp_path: Path) -> None:
    backbone, propagation = SAM2(weights="random", seed=3), Prototype()
    propagation.build(backbone)
    adapter = Lora(rank=2, placement=Placement(["trunk"], [4]))
    adapter.attach(backbone, propagation)
    spec = ModelSpec.of(
        {
            "backbone": {"class_path": "mois.backbones.SAM2", "init_args": {"weights": "random", "seed": 3}},
            "adapter": {"class_path": "adapters.Lora", "init_args": {"rank": 2, "parts": ["trunk"], "stages": [4]}},
            "propagation": {"class_path": "mois.propagation.Prototype"},
        }
    )
    folder = write_bundle(tmp_path / "bundle", spec, backbone, adapter, propagation, InferenceSettings())
    file = folder / "bundle.json"
    content = json.loads(file.read_text())
    placement = content["model"]["adapter"]["init_args"].pop("placement")
    assert placement == {"parts": ["trunk"], "stages": [4], "propagation": "full"}
    content["model"]["adapter"]["init_args"] |= placement
    content["identity"]["arguments"]["adapter"] = content["model"]["adapter"]["init_args"]
    file.write_text(json.dumps(sealed(content)))
    again = Bundle.load(folder).backbone.state_dict()
    assert again.keys() == backbone.state_dict().keys()
    assert all(torch.equal(value, again[name]) for name, value in backbone.state_dict().items())


@pytest.mark.parametrize("kind", [Lora, LoHa, LoKr])
def test_a_rank_of_nothing_is_refused_before_peft_sees_it(kind: type[Lora | LoHa | LoKr]) -> None:
    with pytest.raises(ValueError, match=r"^model\.adapter\.init_args\.rank=0 must be at least 1\.$"):
        kind(rank=0)
