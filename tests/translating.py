"""Tiny encoder-decoders and files of rows for the tests of back-translation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    T5Config,
    T5ForConditionalGeneration,
)

from tests import tiny

_LAYERS = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
_HEADS = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "d_model": 16}

#: Seeds that differ, so that the ways differ.
MODELS = {"marian": 1, "bart": 2, "t5": 3}


def save_translator(folder: Path, kind: str) -> str:
    """Save a random encoder-decoder with the tiny tokenizer, and return where."""
    tokenizer = tiny.tokenizer("sentinels")
    ids: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "decoder_start_token_id": tokenizer.pad_token_id,
    }
    more = {**_LAYERS, **_HEADS, "max_position_embeddings": 64, "forced_eos_token_id": None}
    torch.manual_seed(MODELS[kind])
    if kind == "marian":
        network = MarianMTModel(MarianConfig(**ids, **more))
    elif kind == "bart":
        network = BartForConditionalGeneration(BartConfig(**ids, **more, bos_token_id=0))
    else:
        small = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
        network = T5ForConditionalGeneration(T5Config(**ids, **small))
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def write_rows(path: Path, count: int = 9) -> list[dict[str, Any]]:
    """Write rows with a text, a label and a number; return them."""
    rows = [
        {"sentence": text, "label": "ab"[n % 2], "number": n}
        for n, text in enumerate(tiny.sentences(count))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]
