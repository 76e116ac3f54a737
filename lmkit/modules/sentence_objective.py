"""Next-sentence and sentence-order prediction beside the masked language model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from ..functional import accuracy, token_cross_entropy
from ..types import IGNORE_INDEX, Batch, StepOutput
from .network_inputs import network_inputs
from .sparse_head import labelled, outputs_at
from .token_metrics import TokenMean, language_metrics, update_language_metrics

__all__ = [
    "check_sentence_data",
    "check_sentence_head",
    "sentence_metrics",
    "sentence_step",
    "token_logits",
    "update_sentence_metrics",
]

#: Architectures of transformers with a head for pairs of segments beside that for tokens.
ARCHITECTURES = ("albert", "bert", "big_bird", "ernie", "megatron-bert", "mobilebert")
OBJECTIVES = ("next_sentence", "sentence_order")


def check_sentence_head(network: PreTrainedModel) -> None:
    """Check that an architecture has a head for pairs of segments.

    Raises:
        ValueError: it has none; names those that have one.
    """
    arguments = inspect.signature(type(network).forward).parameters
    if not {"next_sentence_label", "sentence_order_label"} & set(arguments):
        raise ValueError(
            f"the architecture {network.config.model_type!r} has no head for pairs of sentences; "
            f"take one of {', '.join(ARCHITECTURES)}, or leave sentence_objective out"
        )


def check_sentence_data(objective: str | None, datamodule: Any) -> None:
    """Check that the data module makes the pairs that the objective is about, or none.

    Raises:
        ValueError: it does not.
    """
    theirs = getattr(datamodule, "sentence_objective", None)
    if datamodule is not None and theirs != objective:
        word = objective or theirs
        raise ValueError(
            f"the model has sentence_objective={objective!r} and the data {theirs!r}; give both "
            f"the same (--model.sentence_objective={word} --data.sentence_objective={word})"
        )


def token_logits(output: ModelOutput) -> Tensor:
    """Return the logits over the vocabulary, `[B, L, V]`, also where there are others beside."""
    logits: Tensor = output["prediction_logits" if "prediction_logits" in output else "logits"]
    return logits


def sentence_step(network: PreTrainedModel, batch: Batch) -> StepOutput:
    r"""Compute the losses of tokens and of pairs.

    $\mathcal{L} = \mathcal{L}_\mathrm{MLM} + \mathcal{L}_\mathrm{pair}$, the first a mean over the
    masked tokens, the second over the pairs (BERT, arXiv:1810.04805; ALBERT, arXiv:1909.11942).

    Args:
        network: with both heads.
        batch: as of the masked language model, with `next_sentence_label` int64 `[B]`, -100 for a
            filler.

    Returns:
        The sum, the number of masked tokens, and their logits. The logs hold `masked_loss`,
        `sentence_loss` and `sentence_accuracy`.

    Raises:
        ValueError: the batch has no labels of pairs.
    """
    if "next_sentence_label" not in batch:
        raise ValueError(
            "the batch has no next_sentence_label; set sentence_objective of the data module as "
            "that of the model"
        )
    positions, targets = labelled(batch)
    output = outputs_at(network, positions, **network_inputs(network, batch))
    logits = token_logits(output)[0]
    name = "sop_logits" if "sop_logits" in output else "seq_relationship_logits"
    masked, count = token_cross_entropy(logits, targets)
    labels = batch["next_sentence_label"]
    paired, _ = token_cross_entropy(output[name], labels)
    logs = {
        "masked_loss": masked,
        "sentence_loss": paired,
        "sentence_accuracy": accuracy(output[name], labels),
    }
    return StepOutput(masked + paired, count, logits, logs)


def sentence_metrics() -> dict[str, Metric]:
    """Make the metrics of tokens and of pairs, each over its own count."""
    names = ("masked_loss", "sentence_loss", "sentence_accuracy")
    return {**language_metrics(), "loss": SumOfMeans(), **{name: TokenMean() for name in names}}


def update_sentence_metrics(
    metrics: Mapping[str, Metric], output: StepOutput, batch: Batch
) -> None:
    """Give the metrics of `sentence_metrics` one batch.

    Args:
        metrics: what `sentence_metrics` made.
        output: of `sentence_step`, or of it in wrappers.
        batch: the batch.
    """
    masked, paired = output.logs["masked_loss"], output.logs["sentence_loss"]
    pairs = (batch["next_sentence_label"] != IGNORE_INDEX).sum()
    tokens = {**metrics, "loss": metrics["masked_loss"]}
    update_language_metrics(tokens, output._replace(loss=masked), labelled(batch)[1])
    metrics["sentence_loss"].update(paired, pairs)
    metrics["sentence_accuracy"].update(output.logs["sentence_accuracy"], pairs)
    metrics["loss"].update(
        torch.stack([masked, paired]), torch.stack([output.items, pairs.to(output.items)])
    )


class SumOfMeans(TokenMean):
    r"""$\sum_j \sum_b n_{bj} v_{bj} / \sum_b n_{bj}$: several means, each over its own count.

    Example:
        >>> metric = SumOfMeans()
        >>> metric.update(torch.tensor([1.0, 5.0]), torch.tensor([3, 1]))
        >>> metric.update(torch.tensor([2.0, 7.0]), torch.tensor([1, 1]))
        >>> metric.compute().item()
        7.25
    """

    def compute(self) -> Tensor:
        """Return the sum over all batches and ranks so far, a scalar."""
        return super().compute().sum()
