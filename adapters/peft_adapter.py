"""Base of the adapters of peft. Parts and stages of the backbone say where an adapter goes (`Placement`)."""

from __future__ import annotations

import copy
import json
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from adapters.adapter_file import NAME, read_adapter
from adapters.moved_start import START, as_one, as_two, own_weights, put_back, settings_as_one
from adapters.placed_layers import REACHED, placed_layers
from adapters.placement import Placement
from mois.backbones.example_answers import IDENTITY, answers, largest_change, without_gradient
from mois.files.atomic import whole_file, write_text
from mois.interfaces import Adapter, Backbone, Propagation
from mois.sharing.old_settings import PLACEMENT, accepts_old_arguments

if TYPE_CHECKING:
    from peft import PeftConfig

PREFIX = "base_model.model."
"""Beginning of every name in peft's files."""

FAULTS = (
    ArithmeticError, AssertionError, AttributeError, ImportError, IndexError, KeyError, NotImplementedError,
    RuntimeError, TypeError, ValueError,
)  # fmt: skip
"""What methods of peft raise where they cannot be injected into a layer, or cannot be run."""


class PeftAdapter(Adapter):
    """An adapter of peft on named parts of the backbone.

    Args:
        placement: Where the adapter goes.
    """

    start_moved = False  # whether the method's start would have moved the backbone's weights (`moved_start`)
    own_trained = ""  # name of a tensor of the backbone itself that is trained, such as by bias="lora_only"

    @accepts_old_arguments(PLACEMENT)
    def __init__(self, placement: Placement = Placement()) -> None:  # noqa: B008 (frozen)
        self.placement = placement

    @property
    def method(self) -> str:
        """The name of the method, for messages."""
        return type(self).__name__

    @abstractmethod
    def config(self, targets: list[str]) -> PeftConfig:
        """Return peft's configuration for these layers."""

    def targets(self, backbone: Backbone) -> list[str]:
        """Return the names of the backbone's layers that get an adapter.

        Raises:
            ValueError: If the backbone lacks a part, or no layer of the part matches.
        """
        return placed_layers(backbone, self.placement, REACHED)

    def attach(self, backbone: Backbone, propagation: Propagation) -> None:
        """See `Adapter.attach`.

        Raises:
            ValueError: If a part or layer is missing, or the method of peft cannot adapt this backbone.
        """
        backbone.requires_grad_(False)
        targets = self.targets(backbone)
        self._inject(backbone, targets)
        propagation.requires_grad_(self.placement.propagation == "full")
        self.backbone = backbone

    def save(self, folder: Path) -> None:
        """See `Adapter.save`; `peft.PeftModel.from_pretrained(backbone, folder)` reads it too."""
        injected: Any = self.backbone
        config = injected.peft_config["default"].to_dict()
        if self.start_moved:
            config = settings_as_one(config)
        plain = {
            key: sorted(value) if isinstance(value, set) else value
            for key, value in config.items()
            if not (hasattr(value, "items") and key == "runtime_config")
        }
        tensors = {PREFIX + name: value.detach().cpu().contiguous() for name, value in self._state().items()}
        with whole_file(folder / NAME) as part:
            save_file(_apart(tensors), part)
        write_text(folder / "adapter_config.json", json.dumps(plain, indent=2, default=str, sort_keys=True))

    def load(self, folder: Path) -> None:
        """See `Adapter.load`."""
        from peft import set_peft_model_state_dict

        state = read_adapter(folder, self._state(), PREFIX)
        for name, tensor in state.items():
            if not tensor.is_floating_point():
                self._check_places(folder, name, tensor)
        if self.start_moved:
            state, start = as_two(state)
            set_peft_model_state_dict(self.backbone, start, adapter_name=START)
        set_peft_model_state_dict(self.backbone, state)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Switch the adapter off within this context. The backbone then answers exactly as before `attach`.

        Raises:
            ValueError: If the method trains tensors of the backbone itself.
        """
        if self.own_trained:
            raise ValueError(
                f"model.adapter: {self.method} trains the backbone's own {self.own_trained}; it cannot be off."
            )
        trained = [parameter for parameter in self.backbone.parameters() if parameter.requires_grad]
        for layer in self._layers().values():
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in self._layers().values():
                layer.enable_adapters(True)
            for parameter in self.backbone.parameters():  # enabling trains the frozen part of a moved start, too
                parameter.requires_grad_(False)
            for parameter in trained:
                parameter.requires_grad_(True)

    def merge(self) -> None:
        """See `Adapter.merge`."""
        for name, layer in self._layers().items():
            layer.merge()
            parent, _, own = name.rpartition(".")
            setattr(self.backbone.get_submodule(parent), own, layer.get_base_layer())

    def _inject(self, backbone: Backbone, targets: list[str]) -> None:
        """Inject the adapter, and refuse one that changes answers before a training or cannot be trained or saved."""
        try:
            with torch.no_grad():
                before, weights = answers(backbone), own_weights(backbone, targets)
            own = {id(tensor) for tensor in backbone.parameters()}
            config = self.config(targets)
            from peft import inject_adapter_in_model  # costs 5 seconds to import

            inject_adapter_in_model(config, backbone)
            self.start_moved = put_back(backbone, config, weights)
            with torch.no_grad():
                changed = largest_change(before, answers(backbone))
            if not changed <= IDENTITY:
                raise ValueError(f"it changes the backbone's answers before any training (by {changed:.1g})")
            if idle := without_gradient(backbone):
                raise ValueError(f"{len(idle)} of its tensors get no gradient, such as {idle[0]}")
            if not any(bool(tensor.grad.any()) for tensor in backbone.parameters() if tensor.grad is not None):
                raise ValueError("no tensor of it changes the answers (all gradients are 0); is its alpha 0?")
            trained = (
                name for name, tensor in backbone.named_parameters() if tensor.requires_grad and id(tensor) in own
            )
            self.own_trained = next(trained, "")
            backbone.zero_grad()
            layers = {type(layer): layer for layer in map(backbone.get_submodule, targets)}
            for layer in layers.values():
                _check_merges(layer)
        except FAULTS as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise ValueError(f"model.adapter: {self.method} cannot adapt this backbone: {reason}.") from error

    def _check_places(self, folder: Path, name: str, places: Tensor) -> None:
        """Refuse places of trained numbers, (K,) or (2, K), outside the weight: peft would write there."""
        weight = self.backbone.get_submodule(name.rpartition(".")[0]).get_base_layer().weight  # type: ignore[operator]
        limits = torch.tensor(weight.shape).unsqueeze(1) if places.dim() == 2 else weight.numel()  # (2, 1)
        if bool(((places < 0) | (places >= limits)).any()):
            raise ValueError(f"{folder / NAME}: {name} names places outside the weight; give another copy.")

    def _state(self) -> dict[str, Tensor]:
        """Return the tensors of the file, by name."""
        from peft import get_peft_model_state_dict

        state: dict[str, Tensor] = get_peft_model_state_dict(self.backbone)
        return (
            as_one(state, get_peft_model_state_dict(self.backbone, adapter_name=START)) if self.start_moved else state
        )

    def _layers(self) -> dict[str, Any]:
        """Return the layers of peft by name."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        return {name: layer for name, layer in self.backbone.named_modules() if isinstance(layer, BaseTunerLayer)}


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors that share no memory, as safetensors wants them."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        apart[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return apart


def _check_merges(layer: Any) -> None:
    """Refuse a layer that cannot be merged: it depends on more than its weights and one input, such as on a batch."""
    try:
        copy.deepcopy(layer).merge()
    except NotImplementedError as error:
        raise ValueError("it cannot be merged into the backbone's weights") from error
