"""What a network says of example inputs, and how far what was written says the same."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from .functional.agreement import Agreement, agreement
from .modules import (
    LMModule,
    MultipleChoiceModule,
    QuestionAnsweringModule,
    SequenceClassificationModule,
)
from .modules.checks import require_tokenizer
from .modules.network import usable_positions
from .modules.network_inputs import knows_types
from .modules.sentence_objective import token_logits

__all__ = ["Outputs", "compare", "example_inputs", "scores_of"]


def example_inputs(
    module: LMModule,
    network: PreTrainedModel,
    rows: int,
    length: int,
    texts: Sequence[str] | None = None,
) -> dict[str, Tensor]:
    """Make inputs as a network takes them.

    Args:
        module: says which inputs its task has.
        network: says which words there are.
        rows: how many, of random words; some are shorter than others.
        length: of a row.
        texts: to be read in their place.

    Raises:
        ValueError: there are texts, and the task is not about single ones, or the module has no
            tokenizer.
    """
    if texts is not None:
        return _read(module, network, list(texts))
    choice = isinstance(module.task_module, MultipleChoiceModule)
    shape = (rows, 3, length) if choice else (rows, length)
    ids = torch.randint(network.config.vocab_size, shape)
    mask = torch.ones_like(ids)
    mask[0, ..., length - 4 :] = 0
    example = {"input_ids": ids, "attention_mask": mask}
    if _has_types(module, network):
        types = torch.zeros_like(ids)
        types[..., length // 2 :] = 1
        example["token_type_ids"] = types * mask
    return example


class Outputs(nn.Module):
    """Ids, mask and perhaps types in, logits out: no dictionary and no cache, unknown to ONNX.

    Args:
        network: with a head.
    """

    def __init__(self, network: PreTrainedModel) -> None:
        super().__init__()
        self.network = network

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        """Return the logits, or those of start and end."""
        known = inspect.signature(self.network.forward).parameters
        extra: dict[str, Any] = {"use_cache": False} if "use_cache" in known else {}
        if token_type_ids is not None:
            extra["token_type_ids"] = token_type_ids
        if decoder_input_ids is not None:
            extra["decoder_input_ids"] = decoder_input_ids
        output = cast(
            ModelOutput, self.network(input_ids=input_ids, attention_mask=attention_mask, **extra)
        )
        if "start_logits" in output:
            return output["start_logits"], output["end_logits"]
        return token_logits(output)

    def names(self, example: dict[str, Tensor]) -> list[str]:
        """Return the names of what `forward` returns."""
        with torch.no_grad():
            made = self(**example)
        return ["start_logits", "end_logits"] if isinstance(made, tuple) else ["logits"]


def scores_of(network: PreTrainedModel, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """Return what a network says of inputs: its logits, or those of start and end."""
    decoder = (
        {"decoder_input_ids": inputs["input_ids"]} if network.config.is_encoder_decoder else {}
    )
    with torch.no_grad():
        made = Outputs(network).train(False)(**inputs, **decoder)
    return made if isinstance(made, tuple) else (made,)


def compare(said: Sequence[Tensor], says: Sequence[Tensor], inputs: dict[str, Tensor]) -> Agreement:
    """Compare what two networks say of the same inputs, but for the padding.

    Args:
        said: of `scores_of`, of the one network.
        says: of the other one.
        inputs: with an `attention_mask`.
    """
    real = inputs["attention_mask"].bool()
    sides: tuple[list[Tensor], list[Tensor]] = ([], [])
    for pair in zip(said, says, strict=True):
        for side, scores in zip(sides, pair, strict=True):
            if scores.shape == real.shape:  # of each text the position where an answer begins
                scores = scores.masked_fill(~real, -torch.inf)
            elif scores.shape[: real.dim()] == real.shape:
                scores = scores[real]
            side.append(scores.flatten(0, -2).float())
    return agreement(torch.cat(sides[0]), torch.cat(sides[1]))


def _has_types(module: LMModule, network: PreTrainedModel) -> bool:
    of_pairs = (SequenceClassificationModule, QuestionAnsweringModule, MultipleChoiceModule)
    return isinstance(module, of_pairs) and knows_types(network)


def _read(module: LMModule, network: PreTrainedModel, texts: list[str]) -> dict[str, Tensor]:
    if not texts or isinstance(module.task_module, QuestionAnsweringModule | MultipleChoiceModule):
        raise ValueError(
            "texts must be a list of texts for a task that reads single ones, got "
            f"{len(texts)} of them for {type(module.task_module).__name__}: leave it out, and "
            "random words are taken"
        )
    tokenizer = require_tokenizer(module)
    longest = min(usable_positions(network) or 512, tokenizer.model_max_length, 512)
    encoded = tokenizer(
        texts,
        truncation=True,
        max_length=longest,
        padding=True,
        padding_side="right",
        return_tensors="pt",
    )
    example = {name: encoded[name] for name in ("input_ids", "attention_mask")}
    if _has_types(module, network):
        example["token_type_ids"] = torch.zeros_like(example["input_ids"])
    return example
