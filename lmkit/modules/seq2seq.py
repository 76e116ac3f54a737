"""One text from another, by an encoder-decoder: translation, summaries, rewriting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn
from torchmetrics import Metric
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.auto_factory import _BaseAutoModelClass

from ..functional import token_cross_entropy
from ..tokenization import require_pad_token
from ..tokenization.text_ends import require_end
from ..types import IGNORE_INDEX, Batch, StepOutput
from .base import LMModule
from .checks import require_tokenizer
from .decoder_inputs import decoder_inputs, decoder_start
from .encoder_decoder import build_encoder_decoder, is_two_networks, settle
from .generation import generate, set_generation, source_batch
from .network import build_network, check_fit, usable_positions
from .scores import Scores, class_scores
from .sparse_head import labelled, logits_at
from .text_metrics import text_metrics
from .token_metrics import language_metrics, update_language_metrics
from .written_texts import WaitingRows

__all__ = ["Seq2SeqModule"]


class Seq2SeqModule(LMModule):
    r"""Write the target of each source (arXiv:1409.3215, with the networks of arXiv:1706.03762).

    $\mathcal{L} = -\frac{1}{T} \sum_{t=1}^{T} \left[(1 - \varepsilon) \log p_\theta(y_t \mid
    y_{<t}, x) + \frac{\varepsilon}{V} \sum_{v} \log p_\theta(v \mid y_{<t}, x)\right]$, the mean
    over all target tokens of a step, each target's end included. The losses of validation and test
    have no smoothing, so that they compare over runs.

    Logs `train/loss`, and of the validation `val/loss`, `val/perplexity` and `val/accuracy` over
    all target tokens. With `metrics` it also writes the texts of some validation examples, and of
    all test examples, by beam search, and logs how near they are to the targets as these stand in
    the data, from 0 to 100.

    Args:
        model: hub name, folder, or config with a `model_type`: any encoder-decoder (T5, BART,
            Marian, Pegasus ...); or two networks that become one (arXiv:1907.12461), as
            `{"model_type": "encoder-decoder", "encoder": ..., "decoder": ...}` with a name, a
            folder or a config each, and perhaps `"tie_encoder_decoder": True`.
        pretrained: whether names and folders bring their weights.
        learning_rate: the peak of the schedule.
        weight_decay: of weight matrices; biases and normalizations have none.
        warmup: optimizer steps (int) or share of the run (float below 1).
        schedule: `"linear"`, `"cosine"` or `"constant"` after the warm-up.
        optimizer: `{"class_path": ..., "init_args": {...}}` in place of AdamW.
        dropout: of every layer in training, in `[0, 1)`; `None` leaves what the config says.
        compile: whether the layers are compiled; `None` decides by device and length of the run.
        layer_decay: factor of the learning rate from each layer to the one below.
        label_smoothing: $\varepsilon$, in `[0, 1)`.
        metrics: what to measure of written texts: `bleu`, `chrf`, `rouge` (or one of `rouge1`,
            `rouge2`, `rougeL`).
        generate_examples: how many validation examples are written; a test writes all.
        beams: width of the search, at least 1; by default the model's own, which is 4 where it says
            nothing.
        max_new_tokens: how many tokens are written at most; by default the longest target of the
            data.
        generation: further arguments of transformers' `generate`, e.g. `{"length_penalty": 0.6}`.

    Raises:
        ValueError: an argument lies outside its range, or a metric is unknown.

    Example:
        >>> module = Seq2SeqModule({"model_type": "t5", "vocab_size": 99, "d_model": 8,
        ...     "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}, label_smoothing=0.1)
        >>> module.configure_model()
        >>> ids = torch.tensor([[7, 98, 9, 1]])
        >>> batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids),
        ...     "labels": torch.tensor([[98, 8, 1, -100]])}
        >>> module.step(batch).items.item()
        3
    """

    auto_class = AutoModelForSeq2SeqLM

    def __init__(
        self,
        model: str | dict[str, Any],
        pretrained: bool = True,
        learning_rate: float = 1e-4,
        weight_decay: float = 0.01,
        warmup: int | float = 0.06,
        schedule: str = "linear",
        optimizer: dict[str, Any] | None = None,
        dropout: float | None = None,
        compile: bool | None = None,
        layer_decay: float = 1.0,
        label_smoothing: float = 0.0,
        metrics: list[str] | None = None,
        generate_examples: int = 200,
        beams: int | None = None,
        max_new_tokens: int | None = None,
        generation: dict[str, Any] | None = None,
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
            layer_decay,
        )
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"label_smoothing must lie in [0, 1), got {label_smoothing}")
        if generate_examples < 0:
            raise ValueError(f"generate_examples must be 0 or more, got {generate_examples}")
        for name, value in (("beams", beams), ("max_new_tokens", max_new_tokens)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        # Apart from the other metrics, which are logged with each batch: texts are late.
        self.text_metrics = nn.ModuleDict(
            {stage: nn.ModuleDict(text_metrics(metrics or [])) for stage in ("val", "test")}
        )
        self._waiting = WaitingRows()
        self._starts_alike: bool | None = None

    def build(  # type: ignore[override]
        self,
        auto_class: type[_BaseAutoModelClass],
        model: str | dict[str, Any],
        pretrained: bool,
        tokenizer: PreTrainedTokenizerBase | None,
        settings: Mapping[str, Any],
    ) -> tuple[PreTrainedModel, set[str]]:
        """Build the network, or join one of two, and tell it how it writes."""
        if is_two_networks(model):
            network, loaded = build_encoder_decoder(model, pretrained, tokenizer, settings)
        else:
            if isinstance(model, dict) and tokenizer is not None:
                end = {"eos_token_id": require_end(tokenizer)}
                model = {**decoder_start(tokenizer), **end, **model}
            network, loaded = build_network(auto_class, model, pretrained, tokenizer, settings)
        settle(network)
        chosen = {"num_beams": self.hparams["beams"], **(self.hparams["generation"] or {})}
        chosen["max_new_tokens"] = self.hparams["max_new_tokens"]
        set_generation(network, {k: value for k, value in chosen.items() if value is not None})
        return network, loaded

    def setup(self, stage: str) -> None:
        """Check that sources and targets fit the network."""
        super().setup(stage)
        datamodule = getattr(self.trainer, "datamodule", None)
        longest = getattr(datamodule, "max_length", None)
        check_fit(cast(Any, self.network).get_encoder(), self.tokenizer, longest)
        places = usable_positions(cast(Any, self.network).get_decoder())
        written = getattr(datamodule, "max_target_length", None)
        if places is not None and written is not None and written > places:
            raise ValueError(
                f"max_target_length is {written}, but the decoder has {places} positions; set "
                f"max_target_length to at most {places}, or give a model from scratch more "
                "max_position_embeddings"
            )
        self._waiting, self._starts_alike = WaitingRows(), None

    def prepare(self, batch: Batch) -> Batch:
        """Leave out the first token of the targets, where the decoder starts from it anyway."""
        # A batch of fillers has one column, and no target.
        if self.tokenizer is None or "labels" not in batch or batch["labels"].shape[1] < 2:
            return batch
        if self._starts_alike is None:
            own = {"decoder_start_token_id": self.network.config.decoder_start_token_id}
            self._starts_alike = decoder_start(self.tokenizer) == own
        return {**batch, "labels": batch["labels"][:, 1:]} if self._starts_alike else batch

    def step(self, batch: Batch) -> StepOutput:
        """Compute the loss of the targets; smoothed in training only.

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
        smoothing = self.hparams["label_smoothing"] if self.training else 0.0
        loss, count = token_cross_entropy(logits, targets, smoothing)
        return StepOutput(loss, count, logits)

    def scores(self, output: StepOutput, batch: Batch) -> Scores:
        """Return one item for each token of the targets."""
        assert output.logits is not None
        written = batch["labels"] != IGNORE_INDEX
        return class_scores(output.logits, *labelled(batch), batch, written)

    def build_metrics(self) -> dict[str, Metric]:
        """Make loss, perplexity and accuracy over the tokens of the targets."""
        return language_metrics()

    def update_metrics(
        self, metrics: Mapping[str, Metric], output: StepOutput, batch: Batch
    ) -> None:
        """Give the metrics the result of one batch."""
        update_language_metrics(metrics, output, labelled(batch)[1])

    def continue_evaluation(self, output: StepOutput, batch: Batch, stage: str) -> None:
        """Keep the rows that are to be written, and write when enough of them wait."""
        if not self.hparams["metrics"]:
            return
        numbers, last = batch["index"].tolist(), self.hparams["generate_examples"]
        rows = [r for r, n in enumerate(numbers) if n >= 0 and (stage == "test" or n < last)]
        self._waiting.add(batch, rows, self._targets(batch, rows, stage))
        if len(self._waiting) >= len(numbers):
            self._write_waiting(stage)

    def finish_evaluation(self, stage: str) -> None:
        """Write what still waits, and log how near all texts are to their targets."""
        if not self.hparams["metrics"]:
            return
        # Every rank has to update a metric before it is computed, also one without a text.
        self._write_waiting(stage)
        for name, metric in self._text_metrics(stage).items():
            self.log(f"{stage}/{name}", metric, batch_size=1)

    def forward(self, text: str | list[str]) -> dict[str, Any] | list[dict[str, Any]]:
        """Write the target of a source, or of each of several.

        Args:
            text: without the prefix, which is in the network's config.

        Returns:
            `{"generated": ...}`, or a list of such.
        """
        texts = [text] if isinstance(text, str) else list(text)
        batch = source_batch(self.network, require_tokenizer(self), texts)
        written = self._write(batch)
        rows = [{"generated": each} for each in written]
        return rows[0] if isinstance(text, str) else rows

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """Write the target of each row.

        Returns:
            For each row what was `generated`.
        """
        return [{"generated": text} for text in self._write(batch)]

    @torch.no_grad()
    def sample(self, batch: Batch, rows: int) -> list[dict[str, Any]]:
        """Write the targets of the first rows of a batch with labels.

        Returns:
            For each row its `source`, its `target`, and what was `generated`.
        """
        head = {name: tensor[:rows] for name, tensor in batch.items()}
        shown = []
        for row, written in enumerate(self._write(head)):
            labels = head["labels"][row]
            target = self._text(labels[labels != IGNORE_INDEX].tolist())
            if target:
                source = self._text(head["input_ids"][row].tolist())
                shown.append({"source": source, "target": target, "generated": written})
        return shown

    def _write(self, batch: Batch) -> list[str]:
        end = require_end(require_tokenizer(self))
        return [self._text(ids) for ids in generate(self.network, batch, end=end)]

    def _write_waiting(self, stage: str) -> None:
        batch, targets = self._waiting.take(require_pad_token(require_tokenizer(self)))
        written = self._write(batch) if targets else []
        for metric in self._text_metrics(stage).values():
            metric.update(written, targets)

    def _text_metrics(self, stage: str) -> Mapping[str, Metric]:
        return cast(Mapping[str, Metric], self.text_metrics[stage])

    def _targets(self, batch: Batch, rows: list[int], split: str) -> list[str]:
        """Return the targets as they stand in the data, else what their tokens say."""
        find = getattr(getattr(self.trainer, "datamodule", None), "target", None)
        if find is not None:
            return [find(split, int(batch["index"][row])) for row in rows]
        labels = [batch["labels"][row] for row in rows]
        return [self._text(row[row != IGNORE_INDEX].tolist()) for row in labels]

    def _text(self, ids: list[int]) -> str:
        return str(require_tokenizer(self).decode(ids, skip_special_tokens=True)).strip()
