"""LightningModules, one per objective."""

from .base import LMModule
from .causal_lm import CausalLMModule
from .masked_lm import MaskedLMModule

__all__ = ["CausalLMModule", "LMModule", "MaskedLMModule"]
