"""Data for the masked language model."""

from __future__ import annotations

from typing import Any, Literal, get_args

from lightning.pytorch.utilities import rank_zero_warn
from transformers import PreTrainedTokenizerBase

from ..cache import cache_folder
from ..functional.masking import check_shares
from ..functional.sentence_pairs import SentenceObjective
from ..tokenization import (
    pair_affixes,
    require_mask_token,
    require_pad_token,
    special_affixes,
    text_encoder,
)
from .base import LMDataModule
from .collators import MaskCount, Masking, MaskingCollator
from .loader import Collate
from .row_table import Batching
from .rows import Rows
from .sentence_pairs import PairRows
from .source import FileSource
from .source_resolution import Files
from .stream_window import TextWindow
from .text_rows import Document, OnBadRow
from .token_store import TokenStore

__all__ = ["MaskedLMDataModule"]

# Evaluation masks the same tokens in every run, so that runs of different seeds can be compared.
_EVALUATION_SEED = 0


class MaskedLMDataModule(LMDataModule):
    """Text as rows of `max_length` tokens with masks, BERT's objective (arXiv:1810.04805).

    Each document gets the tokenizer's own affixes, `[CLS] ... [SEP]`, and a row holds as many of
    them as fit (`batching="pack"`), with attention inside each and not between them, as in
    arXiv:2107.02027. With `"chunk"` documents are laid end to end, each closed by a separator, and
    cut into rows, as RoBERTa's FULL-SENTENCES (arXiv:1907.11692). Masks are drawn anew each epoch,
    as a pure function of (seed, epoch, row); in evaluation they are the same in every epoch and
    every run.

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
        batching: how rows are made in training. `pack`: as many documents in a row as fit, each
            seeing itself alone; `bucket`: one per row, in batches of about one length; `chunk`: the
            text as one stream, cut every `max_length` tokens. The first two cut only documents
            that are longer than a row.
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
        mask_rate: share of the tokens that are chosen, in `[0, 1]`.
        eval_mask_rate: the same in evaluation, whatever the training rate is.
        mask_share: share of the chosen that become the mask token.
        random_share: share of the chosen that become a random token.
        random_from: `non_special`, or `vocab` to draw the random token from all ids as BERT does.
        masking: what is chosen together: a `token`; a `whole_word`; a `span` of words, of 1 to 10
            words as SpanBERT's (arXiv:1907.10529); or an `n_gram` of 1 to 3 words as ALBERT's
            (arXiv:1909.11942).
        mask_count: `exact` chooses the rounded share of each row in training, which gives labels
            one shape; `binomial` draws for each token alone, as evaluation does.
        sentence_objective: `next_sentence` (BERT) or `sentence_order` (ALBERT, arXiv:1909.11942):
            each row holds two segments of whole sentences, `[CLS] A [SEP] B [SEP]`, and a label;
            `batching` then says nothing. Documents have to hold several sentences, one a line or
            each with its full stop; see `lmkit.datamodules.sentences`.

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
        mask_share: float = 0.8,
        random_share: float = 0.1,
        random_from: Literal["non_special", "vocab"] = "non_special",
        masking: Masking = "token",
        mask_count: MaskCount = "exact",
        sentence_objective: SentenceObjective | None = None,
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
        check_shares(mask_rate, mask_share, random_share)
        check_shares(eval_mask_rate, mask_share, random_share)
        if random_from not in ("non_special", "vocab"):
            raise ValueError(f"random_from must be non_special or vocab, got {random_from!r}")
        for name, value, known in (
            ("masking", masking, get_args(Masking)),
            ("mask_count", mask_count, get_args(MaskCount)),
            ("sentence_objective", sentence_objective, (None, *get_args(SentenceObjective))),
        ):
            if value not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(map(str, known))}, got {value!r}"
                )
        self.mask_rate = mask_rate
        self.eval_mask_rate = eval_mask_rate
        self.mask_share = mask_share
        self.random_share = random_share
        self.random_from = random_from
        if streaming and (masking != "token" or sentence_objective):
            raise ValueError(
                "a stream knows neither words nor sentences: pass masking='token' without a "
                "sentence_objective, or streaming=False"
            )
        self.masking = masking
        self.mask_count = mask_count
        self.sentence_objective = sentence_objective

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
            "masking": self.masking,
            "mask_count": self.mask_count,
            "sentence_objective": self.sentence_objective,
        }

    def boundaries(self) -> dict[str, bool]:
        """Return that words are asked for unless tokens are masked alone, sentences for pairs."""
        return {"words": self.masking != "token", "sentences": bool(self.sentence_objective)}

    def rows(self, store: TokenStore | TextWindow, batching: Batching) -> Rows:
        """Return the rows of a split: pairs of segments for a sentence objective."""
        if self.sentence_objective is None:
            return super().rows(store, batching)
        if not isinstance(store, TokenStore):
            raise ValueError(
                "sentence_objective pairs sentences of the whole text, which a stream does not "
                "have; leave streaming out"
            )
        assert self.tokenizer is not None
        return PairRows(
            store,
            self.sentence_objective,
            pair_affixes(self.tokenizer),
            max_length=self.max_length,
            pad_id=require_pad_token(self.tokenizer),
            cache=cache_folder(self.cache_dir),
            words=store.has_words,
        )

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
            mask_share=self.mask_share,
            random_share=self.random_share,
            any_random=self.random_from == "vocab",
            masking=self.masking,
            # Rows of evaluation are single texts: of a short one a fixed number would be too many.
            exact=training and self.mask_count == "exact",
        )

    def prompts(self, source: FileSource) -> list[list[int]]:
        """Return the ids of each text with its affixes; each has to have a mask."""
        assert self.tokenizer is not None
        mask = require_mask_token(self.tokenizer)
        prefix, suffix = special_affixes(self.tokenizer)
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
