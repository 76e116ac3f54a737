"""Denoising: an encoder-decoder writes the spans that were taken out of a text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

import torch
from torchmetrics import Metric
from transformers import AutoModelForSeq2SeqLM

from ..functional import token_cross_entropy
from ..tokenization import require_sentinels
from ..types import IGNORE_INDEX, Batch, StepOutput
from .base import LMModule
from .checks import require_tokenizer
from .decoder_inputs import decoder_inputs
from .generation import generate
from .network import usable_positions
from .scores import Scores, class_scores
from .sparse_head import labelled, logits_at
from .token_metrics import language_metrics, update_language_metrics

__all__ = ["DenoisingModule"]


class DenoisingModule(LMModule):
    r"""Write the spans that were taken out of a text (T5, arXiv:1910.10683).

    $\mathcal{L} = -\frac{1}{T} \sum_{t=1}^{T} \log p_\theta(y_t \mid y_{<t}, \tilde x)$, where
    $\tilde x$ is the text with a sentinel in place of each span, and $y$ each sentinel with its
    span behind it. Which spans those are is the data module's; see
    `lmkit.datamodules.DenoisingDataModule`.

    Logs `train/loss`, and of the validation `val/loss`, `val/perplexity` and `val/accuracy` of the
    target's tokens, sentinels and end included, each weighted by tokens. `predict` fills gaps.

    Args:
        model: hub name, folder, or config with a `model_type`: any encoder-decoder with a
            language-model head (T5, mT5, BART ...). From scratch it takes the size of the
            vocabulary, the padding, the end and the decoder's start from the tokenizer.
        pretrained: whether a name or folder brings its weights.
        learning_rate: the peak of the schedule.
        weight_decay: of weight matrices; biases and normalizations have none.
        warmup: optimizer steps (int) or share of the run (float below 1).
        schedule: `"linear"`, `"cosine"` or `"constant"` after the warm-up.
        optimizer: `{"class_path": ..., "init_args": {...}}` in place of AdamW.
        dropout: of every layer in training, in `[0, 1)`; `None` leaves what the config says. 0 is
            how T5 1.1 was pre-trained; fine-tune with the config's.
        compile: whether the layers are compiled; `None` decides by device and length of the run.
        max_new_tokens: how many tokens `predict` writes for a text at most, sentinels included.

    Example:
        >>> module = DenoisingModule({"model_type": "t5", "vocab_size": 99, "d_model": 8,
        ...     "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2})
        >>> module.configure_model()
        >>> ids = torch.tensor([[7, 98, 9, 1]])
        >>> batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids),
        ...     "labels": torch.tensor([[98, 8, 1, -100]])}
        >>> module.step(batch).items.item()
        3

    Raises:
        ValueError: a setting lies outside its range; in `setup`: the decoder has fewer positions
            than the targets have tokens.
    """

    auto_class = AutoModelForSeq2SeqLM

    def __init__(
        self,
        model: str | dict[str, Any],
        pretrained: bool = True,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.01,
        warmup: int | float = 0.06,
        schedule: str = "linear",
        optimizer: dict[str, Any] | None = None,
        dropout: float | None = 0.0,
        compile: bool | None = None,
        max_new_tokens: int = 64,
    ) -> None:
        super().__init__(
            model,
            pretrained,
            learning_rate,
            weight_decay,
            warmup,
            schedule,
            optimizer,
            dropout,
            compile,
        )
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")

    def setup(self, stage: str) -> None:
        """Check that inputs and targets fit the network."""
        super().setup(stage)
        places = usable_positions(cast(Any, self.network).get_decoder())
        written = getattr(getattr(self.trainer, "datamodule", None), "target_length", None)
        if places is not None and written is not None and written > places:
            raise ValueError(
                f"the targets have {written} tokens, but the decoder has {places} positions; lower "
                "noise_density or max_length, raise mean_span, or give a model from scratch more "
                "max_position_embeddings"
            )

    def step(self, batch: Batch) -> StepOutput:
        """Compute the loss of the target.

        Args:
            batch: `input_ids` and `attention_mask`, int64 `[B, L]`, and `labels`, int64 `[B, T]`,
                not shifted: the decoder's inputs are made of them.

        Returns:
            Loss, number $K$ of labelled tokens, and their logits `[K, V]`, row by row.
        """
        positions, targets = labelled(batch)
        logits = logits_at(
            self.network,
            positions,
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            decoder_input_ids=decoder_inputs(self.network, batch["labels"]),
            use_cache=False,
        )
        loss, count = token_cross_entropy(logits, targets)
        return StepOutput(loss, count, logits)

    def scores(self, output: StepOutput, batch: Batch) -> Scores:
        """Return one item for each token of the targets."""
        assert output.logits is not None
        written = batch["labels"] != IGNORE_INDEX
        return class_scores(output.logits, *labelled(batch), batch, written)

    def build_metrics(self) -> dict[str, Metric]:
        """Make loss, perplexity and accuracy."""
        return language_metrics()

    def update_metrics(
        self, metrics: Mapping[str, Metric], output: StepOutput, batch: Batch
    ) -> None:
        """Give the metrics the result of one batch."""
        update_language_metrics(metrics, output, labelled(batch)[1])

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """Write what is most probable in place of each sentinel.

        Returns:
            For each row its `text`, the text with the gaps `filled`, and `fills`: what was written
            for each sentinel of the text, in order; "" where the network wrote nothing for it.
        """
        tokenizer = require_tokenizer(self)
        sentinels = set(require_sentinels(tokenizer))
        written = self._write(batch, self.hparams["max_new_tokens"])
        rows = []
        for row, ids in enumerate(batch["input_ids"]):
            if "index" in batch and batch["index"][row] < 0:
                continue  # a filler, so that each rank has as many rows
            real = ids[batch["attention_mask"][row].bool()].tolist()
            spans = _spans(written[row], sentinels)
            rows.append(
                {
                    "text": self._text(real),
                    "filled": self._text(_filled(real, spans, sentinels)),
                    "fills": [self._text(spans.get(i, [])) for i in real if i in sentinels],
                }
            )
        return rows

    @torch.no_grad()
    def sample(self, batch: Batch, rows: int) -> list[dict[str, Any]]:
        """Show what the network writes for the first rows of a batch with labels.

        Returns:
            For each row the `corrupted` text, the text with the gaps `filled`, and the `original`.
        """
        sentinels = set(require_sentinels(require_tokenizer(self)))
        head = {name: tensor[:rows] for name, tensor in batch.items()}
        written = self._write(head, head["labels"].shape[1])
        shown = []
        for row, ids in enumerate(head["input_ids"]):
            labels = head["labels"][row]
            target = labels[labels != IGNORE_INDEX].tolist()
            if not target:
                continue
            real = ids[head["attention_mask"][row].bool()].tolist()
            spans = _spans(written[row], sentinels)
            original = _spans(target[:-1], sentinels)
            shown.append(
                {
                    "corrupted": self._text(real),
                    "filled": self._text(_filled(real, spans, sentinels)),
                    "original": self._text(_filled(real, original, sentinels)),
                }
            )
        return shown

    def _write(self, batch: Batch, max_new_tokens: int) -> list[list[int]]:
        """Return what the decoder writes up to its end, each time the most probable token."""
        end = require_tokenizer(self).eos_token_id
        return generate(self.network, batch, end=end, max_new_tokens=max_new_tokens)

    def _text(self, ids: list[int]) -> str:
        tokenizer = require_tokenizer(self)
        text = str(tokenizer.decode(ids))
        for role in ("pad_token", "bos_token", "eos_token", "cls_token", "sep_token"):
            text = text.replace(getattr(tokenizer, role, None) or "\0", " ")
        return " ".join(re.sub(r"(<extra_id_\d+>)", r" \1", text).split())


def _spans(written: list[int], sentinels: set[int]) -> dict[int, list[int]]:
    """Cut a target into the span behind each sentinel; what is before the first is dropped."""
    spans: dict[int, list[int]] = {}
    current: list[int] = []
    for token in written:
        if token in sentinels:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    return spans


def _filled(ids: list[int], spans: Mapping[int, list[int]], sentinels: set[int]) -> list[int]:
    """Put the spans in place of their sentinels."""
    filled: list[int] = []
    for token in ids:
        filled += spans.get(token, []) if token in sentinels else [token]
    return filled
