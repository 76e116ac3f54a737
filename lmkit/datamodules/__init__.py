"""Data modules: from text to batches, as pure functions of (seed, epoch, rank)."""

from .base import LMDataModule
from .causal_lm import CausalLMDataModule
from .denoising import DenoisingDataModule
from .masked_lm import MaskedLMDataModule
from .replaced_token import ReplacedTokenDataModule

__all__ = [
    "CausalLMDataModule",
    "DenoisingDataModule",
    "LMDataModule",
    "MaskedLMDataModule",
    "ReplacedTokenDataModule",
]
