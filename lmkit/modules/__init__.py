"""LightningModules, one per objective."""

from .base import LMModule
from .causal_lm import CausalLMModule
from .denoising import DenoisingModule
from .masked_lm import MaskedLMModule
from .replaced_token import ReplacedTokenModule

__all__ = [
    "CausalLMModule",
    "DenoisingModule",
    "LMModule",
    "MaskedLMModule",
    "ReplacedTokenModule",
]
