"""Vocabulary trimming: a model and its tokenizer with the tokens that texts need, and no others."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_info
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from .adapters.ownership import check_module
from .datamodules.source import FileSource, TextOptions, expand_files
from .datamodules.text_rows import Document
from .export_network import is_rounded
from .exporting import export
from .loading import load
from .modules import LMModule
from .modules.checks import require_tokenizer
from .modules.network import MissingModelError, named_config
from .modules.onnx_network import OnnxNetwork
from .surgery.vocabulary import TrimVocabulary, id_ranges, needed_ids
from .tokenization import load_tokenizer
from .tokenization.trimming import count_tokens, trim_tokenizer
from .trimming_check import check_unchanged, say_of
from .types import Surgery

__all__ = ["Trimming", "corpus_texts", "trim", "trim_network", "trim_vocabulary"]

# Texts that are read once more with the trimmed model.
_TRIED = 16


class Trimming(NamedTuple):
    """What became of a vocabulary.

    Attributes:
        before: rows of the network's table of tokens, those without a token too.
        after: rows that are left.
        parameters: numbers of the network before and after, what is tied counted once.
        tokens: how many tokens the texts have.
        tokenizer: the one for the rows that are left.
    """

    before: int
    after: int
    parameters: tuple[int, int]
    tokens: int
    tokenizer: PreTrainedTokenizerBase


def trim_vocabulary(module: LMModule, texts: Iterable[str], min_count: int = 1) -> Trimming:
    """Take out of a module the tokens that texts do without, in place.

    Of a text whose tokens are all kept, the module computes what it did before: with `min_count=1`
    of each of the texts. Other texts fall into smaller pieces, down to characters or bytes, and can
    always be read. `module.tokenizer` is the new one then, and the ledger has the surgery. The
    first texts are read with the old and with the new module, and a difference is an error.

    Args:
        module: with its tokenizer and weights, e.g. of `lmkit.load`.
        texts: of the kind that the model is to read, as many as there are; read once. Of files by
            `corpus_texts`.
        min_count: how often a token has to come, at least 1. With more, texts with a rarer token
            are read otherwise than before.

    Raises:
        TypeError: `module` is none of lmkit, or `texts` is one text.
        ValueError: there are no texts; the network is quantized; the tokenizer is missing, a slow
            one, of another vocabulary than the network, or of a kind that cannot be trimmed; the
            module trains a second network over the vocabulary; the network cannot be trimmed; or it
            then says otherwise.

    Example:
        >>> from lmkit.modules import MaskedLMModule
        >>> from lmkit.tokenization import train_tokenizer
        >>> module = MaskedLMModule({"model_type": "bert", "hidden_size": 8,
        ...     "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8})
        >>> module.tokenizer = train_tokenizer(["the cat sat on the mat", "dogs"], vocab_size=60)
        >>> trimmed = trim_vocabulary(module, ["the cat sat"])
        >>> trimmed.after == len(module.tokenizer) < trimmed.before
        True
    """
    check_module(module, "trim_vocabulary", "trim_network(network, tokenizer, texts)")
    module.configure_model()
    if isinstance(module.network, OnnxNetwork):
        raise ValueError("an ONNX model cannot be trimmed: trim what it was exported from")
    if len(module.networks) > 1:
        raise ValueError(
            f"{type(module).__name__} trains a second network over the same vocabulary, which "
            "would keep the old one: export it, fine-tune that on a task, and trim the result"
        )
    made = _trim(module.network, require_tokenizer(module), texts, min_count, module.operate)
    module.tokenizer = module.task_module.tokenizer = made.tokenizer
    return made


def trim_network(
    network: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    min_count: int = 1,
) -> Trimming:
    """Take out of any network of transformers, in place, the tokens that texts do without.

    Args:
        network: with or without a head.
        tokenizer: its own; left as it is.
        texts: as of `trim_vocabulary`, which also says what is raised.
        min_count: as of `trim_vocabulary`.

    Returns:
        Sizes before and after, and the new tokenizer.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> from lmkit.tokenization import train_tokenizer
        >>> tokenizer = train_tokenizer(["the cat sat on the mat", "dogs"], vocab_size=60)
        >>> network = BertModel(BertConfig(vocab_size=60, hidden_size=8, num_hidden_layers=1,
        ...     num_attention_heads=2, intermediate_size=8))
        >>> trimmed = trim_network(network, tokenizer, ["the cat sat"])
        >>> network.config.vocab_size == len(trimmed.tokenizer)
        True
    """
    return _trim(network, tokenizer, texts, min_count, lambda surgery: surgery(network))


def trim(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    texts: Iterable[str],
    min_count: int = 1,
    format: str = "hf",
    overwrite: bool = False,
) -> tuple[Path, Trimming]:
    """Write a model with the tokens that texts need, and no others.

    Args:
        model: what `lmkit.load` takes; or a folder or hub name of an encoder or decoder without a
            head, which becomes such a folder again.
        output: the folder to make.
        texts: as of `trim_vocabulary`, which also says what is raised.
        min_count: as of `trim_vocabulary`.
        format: `"hf"` or `"onnx"`, as of `lmkit.export`.
        overwrite: replace a folder that is there already.

    Returns:
        The folder, and sizes before and after.

    Raises:
        FileExistsError: the folder is there and not empty.
    """
    target = Path(output)
    if target.exists() and not overwrite and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} is there already; give another output or overwrite it")
    if not _is_headless(model):
        module = load(model)
        made = trim_vocabulary(module, texts, min_count)
        return export(module, target, format=format, overwrite=overwrite), made
    if format != "hf":
        raise ValueError(f"{model} has no head, and only a folder (format='hf') is made of it")
    network = AutoModel.from_pretrained(model, dtype=torch.float32)
    made = trim_network(network, load_tokenizer(str(model)), texts, min_count)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        folder = Path(scratch) / "export"
        network.save_pretrained(folder)
        made.tokenizer.save_pretrained(folder)
        if target.exists():
            shutil.rmtree(target) if target.is_dir() else target.unlink()
        folder.replace(target)
    return target, made


def corpus_texts(
    files: str | Path | Sequence[str | Path],
    text_columns: Sequence[str] = (),
    document: Document = "line",
    encoding: str = "utf-8",
) -> Iterator[str]:
    r"""Yield the texts of files: `.txt`, or one or more columns of `.jsonl`, `.csv`, `.parquet`.

    Args:
        files: paths, globs or folders.
        text_columns: of tables; by default the one that is obvious.
        document: what a text is in a `.txt`: `"line"`, `"paragraph"` or `"file"`.
        encoding: of the files.

    Raises:
        ValueError: there is no such file or no text, a row is bad, or the column is missing; names
            the file.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "corpus.csv").write_text("text,label\na cat,x\n")
        ...     list(corpus_texts(folder, ["text"]))
        ['a cat']
    """
    found, empty = expand_files(files, "corpus"), True
    columns: Sequence[str | None] = text_columns or [None]
    for column in columns:
        source = FileSource(found, TextOptions(column, document, encoding))
        for text in source.texts():
            yield text.text
            empty = False
    if empty:
        raise ValueError(f"corpus: there is no text in {source.name}")


def _trim(
    network: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    min_count: int,
    perform: Callable[[Surgery], None],
) -> Trimming:
    if isinstance(texts, str | os.PathLike):
        raise TypeError(
            f"texts must be several texts, got {texts!r}; of a file they are "
            "lmkit.trimming.corpus_texts(file)"
        )
    if is_rounded(network):
        raise ValueError("the network is quantized: trim it before, and quantize what is left")
    rows, known = _rows(network), set(tokenizer.get_vocab().values())
    if max(known) >= rows:
        raise ValueError(
            f"the tokenizer has ids up to {max(known)} and the model rows for {rows} tokens: take "
            "the model's own tokenizer"
        )
    stream = (text for text in texts if text.strip())
    tried = list(islice(stream, _TRIED))
    counts = count_tokens(tokenizer, chain(tried, stream))
    if not counts.sum():
        raise ValueError("there are no texts, and so no tokens to keep: the corpus is empty")
    needed = needed_ids(network)
    small, kept = trim_tokenizer(tokenizer, counts, min_count, needed & known)
    # Rows that no token has, and the config names, stay behind all others.
    if (behind := sorted(needed - known)) and behind[0] < kept[-1]:
        raise ValueError(
            f"the config names the id {behind[0]}, and the tokenizer has no token for it: set it "
            "to the id of a token, or to None"
        )
    kept += behind
    numbers = _numbers(network)
    if len(kept) == rows:
        rank_zero_info(f"the texts need all {rows:,} tokens: the vocabulary stays as it is")
        return Trimming(rows, rows, (numbers, numbers), int(counts.sum()), tokenizer)
    before = [say_of(network, tokenizer, text) for text in tried]
    was = network.training
    perform(TrimVocabulary(id_ranges(kept), rows))
    network.train(was)
    after = [say_of(network, small, text) for text in tried]
    check_unchanged(before, after, kept, rows)
    left = _numbers(network)
    rank_zero_info(
        f"trimmed the vocabulary from {rows:,} to {len(kept):,} rows, and the model from "
        f"{numbers:,} to {left:,} parameters ({left / numbers:.1%})"
    )
    return Trimming(rows, len(kept), (numbers, left), int(counts.sum()), small)


def _is_headless(model: str | os.PathLike[str]) -> bool:
    place = Path(model)
    if place.is_file() or place.suffix == ".ckpt":
        return False
    try:
        config = named_config(str(model))
    except MissingModelError:
        return False  # `load` says what it is
    bare = AutoModel._model_mapping.get(type(config), None)
    return (config.architectures or [""])[0] == getattr(bare, "__name__", None)


def _rows(network: PreTrainedModel) -> int:
    table: Any = network.get_input_embeddings()
    return int(table.num_embeddings)


def _numbers(network: PreTrainedModel) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
