"""A fast tokenizer with the tokens that texts need, and no others."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from .loading import tokenizer_from_files, tokenizer_to_files
from .special import text_encoder

__all__ = ["TrimmedTokenizer", "count_tokens", "trim_tokenizer"]

# A byte as tokenizers name it that fall back to bytes, and a sentinel of T5's kin, which mT5 has
# among its words.
_ALWAYS = re.compile(r"<0x[0-9A-Fa-f]{2}>|▁?<extra_id_\d+>")
# What a folder may say of the vocabulary beside `tokenizer.json`, which alone is read.
_OTHER_FILES = ("vocab.txt", "vocab.json", "merges.txt", "added_tokens.json")
_AT_ONCE = 1000


class TrimmedTokenizer(NamedTuple):
    """A tokenizer with fewer tokens.

    Attributes:
        tokenizer: the new one.
        kept: the old ids of its tokens, in ascending order; the new id of `kept[i]` is `i`.
    """

    tokenizer: PreTrainedTokenizerBase
    kept: list[int]


def count_tokens(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> NDArray[np.int64]:
    """Count how often each token comes in texts, special tokens around them left out.

    Args:
        tokenizer: any.
        texts: read once, a thousand at a time.

    Returns:
        int64 `[V]` by id.

    Example:
        >>> from lmkit.tokenization import train_tokenizer
        >>> tokenizer = train_tokenizer(["a cat sat"], vocab_size=30)
        >>> counts = count_tokens(tokenizer, ["a cat", "a hat"])
        >>> int(counts[tokenizer.convert_tokens_to_ids("a")])
        2
    """
    encode, stream = text_encoder(tokenizer), iter(texts)
    counts = np.zeros(max(tokenizer.get_vocab().values()) + 1, np.int64)
    while some := list(islice(stream, _AT_ONCE)):
        ids = np.concatenate([np.asarray(row, np.int64) for row in encode(some)])
        counts += np.bincount(ids, minlength=len(counts))
    return counts


def trim_tokenizer(
    tokenizer: PreTrainedTokenizerBase,
    counts: NDArray[np.int64],
    min_count: int = 1,
    keep: Iterable[int] = (),
) -> TrimmedTokenizer:
    r"""Make a tokenizer of the tokens that come often enough, and of what lets it read any text.

    Kept are the tokens with a count of at least `min_count`; special and added tokens; and single
    characters and bytes, into which a text falls whose tokens are gone. Of byte-pair encoding also
    the parts of each kept token, down to its characters, with the merges that make them; of a
    unigram model the piece with the least score, from which the score of the unknown is taken.

    A text whose old tokens are all kept has the same tokens as before, under new ids. For greedy
    pieces (WordPiece), because the longest one that fits is still there, and a longer one is not.
    For merges (BPE), because each step of the old order, the least rank first, is still there and
    still the first. For the best path of pieces (Unigram), because fewer paths compete with it.
    What the old vocabulary could not spell by single characters is kept whole.

    Args:
        tokenizer: a fast one, of WordPiece, BPE (of bytes or characters) or Unigram.
        counts: int64 `[V]` by id, e.g. of `count_tokens`.
        min_count: at least 1.
        keep: further ids to keep.

    Raises:
        ValueError: the tokenizer is a slow one, or of another kind; `min_count` or `keep` is
            outside its range; or transformers builds another tokenizer from the new files.

    Example:
        >>> from lmkit.tokenization import train_tokenizer
        >>> tokenizer = train_tokenizer(["a cat sat on a mat", "the cat"], vocab_size=60)
        >>> small, kept = trim_tokenizer(tokenizer, count_tokens(tokenizer, ["the cat"]))
        >>> len(kept) < len(tokenizer), small.tokenize("the cat sat")
        (True, ['the', 'cat', 's', '##a', '##t'])
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise ValueError(
            f"{type(tokenizer).__name__} is a slow tokenizer, whose vocabulary cannot be "
            "rewritten; convert it to a tokenizer.json (a fast tokenizer of transformers) first"
        )
    if type(min_count) is bool or not isinstance(min_count, int) or min_count < 1:
        raise ValueError(f"min_count must be a whole number of at least 1, got {min_count!r}")
    files = tokenizer_to_files(tokenizer)
    state = json.loads(files["tokenizer.json"])
    model = state["model"]
    if model.get("type") not in _KINDS:
        raise ValueError(
            f"the tokenizer is of the kind {model.get('type')}, and those that can be trimmed are "
            f"{', '.join(_KINDS)}: others have no pieces for a word that is not in the vocabulary"
        )
    ids = tokenizer.get_vocab()
    if unknown := sorted(set(keep) - set(ids.values())):
        raise ValueError(f"keep has ids that the tokenizer has no token for: {unknown[:5]}")
    often = {int(number) for number in np.flatnonzero(np.asarray(counts) >= min_count)}
    always = {*keep, *tokenizer.all_special_ids, *(token["id"] for token in state["added_tokens"])}
    wanted = {t for t, i in ids.items() if i in often or i in always or _ALWAYS.fullmatch(t)}
    wanted = _KINDS[model["type"]](model, wanted)
    kept = sorted(number for token, number in ids.items() if token in wanted)
    new = {old: number for number, old in enumerate(kept)}
    _rewrite(state, {token: new[ids[token]] for token in wanted if token in ids}, new)
    return TrimmedTokenizer(_rebuilt(files, state, new, ids), kept)


def _pieces(model: Mapping[str, Any], wanted: set[str]) -> set[str]:
    """Add what lets greedy pieces spell any word that they could spell before."""
    prefix = model.get("continuing_subword_prefix") or ""
    known = set(model["vocab"])
    wanted = wanted | {model["unk_token"]}
    for token in known:
        inside = token[len(prefix) :] if _continues(token, prefix) else token
        first = prefix if _continues(token, prefix) else ""
        spelled = [f"{first if n == 0 else prefix}{c}" for n, c in enumerate(inside)]
        if len(inside) == 1 or not known.issuperset(spelled):
            wanted.add(token)
    return wanted


def _merged(model: Mapping[str, Any], wanted: set[str]) -> set[str]:
    """Add the characters, and the parts of all that is made by merges, down to these."""
    prefix, suffix = (model.get(f"{w}") or "" for w in ("continuing_subword_prefix", _SUFFIX))
    known = set(model["vocab"])
    wanted = wanted | ({model["unk_token"]} if model.get("unk_token") else set())
    for token in known:
        inside = token[len(prefix) :] if _continues(token, prefix) else token
        if len(inside.removesuffix(suffix)) == 1 or len(inside) == 1:
            wanted.add(token)
    parts: dict[str, set[str]] = {}
    for left, right in _merges(model):
        parts.setdefault(_joined(left, right, prefix), set()).update((left, right))
    waiting = list(wanted)
    while waiting:
        new = parts.get(waiting.pop(), set()) - wanted
        wanted |= new
        waiting += new
    return wanted


def _scored(model: Mapping[str, Any], wanted: set[str]) -> set[str]:
    """Add the characters, what holds one that is no piece by itself, and the least score."""
    pieces = dict(reversed(model["vocab"]))
    wanted = wanted | {min(pieces, key=lambda piece: (pieces[piece], piece))}
    if model.get("unk_id") is not None:
        wanted.add(model["vocab"][model["unk_id"]][0])
    return wanted | {p for p in pieces if len(p) == 1 or not pieces.keys() >= set(p)}


_SUFFIX = "end_of_word_suffix"
_KINDS: dict[str, Callable[[Mapping[str, Any], set[str]], set[str]]] = {
    "WordPiece": _pieces,
    "BPE": _merged,
    "Unigram": _scored,
}


def _continues(token: str, prefix: str) -> bool:
    return bool(prefix) and token.startswith(prefix) and len(token) > len(prefix)


def _merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    pairs = (m.split(" ", 1) if isinstance(m, str) else m for m in model["merges"])
    return [(left, right) for left, right in pairs]


def _joined(left: str, right: str, prefix: str) -> str:
    return left + (right[len(prefix) :] if _continues(right, prefix) else right)


def _rewrite(state: dict[str, Any], tokens: Mapping[str, int], new: Mapping[int, int]) -> None:
    """Put the new tokens and ids into the content of a `tokenizer.json`."""
    model = state["model"]
    if model["type"] == "Unigram":
        if model.get("unk_id") is not None:
            model["unk_id"] = new[model["unk_id"]]
        model["vocab"] = [piece for piece in model["vocab"] if piece[0] in tokens]
    else:
        model["vocab"] = {token: tokens[token] for token in model["vocab"] if token in tokens}
    if model["type"] == "BPE":
        prefix = model.get("continuing_subword_prefix") or ""
        pairs = [pair for pair in _merges(model) if _joined(*pair, prefix) in tokens]
        model["merges"] = [list(pair) for pair in pairs]
    for token in state["added_tokens"]:
        token["id"] = new[token["id"]]
    if state.get("padding"):
        state["padding"]["pad_id"] = new.get(state["padding"]["pad_id"], 0)
    _renumber(state.get("post_processor"), new)


def _renumber(processor: Any, new: Mapping[int, int]) -> None:
    if not processor:
        return
    for inner in processor.get("processors", ()):
        _renumber(inner, new)
    for word in ("sep", "cls"):
        if word in processor:
            processor[word][1] = new[processor[word][1]]
    if processor.get("type") == "TemplateProcessing":
        for token in processor["special_tokens"].values():
            token["ids"] = [new[number] for number in token["ids"]]


def _rebuilt(
    files: Mapping[str, str], state: Any, new: Mapping[int, int], ids: Mapping[str, int]
) -> PreTrainedTokenizerBase:
    """Let transformers build the tokenizer, and see that it has the tokens that it should."""
    written = {name: text for name, text in files.items() if name not in _OTHER_FILES}
    written["tokenizer.json"] = json.dumps(state, ensure_ascii=False)
    config = json.loads(files.get("tokenizer_config.json", "{}"))
    if "added_tokens_decoder" in config:
        added = config["added_tokens_decoder"].items()
        config["added_tokens_decoder"] = {str(new[int(old)]): token for old, token in added}
    written["tokenizer_config.json"] = json.dumps(config, ensure_ascii=False)
    tokenizer = tokenizer_from_files(written)
    expected = {token: new[old] for token, old in ids.items() if old in new}
    if tokenizer.get_vocab() != expected:
        wrong = sorted(set(tokenizer.get_vocab().items()) ^ set(expected.items()))
        raise ValueError(
            f"transformers builds another vocabulary from the trimmed files of a "
            f"{type(tokenizer).__name__}, e.g. {wrong[0]}: its class has ids of its own. Save it "
            "as a plain PreTrainedTokenizerFast(tokenizer_object=...) first"
        )
    return tokenizer
