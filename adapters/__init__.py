"""How a frozen backbone is made trainable: LoRA and its family through peft, nothing, or everything."""

from adapters.lora import IA3, LoHa, LoKr, Lora
from adapters.peft_adapter import PeftAdapter
from adapters.placement import Placement
from adapters.plain import Frozen, Full

__all__ = ["IA3", "Frozen", "Full", "LoHa", "LoKr", "Lora", "PeftAdapter", "Placement"]
