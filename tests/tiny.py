"""Tiny networks, tokenizers, texts and surgeries that the tests share."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from lmkit.surgery import match_modules, replace_module
from lmkit.tokenization import train_tokenizer
from lmkit.types import Batch

_SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
_BERT = {**_SIZES, "intermediate_size": 32, "max_position_embeddings": 66}

#: Architectures with a masked language-model head, from scratch.
MASKED: dict[str, dict[str, Any]] = {
    "bert": {"model_type": "bert", **_BERT},
    "roberta": {"model_type": "roberta", **_BERT, "pad_token_id": 0},
    "distilbert": {
        "model_type": "distilbert",
        "dim": 16,
        "n_layers": 2,
        "n_heads": 2,
        "hidden_dim": 32,
        "max_position_embeddings": 64,
    },
    "electra": {"model_type": "electra", **_BERT, "embedding_size": 8},
    "modernbert": {
        "model_type": "modernbert",
        **_BERT,
        "global_attn_every_n_layers": 2,
        "local_attention": 8,
    },
}

#: Architectures with a causal language-model head, from scratch.
CAUSAL: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "llama": {
        "model_type": "llama",
        **_SIZES,
        "intermediate_size": 32,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    },
}

#: Encoder-decoders with a language-model head, from scratch.
SEQ2SEQ: dict[str, dict[str, Any]] = {
    "t5": {
        "model_type": "t5",
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 32,
        "num_layers": 2,
        "num_heads": 2,
    },
}

_TEXT = (
    "the quick brown fox jumps over a lazy dog while many small birds sing in old trees near "
    "green rivers and children read long books about stars moons ships winds letters numbers"
)
_WORDS = _TEXT.split()


def sentences(count: int, seed: int = 0) -> list[str]:
    """Make texts of 4 to 14 words."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(_WORDS, k=rng.randint(4, 14))) + " ." for _ in range(count)]


def write_text(path: Path, count: int, seed: int = 0) -> Path:
    """Write one text a line."""
    path.write_text("\n".join(sentences(count, seed)) + "\n", encoding="utf-8")
    return path


@cache
def tokenizer(kind: str = "wordpiece") -> PreTrainedTokenizerBase:
    """Train a tokenizer on the tiny texts, once a process."""
    if kind == "sentinels":
        return train_tokenizer(sentences(200), "bpe", vocab_size=300, sentinels=10)
    return train_tokenizer(sentences(200), kind, vocab_size=300)


def tokenizer_folder(folder: Path, kind: str = "wordpiece") -> str:
    """Save the tiny tokenizer, and return where."""
    tokenizer(kind).save_pretrained(folder)
    return str(folder)


def masked_batch(rows: int = 4, length: int = 12, vocab: int = 99, seed: int = 0) -> Batch:
    """Make a batch with padding and about a quarter of its positions labelled."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, vocab, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(1, rows):
        mask[row, length - row :] = 0
    ids[mask == 0] = 0
    chosen = (torch.rand(ids.shape, generator=generator) < 0.25) & mask.bool()
    chosen[:, 0] = True
    labels = ids.masked_fill(~chosen, -100)
    return {
        "input_ids": ids.masked_fill(chosen, 4),
        "attention_mask": mask,
        "labels": labels,
        "index": torch.arange(rows),
    }


def causal_batch(rows: int = 4, length: int = 12, vocab: int = 99, seed: int = 0) -> Batch:
    """Make a batch with padding whose every real token is labelled."""
    batch = masked_batch(rows, length, vocab, seed)
    batch["input_ids"] = torch.where(batch["labels"] == -100, batch["input_ids"], batch["labels"])
    batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    return batch


def write_text_pairs(folder: Path) -> dict[str, Any]:
    """Write texts with what becomes of them, the same backwards in capitals; say where."""
    for split, count, seed in (("train", 60, 0), ("val", 12, 1)):
        rows = [
            {"source": text, "target": " ".join(text.upper().split()[::-1])}
            for text in sentences(count, seed)
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    return {f"{split}_file": str(folder / f"{split}.jsonl") for split in ("train", "val")}


class ResidualLinear(nn.Module):
    """A linear layer with a low-rank product added to it, which starts at zero."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base_layer = base
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        self.dropout = nn.Dropout(0.1)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.base_layer(x) + self.up(self.down(self.dropout(x)))
        return result


@dataclass(frozen=True)
class Residual:
    """The surgery of the tests: freeze everything but the head, and add trainable residuals."""

    patterns: tuple[str, ...] = ("query", "value", "dense")
    rank: int = 2

    def __call__(self, network: nn.Module) -> None:
        found = match_modules(network, list(self.patterns), nn.Linear)
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name.startswith("cls."))
        for name, layer in found.items():
            assert isinstance(layer, nn.Linear)
            replace_module(network, name, ResidualLinear(layer, self.rank))


class ResidualCallback(Callback):
    """Asks a module for the surgery of the tests."""

    def __init__(self, rank: int = 2) -> None:
        self.surgery = Residual(rank=rank)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        pl_module.operate(self.surgery)  # type: ignore[operator]
