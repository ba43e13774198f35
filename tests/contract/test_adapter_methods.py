"""Every method that configs/adapters names keeps the contract of adapters; others are refused in one line."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import adapters
from adapters import Bottleneck, Lora, Peft, Placement
from mois.backbones.example_answers import answers
from mois.interfaces import Adapter, Backbone
from mois.propagation import Sam2Only
from mois.testing import ContractError, check_adapter, nano_backbone
from tests.support.adapter_methods import METHODS, adapter_of, train_by_two_ranks

OFTEN = ("bottleneck", "hra", "ia3", "pissa", "shira")
"""Methods of which each is of another kind; the other methods run in CI."""


def peft(name: str, **settings: Any) -> Peft:
    """Return an adapter of peft's configuration class NAME."""
    return Peft({"class_path": f"peft.{name}", "init_args": settings})


def moved(adapter: Adapter) -> Backbone:
    """Return a nano with this adapter, whose trained tensors are no longer those of the start."""
    backbone = nano_backbone()
    adapter.attach(backbone, Sam2Only())
    with torch.no_grad():
        for tensor in backbone.parameters():
            if tensor.requires_grad:
                tensor.add_(0.01)
    return backbone


def test_there_are_at_least_18_methods_of_peft() -> None:
    made = [adapter_of(name) for name in METHODS]
    assert len({adapter.method for adapter in made if isinstance(adapter, Peft)}) >= 18


@pytest.mark.parametrize(
    "name", [name if name in OFTEN else pytest.param(name, marks=pytest.mark.ci) for name in METHODS]
)
def test_methods_keep_the_contract(name: str) -> None:
    torch.manual_seed(0)  # of the random starts: one in many leaves a tensor behind units that are never active
    check_adapter(adapter_of(name))


@pytest.mark.parametrize(
    "settings", [{"bias": "lora_only"}, pytest.param({"lora_dropout": 0.1}, marks=pytest.mark.ci)], ids=str
)
def test_usual_settings_of_lora_keep_the_contract(settings: dict[str, Any]) -> None:
    placement = Placement(["memory_attention"])
    adapter = Peft({"class_path": "peft.LoraConfig", "init_args": settings}, placement)
    check_adapter(adapter)
    if "bias" in settings:
        with pytest.raises(ValueError, match=r"LoraConfig trains the backbone's own .*bias; it cannot be off"):
            adapter.disabled().__enter__()


REFUSED = [
    (peft("FourierFTConfig", n_frequency=100), "it changes the backbone's answers before any training"),
    (peft("C3AConfig", block_size=16), "it changes the backbone's answers before any training"),
    (peft("VeraConfig"), "it uses shared state stored on the tuner"),
    (peft("VBLoRAConfig"), "it uses shared state stored on the tuner"),
    (peft("TinyLoraConfig"), "it uses shared state stored on the tuner"),
    (peft("UniLoraConfig"), "it uses shared state stored on the tuner"),
    (peft("OFTConfig"), "is invalid for input of size 0"),
    (peft("GraloraConfig"), "too many values to unpack"),
    (peft("RoadConfig"), "must be divisible by group_size"),
    (peft("ShiraConfig"), "set rank 32 results in more shira params than"),
    (peft("MissConfig"), "must be less than or equal to in_features"),
    (peft("WaveFTConfig"), "`n_frequency` should be less than or equal to"),
    (peft("LilyConfig"), "it cannot be merged into the backbone's weights"),
    (peft("AdaLoraConfig", total_step=100), "changes its ranks by a call after each step of the training"),
    (peft("LoraConfig", use_dora=True, init_lora_weights="pissa"), "it changes the backbone's answers before any"),
    (peft("PrefixTuningConfig"), "it adapts no layers"),
    (peft("LoraConfig", rank=4), "it takes no rank"),
    (peft("LoraConfig", r="8"), "model.adapter.init_args.config.init_args.r='8' must be int."),
    (peft("LoraConfig", r=True), "config.init_args.r=True must be int."),
    (peft("LoraConfig", r=2.5), "config.init_args.r=2.5 must be int."),
    (peft("LoraConfig", lora_dropout="a"), "config.init_args.lora_dropout='a' must be float."),
    (peft("LoraConfig", use_dora="no"), "config.init_args.use_dora='no' must be bool."),
    (peft("LoraConfig", bias=True), "config.init_args.bias=True must be Literal['none', 'all', 'lora_only']."),
    (peft("LoraConfig", alpha_pattern=[1]), "config.init_args.alpha_pattern=[1] must be Optional[dict]."),
    (peft("LoraConfig", lora_alpha=0), "no tensor of it changes the answers (all gradients are 0); is its alpha 0?"),
    (peft("LoraConfig", lora_dropout=1.0), "config.init_args.lora_dropout=1.0 must be 0 or more and below 1."),
    (peft("LoraConfig", init_lora_weights="eva"), "eva needs a pass over the data before the training"),
    (peft("LoraConfig", rank_pattern={"q_pro": 2}), "rank_pattern names 'q_pro', which is none of its layers, such as"),
    (peft("LoraConfig", alpha_pattern={"mlp": 2}), "alpha_pattern names 'mlp', which is none of its layers, such as"),
    (peft("LoraConfig", rank_pattern={"qkv": "2"}), "rank_pattern gives 'qkv' '2'; give a number."),
    (peft("LoreConfig"), "has no configuration class of this name"),
]


@pytest.mark.parametrize(("adapter", "reason"), REFUSED, ids=lambda given: getattr(given, "method", ""))
def test_a_method_that_cannot_adapt_says_why_in_one_line(adapter: Peft, reason: str) -> None:
    with pytest.raises(ValueError, match=r"^model\.adapter: peft\.\w+ cannot adapt this backbone: ") as error:
        adapter.attach(nano_backbone(), Sam2Only())
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"class_path": "os.system"}, r"config\.class_path=os\.system is no configuration class of peft"),
        (
            {"class_path": "peft.LoraConfig", "init_args": {"target_modules": ["q"]}},
            r"config\.init_args\.target_modules is decided by model\.adapter\.init_args\.placement",
        ),
        (
            {"class_path": "peft.LoraConfig", "init_args": {"megatron_core": "os"}},
            r"config\.init_args\.megatron_core cannot be set here",
        ),
        (
            {"class_path": "peft.LoraConfig", "init_args": {"peft_type": "LOHA"}},
            r"config\.init_args\.peft_type cannot be set here",
        ),
        (
            {"class_path": "peft.LoraConfig", "init_args": {"use_qalora": True}},
            r"config\.init_args\.use_qalora cannot be set here",
        ),
    ],
)
def test_a_setting_that_is_not_one_of_the_method_is_refused(config: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Peft(config)


def test_settings_of_the_right_kind_are_taken() -> None:
    """Numbers without a fraction, text that peft does not list, None as in its defaults, and what configs hold."""
    lora = peft("LoraConfig", lora_dropout=0, init_lora_weights="pissa_niter_2", alpha_pattern=None).config(["q"])
    assert (lora.to_dict()["lora_dropout"], lora.to_dict()["init_lora_weights"]) == (0, "pissa_niter_2")
    for name in METHODS:
        if isinstance(adapter := adapter_of(name), Peft):
            made = adapter.config(["q"])
            taken = {key: getattr(made, key) for key in adapter.arguments}
            assert {key: [*value] if isinstance(value, set) else value for key, value in taken.items()} == (
                adapter.arguments
            )


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_start_that_moves_weights_is_saved_as_plain_lora(start: str, tmp_path: Path) -> None:
    trained = moved(peft("LoraConfig", r=4, init_lora_weights=start))
    own = nano_backbone().state_dict()
    named = {name.replace(".base_layer.", "."): tensor for name, tensor in trained.state_dict().items()}
    assert all(torch.equal(named[name], tensor) for name, tensor in own.items())  # not moved
    adapter = peft("LoraConfig", r=4, init_lora_weights=start)
    backbone = moved(adapter)
    adapter.save(tmp_path)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["init_lora_weights"]) == (8, 16, True)
    plain = peft("LoraConfig", r=8, lora_alpha=16)  # what anybody makes of the file
    other = nano_backbone()
    plain.attach(other, Sam2Only())
    plain.load(tmp_path)
    with torch.no_grad():
        pairs = zip(answers(backbone), answers(other), strict=True)
        assert all(torch.allclose(one, two, atol=1e-5, rtol=1e-5) for one, two in pairs)


def test_files_of_the_short_names_are_those_of_the_method(tmp_path: Path) -> None:
    for short, long in (
        (Lora(rank=4, alpha=8), peft("LoraConfig", r=4, lora_alpha=8)),
        (adapters.LoHa(), peft("LoHaConfig", r=4, alpha=8)),
        (adapters.LoKr(), peft("LoKrConfig", r=8, alpha=16)),
        (adapters.IA3(), peft("IA3Config", feedforward_modules=[])),
    ):
        moved(short)
        short.save(tmp_path)
        other = nano_backbone()
        long.attach(other, Sam2Only())
        long.load(tmp_path)
        assert all(map(torch.equal, short.backbone.state_dict().values(), other.state_dict().values()))


def test_places_outside_a_weight_are_refused(tmp_path: Path) -> None:
    adapter = peft("ShiraConfig", r=4)
    moved(adapter)
    adapter.save(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("shira_indices"))
    tensors[name][1, 0] = 1 << 20
    save_file(tensors, file)
    with pytest.raises(ValueError, match="shira_indices names places outside the weight; give another copy"):
        adapter.load(tmp_path)


class Forgets(Lora):
    """An adapter that saves only what it began with."""

    def attach(self, backbone: Any, propagation: Any) -> None:
        """Attach, and keep a copy."""
        super().attach(backbone, propagation)
        self.first = copy.deepcopy(self._state())

    def save(self, folder: Path) -> None:
        """Save the copy."""
        now, self._state = self._state, lambda: self.first  # type: ignore[method-assign]
        super().save(folder)
        self._state = now  # type: ignore[method-assign]


def test_an_adapter_that_saves_something_else_fails_the_check() -> None:
    with pytest.raises(ContractError, match="load does not give back what save wrote"):
        check_adapter(Forgets())


def test_a_bottleneck_is_refused_where_it_cannot_go() -> None:
    with pytest.raises(ValueError, match=r"width=0 must be at least 1"):
        Bottleneck(width=0)
    with pytest.raises(ValueError, match=r"'neck' with stages .* matches no layer"):
        Bottleneck(placement=Placement(["neck"])).attach(nano_backbone(), Sam2Only())
    with pytest.raises(ValueError, match="cannot be merged"):
        Bottleneck().merge()


@pytest.mark.ci
def test_two_ranks_train_every_method_without_a_search_for_unused_tensors(tmp_path: Path) -> None:
    train_by_two_ranks(tmp_path, list(METHODS))
