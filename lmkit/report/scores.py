"""What models say of the same examples, item by item, and how far they agree."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional

from ..modules import LMModule, MultipleChoiceModule, QuestionAnsweringModule
from ..modules.checks import require_tokenizer
from ..modules.distillation_metrics import agreement_of, distance_of
from ..modules.scores import Scores
from ..types import Batch

__all__ = ["Comparison", "Said", "compare", "say_of_rows", "say_of_texts"]

# Numbers of logits that are kept at most, half a gigabyte: of a language model those of some items.
_MOST = 2**27
_TEXTS_AT_ONCE, _LONGEST = 16, 128


class Said(NamedTuple):
    """What a model says of the items of some examples.

    Attributes:
        kind: as of `Scores`.
        logits: float `[N, ..., C]`.
        examples: int64 `[N]`, the example of each item, in ascending order.
        ragged: whether the last dimension was filled with minus infinity.
    """

    kind: str
    logits: Tensor
    examples: Tensor
    ragged: bool


class Comparison(NamedTuple):
    """How far two models agree.

    Attributes:
        agreement: share of the items that both decide alike; `None` for values.
        divergence: mean KL divergence from the dense one, or squared difference of values.
        items: how many there are.
    """

    agreement: float | None
    divergence: float
    items: int


@torch.inference_mode()
def say_of_rows(module: LMModule, data: Any, split: str, wanted: Tensor | None = None) -> Said:
    """Ask a model for its scores of the rows of a split.

    Args:
        module: in evaluation mode.
        data: with its tokens, of `rows_for`.
        split: `"test"` or `"val"`.
        wanted: int64, the numbers of the examples; by default all, or as many as fit into memory.

    Raises:
        NotImplementedError: the task has no scores that two networks could share.
    """
    task = module.task_module
    loader = data.test_dataloader() if split == "test" else data.val_dataloader()
    parts, size = list[Said](), 0
    for batch in loader:
        prepared: Batch = task.prepare(batch)
        scores = task.scores(task.step(prepared), prepared)
        part = _items(scores, prepared)
        if wanted is not None:
            mine = torch.isin(part.examples, wanted)
            part = part._replace(logits=part.logits[mine], examples=part.examples[mine])
        parts.append(part)
        size += part.logits.numel()
        if wanted is None and size > _MOST:
            break
    return _join(parts)


def _items(scores: Scores, batch: Batch) -> Said:
    """Take the items that count out of the scores of a batch."""
    rows = len(scores.tokens)
    index = batch["index"] if "index" in batch else torch.arange(rows)
    # Of choices there are several rows for an example.
    examples = index[scores.rows // max(1, rows // len(index))]
    valid = scores.valid & (examples >= 0)
    return Said(scores.kind, scores.logits[valid].float(), examples[valid], scores.ragged)


def _join(parts: Sequence[Said]) -> Said:
    widths = {part.logits.shape[-1] for part in parts}
    ragged = len(widths) > 1 or any(part.ragged for part in parts)
    filled = [
        functional.pad(p.logits, (0, max(widths) - p.logits.shape[-1]), value=-torch.inf)
        for p in parts
    ]
    examples = torch.cat([part.examples for part in parts])
    order = examples.argsort(stable=True)
    return Said(parts[0].kind, torch.cat(filled)[order], examples[order], ragged)


@torch.inference_mode()
def say_of_texts(module: LMModule, texts: Sequence[str]) -> Said:
    """Ask a model for its scores of plain texts: of each text, or of each token of it.

    Args:
        module: in evaluation mode.
        texts: cut to 128 tokens.

    Raises:
        ValueError: the task needs more than a text.
    """
    network, tokenizer = module.network, copy.deepcopy(require_tokenizer(module))
    several = isinstance(module.task_module, QuestionAnsweringModule | MultipleChoiceModule)
    if several or network.config.is_encoder_decoder:
        raise ValueError("its task has more to a row than one text: give a data module")
    kind = {"regression": "value", "multi_label_classification": "labels"}.get(
        str(network.config.problem_type), "classes"
    )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    parts = []
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        some = list(texts[start : start + _TEXTS_AT_ONCE])
        batch = tokenizer(
            some,
            padding=True,
            truncation=True,
            max_length=_LONGEST,
            padding_side="right",
            return_tensors="pt",
        )
        mask = batch["attention_mask"]
        logits = network(input_ids=batch["input_ids"], attention_mask=mask).logits.float()
        number = torch.arange(start, start + len(some))
        if logits.ndim == 3:
            real = mask.bool()
            number, logits = number.unsqueeze(1).expand_as(mask)[real], logits[real]
        parts.append(Said(kind, logits, number, False))
        if sum(part.logits.numel() for part in parts) > _MOST:
            break
    return _join(parts)


def compare(dense: Said, other: Said) -> Comparison:
    r"""Compare what two models say of the same items.

    The divergence of an item is $\mathrm{KL}(q \| p)$ with $q$ of the dense model and $p$ of the
    other; of several labels its mean over them; of values the squared difference.

    Args:
        dense: what the dense model says.
        other: what the other one says.

    Raises:
        ValueError: they are not of the same items, or of other classes; says which.
    """
    if dense.kind != other.kind:
        raise ValueError(f"one model says {dense.kind} and the other {other.kind}")
    if not torch.equal(dense.examples, other.examples):
        raise ValueError("it reads other tokens, and the items are other ones")
    first, then = dense.logits, other.logits
    if dense.ragged or other.ragged:
        width = max(first.shape[-1], then.shape[-1])
        first, then = (_widened(each, width) for each in (first, then))
    if first.shape != then.shape:
        raise ValueError(
            f"it has {then.shape[-1]:,} classes or tokens to choose from, and the dense one "
            f"{first.shape[-1]:,}"
        )
    items = len(first)
    valid = torch.ones(items, dtype=torch.bool)
    rows = torch.arange(items)
    scores = Scores(
        cast(Any, dense.kind), then, valid, None, rows, valid.unsqueeze(1), valid.float()
    )
    same, gaps = agreement_of(scores, first), distance_of(scores, first)
    share = None if same is None else float(same.double().mean())
    return Comparison(share, float(gaps.double().mean()), items)


def _widened(logits: Tensor, width: int) -> Tensor:
    filled: Tensor = functional.pad(logits, (0, width - logits.shape[-1]), value=-torch.inf)
    return filled
