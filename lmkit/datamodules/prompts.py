"""Whole texts, to predict on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from ..tokenization import require_pad_token
from ..types import Batch
from .batch_plan import BatchPlan
from .loader import PlannedLoader
from .source import FileSource, expand_files
from .tokenizer_choice import take_tokenizer
from .trainer_facts import ranks

if TYPE_CHECKING:
    from .base import LMDataModule

__all__ = ["PromptCollator", "prompt_loader", "takes_prompts_only"]

_NO_FILE = "pass predict_file (--data.predict_file=FILE), a text file with one text per line"


class PromptCollator:
    """Batches of whole texts, for prediction, padded to the longest of the batch.

    Args:
        texts: the ids of each, special tokens included.
        pad_id: id of the padding.
        left: pad on the left, where a text is to be continued.
    """

    def __init__(self, texts: Sequence[Sequence[int]], *, pad_id: int, left: bool) -> None:
        self.texts, self.pad_id, self.left = texts, pad_id, left

    def __call__(self, epoch: int, rows: Tensor) -> Batch:
        """Return `input_ids` and `attention_mask` int64 `[B, L]`, and `index` `[B]`."""
        chosen = [self.texts[row] if row >= 0 else [self.pad_id] for row in rows.tolist()]
        width = max(len(text) for text in chosen)
        ids = torch.full((len(chosen), width), self.pad_id)
        attention = torch.zeros_like(ids)
        for place, text in enumerate(chosen):
            where = slice(width - len(text), width) if self.left else slice(0, len(text))
            ids[place, where] = torch.tensor(list(text))
            attention[place, where] = 1
        return {"input_ids": ids, "attention_mask": attention, "index": rows}


def takes_prompts_only(data: LMDataModule) -> bool:
    """Whether a data module is asked for nothing but the texts to predict on.

    Then it needs no training text, if there is a tokenizer without one, which it gets here.

    Raises:
        ValueError: there is no `predict_file`, which is better said before anything is read.
    """
    trainer = data.trainer
    state = getattr(trainer, "state", None)
    if trainer is None or state is None or state.fn != TrainerFn.PREDICTING:
        return False
    if not data.predict_file:
        raise ValueError(_NO_FILE)
    module: Any = trainer.lightning_module
    named = isinstance(module.hparams.get("model"), str) or data.tokenizer_name
    if not named and getattr(module, "tokenizer", None) is None:
        return False
    if data.tokenizer is None:
        take_tokenizer(data, None, None, None)
    return True


def prompt_loader(data: LMDataModule) -> PlannedLoader:
    """Return the texts of a data module's `predict_file`, in order.

    Raises:
        ValueError: there is no such file, or no text in it.
    """
    if not data.predict_file:
        raise ValueError(_NO_FILE)
    data.setup()
    assert data.tokenizer is not None
    files = expand_files(data.predict_file, "predict_file")
    texts = data.prompts(FileSource(files, data.text_options))
    if not texts:
        raise ValueError(f"predict_file: there is no text in {files[0]}, only blank lines")
    collate = PromptCollator(texts, pad_id=require_pad_token(data.tokenizer), left=data.pads_left)
    batch_size = data.eval_batch_size or data.batch_size
    plan = BatchPlan(len(texts), batch_size, *ranks(data.trainer))
    return PlannedLoader(plan, collate, data.num_workers)
