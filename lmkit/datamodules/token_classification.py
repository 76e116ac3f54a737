"""Tagged words (named entities, parts of speech) as batches."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..functional.tagging import Scheme, detect_scheme, parse_tag, to_bio
from ..tokenization.word_pieces import join_words, piece_encoder
from ..tokenization.word_windows import WordLayout
from ..types import IGNORE_INDEX
from .augmentation import Augmentation, Rewriter, Transforms, plain_transforms
from .conll import Column
from .example_collator import ExampleCollator
from .example_table import Columns, ExampleTable
from .label_names import sorted_labels
from .loader import Collate
from .packed_batches import PackedCollator
from .records import RecordSource
from .source_resolution import Files
from .tagged_words import TaggedText, TaggedWordsReader
from .task import TaskDataModule
from .text_rows import BadRows, OnBadRow
from .word_batches import WordCollator, training_columns
from .word_labels import inner_numbers, piece_labels, tag_numbers

__all__ = ["TokenClassificationDataModule"]


class TokenClassificationDataModule(TaskDataModule):
    """Words with a tag each: named entities, parts of speech and the like.

    Reads CoNLL columns (`.conll`, `.txt`, `.tsv`, `.iob` or any other ending), CoNLL-U
    (`.conllu`), JSON lines and parquet with a list of words and one of tags (`tokens`, `tags`) or
    with a text and spans of characters (`text`, `spans`), and data sets of the hub such as
    `conll2003`. Files may be `.gz`.

    Tags that spell entities become BIO (IOB2), of whatever scheme they are. The words are cut into
    pieces by the tokenizer. A sentence that is longer than `max_length` is cut into windows of
    whole words that share a quarter of a window: in training each window is a row, in evaluation
    and prediction the windows of a sentence stay together, and each word has its tag from the
    window in which it is farther from the border. So no word is lost. Only of a single word that
    is longer than a row the last pieces are left out, which is counted.

    The sentences of a training batch are drawn at random, whatever their lengths, and share rows
    where they fit and the network keeps them apart.

    Args:
        source: a hub name, files, globs, a folder with train, dev and test files, or a `datasets`
            object.
        train_file: in place of `source`; files, globs or folders.
        val_file: the validation sentences; without, some are held out.
        test_file: the test sentences.
        predict_file: sentences to predict on: as above without tags, or plain text (`.txt`), a
            sentence a line, which is split into words.
        unlabelled_file: sentences to train on beside the others, read as those of `predict_file`:
            they have no tags, and those that there are are not looked at. For techniques that learn
            from such sentences, as distillation does.
        word_column: the column of the words: in CoNLL its place from 0 (the first) or in CoNLL-U
            its name (`FORM`); in other formats its name (`tokens`, `words`, or `text`).
        tag_column: the column of the tags: the last one, `UPOS`, or `tags`, `ner_tags`, `labels`,
            `pos_tags`; of a text `spans` or `entities`, a list of `{start, end, label}` or
            `[start, end, label]`.
        tag_names: names of tags that are given as numbers.
        scheme: how tags spell entities: `"bio"`, `"iob1"`, `"iobes"` (BILOU too), `"none"` for tags
            that spell none, such as parts of speech; `"auto"` tells it from the training tags.
        label_pieces: whether in training the `"first"` piece of a word is labelled or `"all"`, the
            later ones with the `I` of their entity. In evaluation it is always the first.
        encoding: of the files.
        on_bad_row: `"error"`, or `"skip"` to leave out bad sentences, and say how many.
        val_fraction: share of the training sentences held out where there is no `val_file`.
        transforms: what changes the words of the training examples: one or several of
            `lmkit.transforms`, each a name or a dictionary of `class_path` and `init_args`; see
            `docs/text_augmentation.md`.
        augmentations_per_example: make so many changed copies of each example, once, which train
            beside it; by default the examples are changed, anew in each epoch.
        transform_options: a dictionary of `strength`, in `[0, 1]`, what the rates of all are
            multiplied by (or `{"start": 0.0, "stop": 1.0}`, to change it in the course of a run);
            `protect`, arguments of `Protection`; `splits`, a list of which examples are changed,
            `val` and `test` only if they are named.
        tokenizer: a hub name or a folder; the model's own by default.
        max_length: tokens of a row, special ones included.
        batching: in training, `"pad"` gives each sentence a row, and `"pack"` lets sentences share
            rows, which is a quarter faster, where the network keeps them apart.
        batch_size: sentences per batch and rank.
        eval_batch_size: likewise in evaluation; `batch_size` by default.
        num_workers: processes that make batches.
        seed: of the order.
        cache_dir: where encoded data are kept.

    Raises:
        ValueError: an argument lies outside its range; in `setup` a file, line, tag or span is bad,
            or a tag of the validation or test is not among those of the training.

    Example:
        >>> data = TokenClassificationDataModule(train_file="train.conll", max_length=128)
        >>> data.scheme, data.label_pieces
        ('auto', 'first')
    """

    example_type: ClassVar[type[Any]] = TaggedText

    def __init__(
        self,
        source: Any = None,
        train_file: Files | None = None,
        val_file: Files | None = None,
        test_file: Files | None = None,
        predict_file: Files | None = None,
        unlabelled_file: Files | None = None,
        word_column: Column | None = None,
        tag_column: Column | None = None,
        tag_names: list[str] | None = None,
        scheme: Literal["auto", "bio", "iob1", "iobes", "none"] = "auto",
        label_pieces: Literal["first", "all"] = "first",
        encoding: str = "utf-8",
        on_bad_row: OnBadRow = "error",
        val_fraction: float = 0.1,
        transforms: Transforms = None,
        augmentations_per_example: int | None = None,
        transform_options: dict[str, Any] | None = None,
        tokenizer: str | None = None,
        max_length: int = 256,
        batching: Literal["pad", "pack"] = "pad",
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int | None = None,
        cache_dir: str | None = None,
    ) -> None:
        transforms = plain_transforms(transforms)
        super().__init__(
            source=source,
            train_file=train_file,
            val_file=val_file,
            test_file=test_file,
            predict_file=predict_file,
            unlabelled_file=unlabelled_file,
            encoding=encoding,
            on_bad_row=on_bad_row,
            val_fraction=val_fraction,
            tokenizer=tokenizer,
            max_length=max_length,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
            cache_dir=cache_dir,
        )
        for name, value, known in (
            ("scheme", scheme, ("auto", *get_args(Scheme))),
            ("label_pieces", label_pieces, ("first", "all")),
            ("batching", batching, ("pad", "pack")),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        self.has_classes = True
        self.word_column = word_column
        self.tag_column = tag_column
        self.tag_names = tag_names
        self.scheme = scheme
        self.label_pieces = label_pieces
        self.batching = batching
        how = transforms, augmentations_per_example, transform_options
        self.augmentation = Augmentation.of(*how)
        self._asked: list[TaggedText] = []
        self._windows: tuple[ExampleTable, ExampleTable] | None = None

    def read(self, source: RecordSource, labelled: bool, bad: BadRows) -> list[TaggedText]:
        """Return the sentences of a source."""
        reader = TaggedWordsReader(self.word_column, self.tag_column, self.tag_names, labelled, bad)
        return list(reader.read(source))

    def label_names(self, examples: list[TaggedText]) -> list[str]:
        """Return `O`, and B and I of each type, or the tags where they spell no entities."""
        if not examples:
            return []
        sentences = [example.tags or [] for example in examples]
        found = {tag for tags in sentences for tag in tags}
        scheme = detect_scheme(sentences) if self.scheme == "auto" else self.scheme
        if scheme == "none":
            return sorted_labels(found)
        types = set()
        for tag in found:
            try:
                types.add(parse_tag(tag)[1])
            except ValueError:
                continue  # `encode` names its line
        kinds = [f"-{kind}" if kind != "_" else "" for kind in sorted(types - {""})]
        return ["O", *(f"{prefix}{kind}" for kind in kinds for prefix in "BI")]

    def encode(self, examples: list[TaggedText], bad: BadRows) -> Columns:
        """Return pieces, their labels, where words begin, and the labels of words."""
        assert self.tokenizer is not None
        layout = WordLayout.of(self.tokenizer, self.max_length)
        if asked := bool(examples) and examples[0].tags is None:
            self._asked = examples
        known = {name: number for number, name in enumerate(self.labels)}
        scheme = self.scheme if self._spells_entities else "none"
        tags = [tag_numbers(example, known, scheme, bad) for example in examples]
        kept = [(e, t) for e, t in zip(examples, tags, strict=True) if t is not None]
        pieced = piece_encoder(self.tokenizer)([example.words for example, _ in kept])
        inner = inner_numbers(known, scheme) if self.label_pieces == "all" else None
        names = ("input_ids", "labels", "word_starts", "word_labels", "word_places")
        columns: dict[str, list[Any]] = {name: [] for name in (*names, "truncated", "unlabelled")}
        for (example, numbers), words in zip(kept, pieced, strict=True):
            words, is_cut = layout.limited(words)
            columns["truncated"].append(is_cut)
            columns["unlabelled"].append(example.tags is None)
            columns["input_ids"].append(layout.row(words.ids.tolist()))
            columns["word_starts"].append(words.starts.tolist())
            columns["word_labels"].append(numbers)
            columns["word_places"].append([place for pair in example.places for place in pair])
            made = piece_labels(words, numbers, inner)
            before, behind = ([IGNORE_INDEX] * len(a) for a in (layout.prefix, layout.suffix))
            columns["labels"].append([*before, *made, *behind])
        columns |= self.augmentation.column([e for e, _ in kept]) if self.augmentation else {}
        del columns["word_labels" if asked else "word_places"]
        return columns

    def table(self, split: str) -> ExampleTable:
        """Return the sentences of `val` or `test`, or the rows of `train`: of a long one windows.

        Raises:
            ValueError: there are none.
        """
        table = super().table(split)
        if split != "train" or int(table.ragged("input_ids").lengths.max()) <= self.max_length:
            return table
        assert self.tokenizer is not None
        if self._windows is None or self._windows[0] is not table:
            layout = WordLayout.of(self.tokenizer, self.max_length)
            self._windows = table, ExampleTable.of(training_columns(table, layout), table.meta)
        return self._windows[1]

    def collator(self, table: ExampleTable, training: bool) -> Collate:
        """Return what makes batches: of rows in training, of whole sentences in evaluation."""
        assert self.tokenizer is not None
        layout = WordLayout.of(self.tokenizer, self.max_length)
        if not training:
            return WordCollator(table, layout)
        module = self.trainer and self.trainer.lightning_module
        keeps_apart = getattr(module, "keeps_apart", None) if self.batching == "pack" else None
        make = PackedCollator if keeps_apart and keeps_apart(self.max_length) else ExampleCollator
        return make(table, layout.pad_id, {"labels": IGNORE_INDEX})

    def lengths(self, table: ExampleTable, training: bool = False) -> NDArray[np.int64]:
        """Return one length for all in training: sentences meet at random, see `PackedCollator`."""
        return np.ones(len(table), np.int64) if training else super().lengths(table)

    def settings(self) -> dict[str, Any]:
        """Return how tags are read and pieces labelled."""
        return {
            "word_column": self.word_column,
            "tag_column": self.tag_column,
            "tag_names": self.tag_names,
            "scheme": self.scheme,
            "label_pieces": self.label_pieces,
        }

    def rewrite(self, example: TaggedText, rewriter: Rewriter) -> TaggedText:
        """Return a sentence with changed words, each with its tag."""
        tags = example.tags
        if tags is None:
            words = rewriter.words(example.words)
        else:
            bio = self._spells_entities
            try:
                tags = to_bio(tags) if bio else tags
            except ValueError:
                return example  # `encode` names its line
            before, (words, tags) = tags, rewriter.tagged(example.words, tags, bio)
            if list(words) == list(example.words) and list(tags) == list(before):
                return example
        return TaggedText(words, tags, "", join_words(words)[1], [], example.file, example.line)

    def texts(self, example: TaggedText) -> tuple[str, ...]:
        """Return the words as a text."""
        return (example.text or " ".join(example.words),)

    def inputs(self, index: int) -> dict[str, Any]:
        """Return the text of a row of `predict_file`: words that came as such with spaces."""
        return {"text": self.texts(self._asked[index])[0]}

    @property
    def _spells_entities(self) -> bool:
        if self.scheme == "auto":
            return detect_scheme([self.labels]) != "none"
        return self.scheme != "none"
