"""Adapters make a frozen backbone trainable: LoRA and related methods of peft, the whole backbone, or nothing."""

from adapters.lora import IA3, LoHa, LoKr, Lora
from adapters.peft_adapter import PeftAdapter
from adapters.placement import Placement
from adapters.plain import Frozen, Full

__all__ = ["IA3", "Frozen", "Full", "LoHa", "LoKr", "Lora", "PeftAdapter", "Placement"]
