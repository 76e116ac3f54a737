"""Pure mathematics, tensor to tensor: no Lightning, no transformers, no files."""

from .cross_entropy import accuracy, token_cross_entropy
from .masking import check_shares, mask_tokens
from .random import mix, permute, uniform
from .schedule import schedule_factor, warmup_steps

__all__ = [
    "accuracy",
    "check_shares",
    "mask_tokens",
    "mix",
    "permute",
    "schedule_factor",
    "token_cross_entropy",
    "uniform",
    "warmup_steps",
]
