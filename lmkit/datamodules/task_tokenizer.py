"""Which tokenizer labelled examples are tokenized with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from ..cache import cache_folder
from ..tokenization import require_pad_token, tokenizer_digest
from .text_rows import BadRows, Text
from .tokenizer_choice import choose_tokenizer

if TYPE_CHECKING:
    from .records import RecordSource
    from .task import TaskDataModule

__all__ = ["ExampleTexts", "take_task_tokenizer", "task_tokenizer"]


class ExampleTexts:
    """The texts of the examples of a source, as a source of text; can be read more than once.

    Args:
        source: the rows.
        texts: returns the texts of an example.
        read: returns the examples of the source.
    """

    def __init__(
        self,
        source: RecordSource,
        texts: Callable[[Any], tuple[str, ...]],
        read: Callable[[RecordSource, bool, BadRows], list[Any]],
    ) -> None:
        self.source, self._texts, self._read = source, texts, read

    @property
    def name(self) -> str:
        """For messages."""
        return self.source.name

    def texts(self, report: bool = False) -> Iterator[Text]:
        """Yield the texts."""
        for example in self._read(self.source, True, BadRows("skip")):
            for text in self._texts(example):
                yield Text(text, example.file, example.line)

    def key(self, cache: Path) -> str:
        """Return a hash of what the source holds."""
        return self.source.key(cache)


def take_task_tokenizer(
    data: TaskDataModule, given: PreTrainedTokenizerBase | None, source: RecordSource | None
) -> str:
    """Give a data module its tokenizer: the given one, or what `task_tokenizer` finds.

    Args:
        data: knows the name, the model, and the texts of an example.
        given: by the caller.
        source: the training rows, if there are any.

    Returns:
        A hash of the tokenizer.

    Raises:
        ValueError: there is none, or the task cannot use it.
    """
    tokenizer = given or task_tokenizer(data, source, cache_folder(data.cache_dir))
    data.check_tokenizer(tokenizer)
    require_pad_token(tokenizer, give=True)
    data.tokenizer = tokenizer
    return tokenizer_digest(tokenizer)


def task_tokenizer(
    data: TaskDataModule, source: RecordSource | None, cache: Path
) -> PreTrainedTokenizerBase:
    """Return the named tokenizer, else the model's own, else one trained on the training texts.

    Args:
        data: knows the name, the model, and the texts of an example.
        source: the training rows, if there are any.
        cache: folder of the cache.
    """
    texts: Any = ExampleTexts(source, data.texts, data.read) if source is not None else None
    return choose_tokenizer(
        data.tokenizer_name,
        data.trainer and data.trainer.lightning_module,
        texts,
        None,
        kind=data.tokenizer_kind,
        vocab_size=data.vocab_size,
        affixes=True,
        sentinels=0,
        cache=cache,
    )
