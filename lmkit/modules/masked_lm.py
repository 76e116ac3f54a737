"""Masked language modelling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torchmetrics import Metric
from transformers import AutoModelForMaskedLM, AutoModelForPreTraining
from transformers.models.auto.auto_factory import _BaseAutoModelClass

from ..functional import token_cross_entropy
from ..tokenization import require_mask_token
from ..types import IGNORE_INDEX, Batch, StepOutput
from .base import LMModule
from .checks import require_tokenizer
from .network_inputs import network_inputs
from .scores import Scores, class_scores
from .sentence_objective import (
    OBJECTIVES,
    check_sentence_data,
    check_sentence_head,
    sentence_metrics,
    sentence_step,
    token_logits,
    update_sentence_metrics,
)
from .sparse_head import labelled, logits_at
from .token_metrics import language_metrics, update_language_metrics

__all__ = ["MaskedLMModule"]


class MaskedLMModule(LMModule):
    r"""Predict the tokens that were masked (BERT, arXiv:1810.04805).

    $\mathcal{L} = -\frac{1}{|M|} \sum_{i \in M} \log p_\theta(x_i \mid \tilde x)$, where $M$ are
    the chosen positions and $\tilde x$ is the corrupted text. Which those are is the data
    module's; see `lmkit.datamodules.MaskedLMDataModule`.

    Logs `train/loss`, and of the validation `val/loss`, `val/perplexity` (the pseudo-perplexity at
    the masked positions) and `val/accuracy`, each weighted by tokens.

    With a `sentence_objective` the network also tells, from a pair of segments, whether the second
    is the text that follows the first (BERT) or whether the two are in order (ALBERT,
    arXiv:1909.11942), and `loss` is the sum of the two means, over tokens and over pairs. It logs
    both as `masked_loss` and `sentence_loss`, and `sentence_accuracy`. The gradient of an
    accumulation window weights the pairs of a batch by its masked tokens. The export has both
    heads, as `BertForPreTraining`.

    Args:
        model: hub name, folder, or config with a `model_type`: any architecture with a masked
            language-model head (BERT, RoBERTa, DistilBERT, an ELECTRA generator, ModernBERT ...).
        pretrained: whether a name or folder brings its weights. Those it lacks, such as the head
            of an encoder, are drawn at random.
        learning_rate: the peak of the schedule.
        weight_decay: of weight matrices; biases and normalizations have none.
        warmup: optimizer steps (int) or share of the run (float below 1).
        schedule: `"linear"`, `"cosine"` or `"constant"` after the warm-up.
        optimizer: `{"class_path": ..., "init_args": {...}}` in place of AdamW.
        dropout: of every layer in training, in `[0, 1)`; `None` leaves what the config says. 0 is
            the rule of pre-training (arXiv:2212.14034), where a text is seen a few times at most,
            and on a CPU a fifth to a third faster.
        compile: whether the layers are compiled; `None` decides by device and length of the run.
        fill_count: how many fillings `predict` returns for each mask.
        sentence_objective: `"next_sentence"`, `"sentence_order"` or `None`; the data module has
            to be given the same. For ALBERT, BERT, BigBird, ERNIE, Megatron-BERT and MobileBERT.

    Raises:
        ValueError: the objective is unknown; in `configure_model`: the architecture has no head for
            it; in `setup`: the data are made for another.

    Example:
        >>> module = MaskedLMModule({"model_type": "bert", "vocab_size": 99, "hidden_size": 8,
        ...     "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8})
        >>> module.configure_model()
        >>> ids = torch.tensor([[2, 7, 4, 3]])
        >>> batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids),
        ...     "labels": torch.tensor([[-100, -100, 9, -100]])}
        >>> module.step(batch).items.item()
        1
    """

    auto_class: ClassVar[type[_BaseAutoModelClass]] = AutoModelForMaskedLM

    def __init__(
        self,
        model: str | dict[str, Any],
        pretrained: bool = True,
        learning_rate: float = 5e-4,
        weight_decay: float = 0.01,
        warmup: int | float = 0.06,
        schedule: str = "linear",
        optimizer: dict[str, Any] | None = None,
        dropout: float | None = 0.0,
        compile: bool | None = None,
        fill_count: int = 5,
        sentence_objective: Literal["next_sentence", "sentence_order"] | None = None,
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
        if sentence_objective is not None:
            if sentence_objective not in OBJECTIVES:
                raise ValueError(
                    f"sentence_objective must be one of {', '.join(OBJECTIVES)} or None, got "
                    f"{sentence_objective!r}"
                )
            self.auto_class = AutoModelForPreTraining  # type: ignore[misc]

    def configure_model(self) -> None:
        """Build the network, with a head for pairs where there is a sentence objective."""
        super().configure_model()
        if self.hparams["sentence_objective"]:
            check_sentence_head(self.network)

    def setup(self, stage: str) -> None:
        """Check that the data fit the network and the objective."""
        if stage != "predict":
            datamodule = getattr(self.trainer, "datamodule", None)
            check_sentence_data(self.hparams["sentence_objective"], datamodule)
        super().setup(stage)

    def step(self, batch: Batch) -> StepOutput:
        """Compute the loss at the labelled positions.

        Args:
            batch: `input_ids`, `attention_mask` and `labels`, each int64 `[B, L]`; perhaps
                `label_positions`, and `segment_ids` and `position_ids` of packed rows; for a
                sentence objective `token_type_ids` `[B, L]` and `next_sentence_label` `[B]`.

        Returns:
            Loss, number of labelled tokens, and the logits `[K, V]` of `labelled`'s positions.
        """
        if self.hparams["sentence_objective"]:
            return sentence_step(self.network, batch)
        positions, targets = labelled(batch)
        logits = logits_at(self.network, positions, **network_inputs(self.network, batch))
        loss, count = token_cross_entropy(logits, targets)
        return StepOutput(loss, count, logits)

    def scores(self, output: StepOutput, batch: Batch) -> Scores:
        """Return one item for each masked token."""
        assert output.logits is not None
        return class_scores(output.logits, *labelled(batch), batch)

    def build_metrics(self) -> dict[str, Metric]:
        """Make loss, perplexity and accuracy, and those of pairs."""
        return sentence_metrics() if self.hparams["sentence_objective"] else language_metrics()

    def update_metrics(
        self, metrics: Mapping[str, Metric], output: StepOutput, batch: Batch
    ) -> None:
        """Give the metrics the result of one batch."""
        if self.hparams["sentence_objective"]:
            update_sentence_metrics(metrics, output, batch)
            return
        update_language_metrics(metrics, output, labelled(batch)[1])

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """Fill the mask tokens of each text.

        Returns:
            For each row its `text` and `fills`: a list per mask token, in order, of `token` and
            `probability`, most probable first.
        """
        tokenizer = require_tokenizer(self)
        mask_id = require_mask_token(tokenizer)
        probabilities, tokens = self._fill(batch, self.hparams["fill_count"])
        rows = []
        for row, ids in enumerate(batch["input_ids"]):
            if "index" in batch and batch["index"][row] < 0:
                continue  # a filler, so that each rank has as many rows
            real = ids[batch["attention_mask"][row].bool()]
            fills = [
                [
                    {"token": str(tokenizer.decode(int(t))).strip(), "probability": float(p)}
                    for p, t in zip(probabilities[row, i], tokens[row, i], strict=True)
                ]
                for i in (ids == mask_id).nonzero().flatten().tolist()
            ]
            rows.append({"text": self._text(real), "fills": fills})
        return rows

    @torch.no_grad()
    def sample(self, batch: Batch, rows: int) -> list[dict[str, Any]]:
        """Show what the network makes of the first rows of a batch with labels.

        Returns:
            For each row the `masked` text, the text with the `filled` masks, and the `original`.
        """
        head = {name: tensor[:rows] for name, tensor in batch.items()}
        _, tokens = self._fill(head, 1)
        shown = []
        for row, ids in enumerate(head["input_ids"]):
            real = head["attention_mask"][row].bool()
            chosen = head["labels"][row] != IGNORE_INDEX
            filled = torch.where(chosen, tokens[row, :, 0], ids)
            original = torch.where(chosen, head["labels"][row], ids)
            shown.append(
                {
                    "masked": self._text(ids[real]),
                    "filled": self._text(filled[real]),
                    "original": self._text(original[real]),
                }
            )
        return shown

    def _fill(self, batch: Batch, count: int) -> tuple[Tensor, Tensor]:
        mode = self.network.training
        self.network.train(False)
        logits = token_logits(self.network(**network_inputs(self.network, batch)))
        self.network.train(mode)
        probabilities, tokens = logits.float().softmax(-1).topk(count)
        return probabilities, tokens

    def _text(self, ids: Tensor) -> str:
        tokenizer = require_tokenizer(self)
        text = str(tokenizer.decode(ids.tolist()))
        for token in (tokenizer.cls_token, tokenizer.sep_token):
            text = text.replace(token or "\0", " ")
        return " ".join(text.split())
