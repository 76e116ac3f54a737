"""Data for replaced-token detection."""

from __future__ import annotations

from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_warn
from transformers import PreTrainedTokenizerBase

from ..functional.masking import check_shares
from ..tokenization import require_mask_token, special_affixes, text_encoder
from .base import LMDataModule
from .collators import MaskingCollator
from .loader import Collate
from .row_table import Batching
from .rows import Rows
from .source import FileSource
from .source_resolution import Files
from .text_rows import Document, OnBadRow

__all__ = ["ReplacedTokenDataModule"]

# Evaluation masks the same tokens in every run, so that runs of different seeds can be compared.
_EVALUATION_SEED = 0


class ReplacedTokenDataModule(LMDataModule):
    """Text as rows with masks, for the generator of ELECTRA (arXiv:2003.10555) to fill.

    The rows and masks are those of `MaskedLMDataModule`, but no token is ever replaced by a random
    one: replacing is the generator's. Which tokens are chosen is a pure function of (seed, epoch,
    row); in evaluation it is the same in every epoch and every run.

    With neither `source` nor files it takes the embedded corpus (`lmkit.datamodules.embedded`): a
    default to start on, not a benchmark.

    Args:
        source: hub name (`owner/name`, `name/config`, `owner/name/config`), a file, glob or folder
            or a list of them, or in scripts a `datasets.Dataset` or `DatasetDict`.
        train_file: files or globs to train on, in place of `source`.
        val_file: files to validate on; without one a part of the training text is held out.
        test_file: files to test on; without one the validation text is taken.
        predict_file: texts whose replaced tokens are to be found, one per line.
        text_column: column or key of the text; guessed when obvious.
        document: what a document of a txt file is: `line`, `paragraph` or `file`.
        encoding: of the characters of the files.
        on_bad_row: `error`, or `skip` to count bad rows and go on.
        val_fraction: share of the documents held out, by a hash of each, in `[0, 1)`.
        tokenizer: hub name or folder; by default the model's own, or else one trained on the text.
        tokenizer_kind: of a trained one: `wordpiece` or `bpe` (byte-level).
        vocab_size: of a trained one, special tokens included.
        max_length: tokens in a row, special tokens included; at least 8.
        batching: how rows are made in training: `pack`, `bucket` or `chunk`, see
            `MaskedLMDataModule`.
        eval_batching: the same in evaluation.
        batch_size: rows of `max_length` per batch and device; in buckets, as many shorter rows as
            have that many tokens.
        eval_batch_size: the same in evaluation; by default `batch_size`.
        num_workers: processes that make batches ahead.
        seed: of order and masks; by default that of `seed_everything`.
        cache_dir: where token ids are kept; by default `$LMKIT_CACHE`, else `~/.cache/lmkit`.
        streaming: read the training text as it comes, for text that does not fit the disk: it is
            tokenized on the way, shuffled over 64 batches, and begins again at its end. `source`
            may then be a `datasets.IterableDataset` too. Needs a tokenizer and, to validate, a
            `val_file`; `num_workers` is for evaluation only, one thread reads ahead.
        epoch_batches: batches that count as an epoch of a stream.
        mask_rate: share of the tokens that are chosen, in `(0, 1]`; ELECTRA has 0.15, and 0.25 for
            its large model. In training it is an exact count in each row.
        eval_mask_rate: the same in evaluation, whatever the training rate is, as a binomial count.
        mask_replace: share of the chosen that become the mask token, in `[0, 1]`; the rest keep
            their own in front of the generator. ELECTRA's released code has 0.85, its paper 1.

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
        batching: Batching = "pack",
        eval_batching: Batching = "bucket",
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int | None = None,
        cache_dir: str | None = None,
        streaming: bool = False,
        epoch_batches: int = 1000,
        mask_rate: float = 0.15,
        eval_mask_rate: float = 0.15,
        mask_replace: float = 0.85,
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
            batching=batching,
            eval_batching=eval_batching,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
            cache_dir=cache_dir,
            streaming=streaming,
            epoch_batches=epoch_batches,
        )
        if not 0.0 <= mask_replace <= 1.0:
            raise ValueError(f"mask_replace must lie in [0, 1], got {mask_replace}")
        check_shares(mask_rate, mask_replace, 0.0)
        check_shares(eval_mask_rate, mask_replace, 0.0)
        if mask_rate == 0 or eval_mask_rate == 0:
            raise ValueError(
                "mask_rate and eval_mask_rate must be above 0, for without a chosen token nothing "
                f"is replaced; got {mask_rate} and {eval_mask_rate}"
            )
        self.mask_rate = mask_rate
        self.eval_mask_rate = eval_mask_rate
        self.mask_replace = mask_replace

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise `ValueError` for a tokenizer without a mask token."""
        require_mask_token(tokenizer)

    def settings(self) -> dict[str, Any]:
        """Return the settings of the masks."""
        return {
            "objective": "replaced_token",
            "mask_rate": self.mask_rate,
            "eval_mask_rate": self.eval_mask_rate,
            "mask_replace": self.mask_replace,
        }

    def affixes(self, batching: Batching) -> tuple[list[int], list[int]]:
        """Return the tokenizer's own, e.g. `[CLS]` and `[SEP]`."""
        assert self.tokenizer is not None
        return special_affixes(self.tokenizer)

    def collator(self, rows: Rows, training: bool) -> Collate:
        """Return what masks rows: anew each epoch in training, always alike in evaluation."""
        assert self.tokenizer is not None
        return MaskingCollator(
            rows,
            mask_id=require_mask_token(self.tokenizer),
            special_ids=self.tokenizer.all_special_ids,
            vocab_size=len(self.tokenizer),
            seed=self.seed if training else _EVALUATION_SEED,
            mask_rate=self.mask_rate if training else self.eval_mask_rate,
            mask_share=self.mask_replace,
            random_share=0.0,
            # Rows of evaluation are single texts: of a short one a fixed number would be too many.
            exact=training,
        )

    def prompts(self, source: FileSource) -> list[list[int]]:
        """Return the ids of each text with its affixes, cut to `max_length`."""
        assert self.tokenizer is not None
        prefix, suffix = special_affixes(self.tokenizer)
        encode = text_encoder(self.tokenizer)
        room = self.max_length - len(prefix) - len(suffix)
        bodies = encode([text.text for text in source.texts(report=True)])
        if long := sum(len(body) > room for body in bodies):
            rank_zero_warn(f"{long} texts were cut to max_length={self.max_length} tokens")
        return [[*prefix, *body[:room], *suffix] for body in bodies]
