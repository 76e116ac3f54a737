"""Data modules: from text to batches, as pure functions of (seed, epoch, rank)."""

from .base import LMDataModule
from .causal_lm import CausalLMDataModule
from .masked_lm import MaskedLMDataModule

__all__ = ["CausalLMDataModule", "LMDataModule", "MaskedLMDataModule"]
