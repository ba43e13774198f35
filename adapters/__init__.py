"""Adapters make a frozen backbone trainable: methods of peft, bottlenecks, the whole backbone, or nothing."""

from adapters.bottleneck import Bottleneck
from adapters.lora import IA3, LoHa, LoKr, Lora
from adapters.peft_adapter import PeftAdapter
from adapters.peft_methods import Peft, PeftMethod
from adapters.placement import Placement
from adapters.plain import Frozen, Full
from mois.machine.own_packages import warn_of_hidden_package

__all__ = [
    "IA3",
    "Bottleneck",
    "Frozen",
    "Full",
    "LoHa",
    "LoKr",
    "Lora",
    "Peft",
    "PeftAdapter",
    "PeftMethod",
    "Placement",
]

warn_of_hidden_package("adapters")
