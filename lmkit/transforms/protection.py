"""Which words a transform must leave as they are."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .words import split_words

__all__ = ["NEGATIONS", "Protection", "is_special"]

_NEGATIONS = """
no not never none nobody nothing nowhere neither nor cannot without hardly barely scarcely seldom
rarely lack lacks lacked lacking isnt arent wasnt werent dont doesnt didnt cant couldnt wont wouldnt
shouldnt hasnt havent hadnt aint
"""
#: Words that turn a sentence round. Words in n't are among them by their ending.
NEGATIONS = frozenset(_NEGATIONS.split())

_TOKEN = re.compile(r"\[[A-Z][A-Z0-9_]*\]|<[|/]?\w+\|?>")
_FREE, _FIXED, _CAPITAL, _END = range(4)
#: Capitals that say nothing about a word.
_NO_NAMES = frozenset("I" + end for end in ("", "'m", "'ve", "'d", "'ll"))
#: Words that are kept in memory with what was found of them.
_MOST = 200_000


def is_special(word: str) -> bool:
    """Whether a word is written as special tokens are.

    Example:
        >>> is_special("[MASK]"), is_special("<mask>"), is_special("mask")
        (True, True, False)
    """
    return word[:1] in ("[", "<") and _TOKEN.fullmatch(word) is not None


class Protection:
    """Says of each word of a row whether it must stay.

    Special tokens such as `[MASK]` or `<mask>` always stay.

    Args:
        words: that stay, in any case of letters; label words, for instance. What `split_words`
            takes for several words, such as *Node.js* or *New York*, stays where these follow one
            another.
        patterns: regular expressions; words that one of them matches wholly stay.
        special_tokens: of a tokenizer, in their own letters.
        negations: whether `NEGATIONS` and words in n't stay.
        names: whether words stay that begin with a capital inside a sentence.
        numbers: whether words with a digit stay.
        urls: whether addresses of mail, those of the web with `://` or `www.`, @names and #topics
            stay.
        punctuation: whether words without letter and digit stay.

    Raises:
        ValueError: a pattern is no regular expression.
        TypeError: `words`, `patterns` or `special_tokens` is no list of strings, or another
            argument is neither true nor false.

    Example:
        >>> Protection(words=["film"])(["The", "film", "was", "not", "Anna", "'s", "best", "."])
        [False, True, False, True, True, False, False, True]
    """

    def __init__(
        self,
        words: Sequence[str] = (),
        patterns: Sequence[str] = (),
        special_tokens: Sequence[str] = (),
        negations: bool = True,
        names: bool = True,
        numbers: bool = True,
        urls: bool = True,
        punctuation: bool = True,
    ) -> None:
        lists = {"words": words, "patterns": patterns, "special_tokens": special_tokens}
        for name, value in lists.items():
            if isinstance(value, str):
                raise TypeError(f"{name} must be a list of strings, got the string {value!r}")
            for word in value if isinstance(value, list | tuple) else [value]:
                if not isinstance(word, str):
                    quotes = "; YAML reads no, yes, on and off so: put them in quotes"
                    quotes = quotes if isinstance(word, bool) else ""
                    raise TypeError(f"{name} must be a list of strings, got {word!r}{quotes}")
        switches = {"negations": negations, "names": names, "numbers": numbers}
        for name, switch in {**switches, "urls": urls, "punctuation": punctuation}.items():
            if not isinstance(switch, bool):
                raise TypeError(f"{name} must be true or false, got {switch!r}")
        self.words, self.patterns = list(words), list(patterns)
        self.special_tokens = list(special_tokens)
        self.negations, self.names, self.numbers = negations, names, numbers
        self.urls, self.punctuation = urls, punctuation
        self._given = frozenset(word.casefold() for word in self.words)
        self._tokens = frozenset(self.special_tokens)
        self._runs = _runs_of(self.words, True) + _runs_of(self.special_tokens, False)
        self._patterns = []
        for pattern in self.patterns:
            try:
                self._patterns.append(re.compile(pattern))
            except re.error as error:
                raise ValueError(
                    f"patterns: {pattern!r} is no regular expression: {error}"
                ) from error
        self._verdicts = _Verdicts(self)

    def __call__(self, words: Sequence[str]) -> list[bool]:
        """Return of each word whether it must stay."""
        if len(self._verdicts) > _MOST:
            self._verdicts.clear()
        verdicts = list(map(self._verdicts.__getitem__, words))
        if self._runs:
            self._keep_runs(words, verdicts)
        if _CAPITAL in verdicts:
            fixed = []
            inside = False
            for word, verdict in zip(words, verdicts, strict=True):
                fixed.append(verdict == _FIXED or (verdict == _CAPITAL and inside))
                inside = verdict != _END and (inside or word[0].isalnum())
                if verdict == _END and self.punctuation:
                    fixed[-1] = True
            return fixed
        if self.punctuation:
            return [verdict != _FREE for verdict in verdicts]
        return [verdict == _FIXED for verdict in verdicts]

    def _keep_runs(self, words: Sequence[str], verdicts: list[int]) -> None:
        """Let words stay that follow one another as those of a run do."""
        folded = [word.casefold() for word in words]
        for run, folds in self._runs:
            row, size = folded if folds else list(words), len(run)
            for place in range(len(row) - size + 1):
                if row[place] == run[0] and row[place : place + size] == run:
                    verdicts[place : place + size] = [_FIXED] * size

    @property
    def settings(self) -> dict[str, object]:
        """The arguments, as plain data."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Protection) and self.settings == other.settings

    def __hash__(self) -> int:
        return hash(repr(self.settings))

    def __repr__(self) -> str:
        usual = Protection().settings
        said = {name: value for name, value in self.settings.items() if value != usual[name]}
        return f"Protection({', '.join(f'{name}={value!r}' for name, value in said.items())})"

    def __reduce__(self) -> tuple[object, ...]:
        return Protection, tuple(self.settings.values())

    def verdict(self, word: str) -> int:
        """Return what can be said of a word without its neighbours."""
        if word in self._tokens or word.casefold() in self._given or is_special(word):
            return _FIXED
        if any(pattern.fullmatch(word) for pattern in self._patterns):
            return _FIXED
        if not any(map(str.isalnum, word)):
            if word[:1] in (".", "!", "?", "…", ":", ""):
                return _END
            return _FIXED if self.punctuation else _FREE
        plain = word.replace("\u2019", "'")
        low = plain.lower()
        if self.negations and (low.replace("'", "") in NEGATIONS or low.endswith("n't")):
            return _FIXED
        if self.numbers and any(map(str.isdigit, word)):
            return _FIXED
        is_address = "://" in word or "@" in word or word[0] == "#" or low.startswith("www.")
        if self.urls and is_address:
            return _FIXED
        if self.names and word[0].isupper() and plain not in _NO_NAMES:
            return _CAPITAL
        return _FREE


def _runs_of(given: Sequence[str], folds: bool) -> list[tuple[list[str], bool]]:
    """Return what `split_words` makes several words of, as these."""
    made = []
    for text in given:
        if len(found := split_words(text).words) > 1:
            made.append(([word.casefold() if folds else word for word in found], folds))
    return made


class _Verdicts(dict[str, int]):
    """What was found of each word."""

    def __init__(self, protection: Protection) -> None:
        super().__init__()
        self._protection = protection

    def __missing__(self, word: str) -> int:
        self[word] = found = self._protection.verdict(word)
        return found
