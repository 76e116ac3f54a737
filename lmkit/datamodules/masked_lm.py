"""Data for the masked language model."""

from __future__ import annotations

from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_warn
from transformers import PreTrainedTokenizerBase

from ..functional.masking import check_shares
from ..tokenization import require_mask_token, require_pad_token, special_affixes, text_encoder
from .base import LMDataModule
from .collators import ChunkRows, MaskingCollator
from .loader import Collate
from .source import FileSource
from .source_resolution import Files
from .text_rows import Document, OnBadRow

__all__ = ["MaskedLMDataModule"]

# Evaluation masks the same tokens in every run, so that runs of different seeds can be compared.
_EVALUATION_SEED = 0


class MaskedLMDataModule(LMDataModule):
    """Text as rows of `max_length` tokens with masks, BERT's objective (arXiv:1810.04805).

    Documents are laid end to end, each closed by a separator, and cut into rows, as RoBERTa's
    FULL-SENTENCES (arXiv:1907.11692); each row gets the tokenizer's own affixes, `[CLS] ... [SEP]`.
    Masks are drawn anew each epoch, as a pure function of (seed, epoch, row); in evaluation they
    are the same in every epoch and every run.

    With neither `source` nor files it takes the embedded corpus (`lmkit.datamodules.embedded`): a
    default to start on, not a benchmark.

    Args:
        source: hub name (`owner/name`, `name/config`, `owner/name/config`), a file, glob or folder
            or a list of them, or in scripts a `datasets.Dataset` or `DatasetDict`.
        train_file: files or globs to train on, in place of `source`.
        val_file: files to validate on; without one a part of the training text is held out.
        test_file: files to test on; without one the validation text is taken.
        predict_file: texts to fill masks in, one per line, each with the mask token.
        text_column: column or key of the text; guessed when obvious.
        document: what a document of a txt file is: `line`, `paragraph` or `file`.
        encoding: of the characters of the files.
        on_bad_row: `error`, or `skip` to count bad rows and go on.
        val_fraction: share of the documents held out, by a hash of each, in `[0, 1)`.
        tokenizer: hub name or folder; by default the model's own, or else one trained on the text.
        tokenizer_kind: of a trained one: `wordpiece` or `bpe` (byte-level).
        vocab_size: of a trained one, special tokens included.
        max_length: tokens in a row, special tokens included; at least 8.
        batch_size: rows per batch and device.
        eval_batch_size: the same in evaluation; by default `batch_size`.
        num_workers: processes that make batches ahead.
        seed: of order and masks; by default that of `seed_everything`.
        cache_dir: where token ids are kept; by default `$LMKIT_CACHE`, else `~/.cache/lmkit`.
        mask_rate: share of the tokens that are chosen, in `[0, 1]`.
        eval_mask_rate: the same in evaluation, whatever the training rate is.
        mask_share: share of the chosen that become the mask token.
        random_share: share of the chosen that become a random token.
        random_from: `non_special`, or `vocab` to draw the random token from all ids as BERT does.

    Raises:
        ValueError: a setting lies outside its range; in `prepare_data` and `setup`: bad input
            (file, line and remedy are named) or a tokenizer without a mask token.
    """

    separator_roles = ("sep_token", "eos_token")
    trains_affixes = True
    pads_left = False

    def __init__(
        self,
        source: Any = None,
        train_file: Files | None = None,
        val_file: Files | None = None,
        test_file: Files | None = None,
        predict_file: Files | None = None,
        text_column: str | None = None,
        document: Document = "line",
        encoding: str = "utf-8",
        on_bad_row: OnBadRow = "error",
        val_fraction: float = 0.05,
        tokenizer: str | None = None,
        tokenizer_kind: Literal["wordpiece", "bpe"] = "wordpiece",
        vocab_size: int = 8192,
        max_length: int = 128,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int | None = None,
        cache_dir: str | None = None,
        mask_rate: float = 0.15,
        eval_mask_rate: float = 0.15,
        mask_share: float = 0.8,
        random_share: float = 0.1,
        random_from: Literal["non_special", "vocab"] = "non_special",
    ) -> None:
        super().__init__(
            source=source,
            train_file=train_file,
            val_file=val_file,
            test_file=test_file,
            predict_file=predict_file,
            text_column=text_column,
            document=document,
            encoding=encoding,
            on_bad_row=on_bad_row,
            val_fraction=val_fraction,
            tokenizer=tokenizer,
            tokenizer_kind=tokenizer_kind,
            vocab_size=vocab_size,
            max_length=max_length,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
            cache_dir=cache_dir,
        )
        check_shares(mask_rate, mask_share, random_share)
        check_shares(eval_mask_rate, mask_share, random_share)
        if random_from not in ("non_special", "vocab"):
            raise ValueError(f"random_from must be non_special or vocab, got {random_from!r}")
        self.mask_rate = mask_rate
        self.eval_mask_rate = eval_mask_rate
        self.mask_share = mask_share
        self.random_share = random_share
        self.random_from = random_from

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise `ValueError` for a tokenizer without a mask token."""
        require_mask_token(tokenizer)

    def settings(self) -> dict[str, Any]:
        """Return the settings of the masks."""
        return {
            "objective": "masked_lm",
            "mask_rate": self.mask_rate,
            "eval_mask_rate": self.eval_mask_rate,
            "mask_share": self.mask_share,
            "random_share": self.random_share,
            "random_from": self.random_from,
        }

    def affixes(self) -> tuple[list[int], list[int]]:
        """Return the tokenizer's own, e.g. `[CLS]` and `[SEP]`."""
        assert self.tokenizer is not None
        return special_affixes(self.tokenizer)

    def collator(self, chunks: ChunkRows, training: bool) -> Collate:
        """Return what masks rows: anew each epoch in training, always alike in evaluation."""
        assert self.tokenizer is not None
        prefix, suffix = self.affixes()
        return MaskingCollator(
            chunks,
            prefix=prefix,
            suffix=suffix,
            pad_id=require_pad_token(self.tokenizer),
            mask_id=require_mask_token(self.tokenizer),
            special_ids=self.tokenizer.all_special_ids,
            vocab_size=len(self.tokenizer),
            seed=self.seed if training else _EVALUATION_SEED,
            mask_rate=self.mask_rate if training else self.eval_mask_rate,
            mask_share=self.mask_share,
            random_share=self.random_share,
            any_random=self.random_from == "vocab",
        )

    def prompts(self, source: FileSource) -> list[list[int]]:
        """Return the ids of each text with its affixes; each has to have a mask."""
        assert self.tokenizer is not None
        mask = require_mask_token(self.tokenizer)
        prefix, suffix = self.affixes()
        encode = text_encoder(self.tokenizer)
        room = self.max_length - len(prefix) - len(suffix)
        texts, long = [], 0
        for text in source.texts(report=True):
            ids = encode([text.text])[0]
            long += len(ids) > room
            if mask not in ids[:room]:
                fault = "its mask lies beyond" if mask in ids else "no mask token within"
                raise ValueError(
                    f"{text.file}, line {text.line}: {fault} the first {room} tokens; write "
                    f"{self.tokenizer.mask_token} where a word is to be filled in"
                )
            texts.append([*prefix, *ids[:room], *suffix])
        if long:
            rank_zero_warn(f"{long} texts were cut to max_length={self.max_length} tokens")
        return texts
