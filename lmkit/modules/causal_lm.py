"""Causal language modelling: predict the next token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torchmetrics import Metric
from transformers import AutoModelForCausalLM

from ..functional import mix, token_cross_entropy
from ..types import IGNORE_INDEX, Batch, StepOutput
from .base import LMModule
from .checks import require_tokenizer
from .network_inputs import network_inputs
from .scores import Scores, class_scores
from .sparse_head import labelled, logits_at
from .token_metrics import language_metrics, update_language_metrics

__all__ = ["CausalLMModule"]


class CausalLMModule(LMModule):
    r"""Predict each token from those before it (GPT, no arXiv; as in Llama, arXiv:2302.13971).

    $\mathcal{L} = -\frac{1}{n} \sum_{i > 1} \log p_\theta(x_i \mid x_{<i})$ over the labelled
    tokens; the labels are not shifted in the batch, the step shifts them.

    Logs `train/loss`, and of the validation `val/loss`, `val/perplexity` and `val/accuracy`, each
    weighted by tokens. `predict` generates text.

    Args:
        model: hub name, folder, or config with a `model_type`: any architecture with a causal
            language-model head (GPT-2, Llama, ...).
        pretrained: whether a name or folder brings its weights.
        learning_rate: the peak of the schedule.
        weight_decay: of weight matrices; biases and normalizations have none.
        warmup: optimizer steps (int) or share of the run (float below 1).
        schedule: `"linear"`, `"cosine"` or `"constant"` after the warm-up.
        optimizer: `{"class_path": ..., "init_args": {...}}` in place of AdamW.
        dropout: of every layer in training, in `[0, 1)`; `None` leaves what the config says. 0 is
            the rule of pre-training (arXiv:2212.14034), where a text is seen a few times at most,
            and on a CPU a fifth to a third faster.
        compile: whether the layers are compiled; `None` decides by device and length of the run.
        max_new_tokens: how many tokens `predict` adds to a prompt at most.
        temperature: divides the logits when `predict` draws; 0 takes the most probable token.
        top_k: `predict` draws among this many most probable tokens; 0 means among all.

    Example:
        >>> module = CausalLMModule({"model_type": "gpt2", "vocab_size": 99, "n_embd": 8,
        ...     "n_layer": 1, "n_head": 2})
        >>> module.configure_model()
        >>> ids = torch.tensor([[5, 6, 7]])
        >>> batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
        >>> module.step(batch).items.item()
        2
    """

    auto_class = AutoModelForCausalLM
    is_causal = True

    def __init__(
        self,
        model: str | dict[str, Any],
        pretrained: bool = True,
        learning_rate: float = 5e-4,
        weight_decay: float = 0.1,
        warmup: int | float = 0.06,
        schedule: str = "cosine",
        optimizer: dict[str, Any] | None = None,
        dropout: float | None = 0.0,
        compile: bool | None = None,
        max_new_tokens: int = 50,
        temperature: float = 1.0,
        top_k: int = 50,
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

    def step(self, batch: Batch) -> StepOutput:
        """Compute the loss of every next token that is labelled.

        Args:
            batch: `input_ids`, `attention_mask` and `labels`, each int64 `[B, L]`, not shifted.

        Returns:
            Loss, number $K$ of predicted tokens, and their logits `[K, V]`, row by row.
        """
        positions, targets = labelled({"labels": _shifted(batch["labels"])})
        inputs = network_inputs(self.network, batch, causal=True)
        logits = logits_at(self.network, positions, **inputs, use_cache=False)
        loss, count = token_cross_entropy(logits, targets)
        return StepOutput(loss, count, logits)

    def scores(self, output: StepOutput, batch: Batch) -> Scores:
        """Return one item for each predicted token."""
        assert output.logits is not None
        shifted = labelled({"labels": _shifted(batch["labels"])})
        return class_scores(output.logits, *shifted, batch)

    def build_metrics(self) -> dict[str, Metric]:
        """Make loss, perplexity and accuracy."""
        return language_metrics()

    def update_metrics(
        self, metrics: Mapping[str, Metric], output: StepOutput, batch: Batch
    ) -> None:
        """Give the metrics the result of one batch."""
        _, targets = labelled({"labels": _shifted(batch["labels"])})
        update_language_metrics(metrics, output, targets)

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """Continue each prompt; the draw depends only on the run's seed and the batch.

        Returns:
            For each row its `prompt` and the generated `text`.
        """
        torch.manual_seed(mix(self.seed or 0, batch_idx, self.global_rank))
        return self._continue(batch, self.hparams["max_new_tokens"], self.hparams["temperature"])

    @torch.no_grad()
    def sample(self, batch: Batch, rows: int) -> list[dict[str, Any]]:
        """Continue the first half of the first rows of a batch with the most probable tokens.

        Returns:
            For each row its `prompt` and the generated `text`.
        """
        ids = batch["input_ids"][:rows]
        half = (batch["attention_mask"][:rows].sum(1, keepdim=True) // 2).clamp(min=1)
        width = int(half.max())
        # What is to be continued stands at the right end.
        place = torch.arange(width, device=ids.device) - width + half
        prompts = ids.gather(1, place.clamp(min=0))
        prompts[place < 0] = cast(int, require_tokenizer(self).pad_token_id)
        return self._continue(
            {"input_ids": prompts, "attention_mask": (place >= 0).long()}, width, temperature=0.0
        )

    def _continue(
        self, batch: Batch, max_new_tokens: int, temperature: float
    ) -> list[dict[str, Any]]:
        tokenizer = require_tokenizer(self)
        draw = (
            {"do_sample": True, "temperature": temperature, "top_k": self.hparams["top_k"]}
            if temperature > 0
            else {"do_sample": False}
        )
        mode = self.network.training
        self.network.train(False)
        ids: Tensor = cast(Any, self.network).generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
            **draw,
        )
        self.network.train(mode)
        length = batch["input_ids"].shape[1]
        fillers = batch["index"] < 0 if "index" in batch else torch.zeros(len(ids)).bool()
        return [
            {
                "prompt": tokenizer.decode(row[:length], skip_special_tokens=True),
                "text": tokenizer.decode(row[length:], skip_special_tokens=True),
            }
            for row in ids[~fillers.to(ids.device)]
        ]


def _shifted(labels: Tensor) -> Tensor:
    """Put at each position the label of the next; the last one has none."""
    return torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
