"""Encoders of any origin, and what they make of examples."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..datamodules.task import TaskDataModule
from ..loading import load
from ..modules import (
    LMModule,
    MultiTaskModule,
    SequenceClassificationModule,
    TokenClassificationModule,
)
from ..modules.fresh_weights import checkpoint_follows
from ..modules.generation import evaluating
from ..modules.network import named_config
from ..modules.network_inputs import network_inputs
from ..modules.onnx_network import holds_onnx
from ..surgery.task_adapter import task_adapter_names
from ..tokenization import load_tokenizer
from ..types import Batch

__all__ = [
    "Items",
    "Pooling",
    "check_model",
    "encode_items",
    "open_encoder",
    "quick_tokenizer",
]

#: Which of the last states of an encoder stands for a text.
Pooling = Literal["first", "mean", "last"]


class Items(NamedTuple):
    """Frozen features of the items of a task, and what they are to say.

    Attributes:
        features: float `[N, D]`.
        labels: int64 `[N]` of classes and tags, float `[N]` of values and `[N, C]` of labels.
    """

    features: Tensor
    labels: Tensor


def check_model(given: Any) -> None:
    """Check that there is a model, before others are read for a long time.

    Args:
        given: a module, a checkpoint, a folder or a hub name.

    Raises:
        TypeError: it is none of these.
        FileNotFoundError: there is no such checkpoint.
        ValueError: there is no such folder or name.
    """
    if isinstance(given, LMModule):
        return
    if not isinstance(given, str | os.PathLike):
        raise TypeError(
            "a model must be a module of lmkit, or the path of a checkpoint or a folder, got a "
            f"{type(given).__name__}"
        )
    if Path(given).suffix == ".ckpt" and not Path(given).is_file():
        raise FileNotFoundError(f"there is no checkpoint at {given}")
    if holds_onnx(Path(given)):
        raise ValueError(f"{given} is ONNX, which has no encoder to begin from")
    if not Path(given).is_file() and named_config(str(given)).is_encoder_decoder:
        raise ValueError(f"{given} is an encoder-decoder, and these are not compared")


def quick_tokenizer(given: Any) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer of a model where that takes no loading of the model, else `None`."""
    if isinstance(given, LMModule):
        return given.tokenizer
    return None if Path(given).is_file() else load_tokenizer(str(given))


def open_encoder(given: Any, kind: str, device: str | None) -> LMModule:
    """Return a module with the encoder of a model and its tokenizer.

    Args:
        given: what `check_model` lets pass.
        kind: of the task, for which a network with any head is opened.
        device: where what is loaded goes; by default CUDA, if it is there.

    Raises:
        ValueError: it cannot be loaded, or has no encoder that others could begin from.
    """
    module: LMModule
    if isinstance(given, LMModule):
        module = given
        module.configure_model()
    elif Path(given).is_file():
        module = load(given)
    else:
        cls = TokenClassificationModule if kind == "tagging" else SequenceClassificationModule
        module = cls(str(given))
        with checkpoint_follows():  # the head is of no interest
            module.configure_model()
        module.tokenizer = load_tokenizer(str(given))
    network = module.network
    if isinstance(network, PreTrainedModel) and network.config.is_encoder_decoder:
        what = type(network).__name__
        raise ValueError(f"a {what} is an encoder-decoder, and these are not compared")
    if not isinstance(network, PreTrainedModel):
        raise ValueError(f"a {type(network).__name__} has no encoder to begin from")
    if isinstance(module, MultiTaskModule) and task_adapter_names(module.ledger):
        raise ValueError(
            "it has an adapter of each task inside: give the export of one of them (--task NAME)"
        )
    if not isinstance(given, LMModule):
        network.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))  # type: ignore[arg-type]
    return module


def _batches(data: TaskDataModule, places: Tensor, size: int) -> Iterator[Batch]:
    collate = data.collator(TaskDataModule.table(data, "train"), training=False)
    for some in places.split(size):
        yield collate(0, some)


@torch.no_grad()
def encode_items(
    module: LMModule,
    data: TaskDataModule,
    places: Tensor,
    kind: str,
    pooling: Pooling | None,
    batch_size: int,
    name: str,
) -> Items:
    """Encode examples by a frozen encoder.

    Args:
        module: of `open_encoder`.
        data: of `rows_of`.
        places: numbers of the examples, int64.
        kind: of the task.
        pooling: of texts; by default what the head for sequences of the architecture takes.
        batch_size: of examples.
        name: to stand before the bar.

    Returns:
        Of texts one item each; of tagged words one for each that has a token.
    """
    network, found = module.network, list[tuple[Tensor, Tensor]]()
    how = pooling or _own_pooling(network)
    total = -(-len(places) // batch_size)
    with evaluating(network):
        batches = _batches(data, places, batch_size)
        for batch in tqdm(batches, name, total, leave=False, unit="batch", disable=None):
            shape = batch["input_ids"].shape
            # Windows of long sentences are rows like others.
            flat = {
                key: batch[key].flatten(0, -2).to(network.device)
                for key in ("input_ids", "attention_mask", "token_type_ids")
                if key in batch
            }
            states = network.base_model(**network_inputs(network, flat))[0].float().cpu()
            if kind == "tagging":
                pieces, labels = batch["word_positions"], batch["word_labels"]
                known = (pieces >= 0) & (labels >= 0)
                row, _ = known.nonzero(as_tuple=True)
                laid = states.reshape(shape[0], -1, states.shape[-1])
                found.append((laid[row, pieces[known]], labels[known]))
            else:
                found.append((_pooled(states, batch["attention_mask"], how), batch["labels"]))
    features, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Items(features, labels)


def _own_pooling(network: PreTrainedModel) -> Pooling:
    """Return what the head for sequences of an architecture takes."""
    kind = type(network.config)
    if kind in cast(Any, AutoModelForMaskedLM)._model_mapping:
        # EuroBERT's "late" is the mean behind a layer of the head.
        is_mean = getattr(network.config, "classifier_pooling", None) in ("mean", "late")
        return "mean" if is_mean else "first"
    return "last" if kind in cast(Any, AutoModelForCausalLM)._model_mapping else "first"


def _pooled(states: Tensor, mask: Tensor, how: Pooling) -> Tensor:
    """Return one vector for each text, `[B, H]`, of states `[B, L, H]` padded on the right."""
    if how == "first":
        return states[:, 0]
    lengths = mask.sum(1)
    if how == "last":
        return states[torch.arange(len(states)), lengths - 1]
    return (states * mask.unsqueeze(-1)).sum(1) / lengths.unsqueeze(1)
