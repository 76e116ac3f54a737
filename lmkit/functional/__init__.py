"""Pure mathematics, tensor to tensor: no Lightning, no transformers, no files."""

from .cross_entropy import accuracy, token_cross_entropy
from .masking import (
    check_shares,
    choose_tokens,
    corrupt_tokens,
    label_positions,
    token_budget,
)
from .random import mix, permute, uniform
from .schedule import schedule_factor, warmup_steps
from .sentence_pairs import SentencePairs, plan_pairs
from .span_corruption import corrupt_spans, raw_length, span_lengths
from .token_choice import choose_spans, choose_words, geometric_lengths, ngram_lengths

__all__ = [
    "SentencePairs",
    "accuracy",
    "check_shares",
    "choose_spans",
    "choose_tokens",
    "choose_words",
    "corrupt_spans",
    "corrupt_tokens",
    "geometric_lengths",
    "label_positions",
    "mix",
    "ngram_lengths",
    "permute",
    "plan_pairs",
    "raw_length",
    "schedule_factor",
    "span_lengths",
    "token_budget",
    "token_cross_entropy",
    "uniform",
    "warmup_steps",
]
