"""Endings of English words: taken off to find a word in a dictionary, and put on again."""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["ENDINGS", "inflect", "regular_lemmas"]

#: Of each part of speech: what a form ends in, what its lemma ends in instead, and what form it is.
ENDINGS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "noun": (
        ("ies", "y", "s"),
        ("ses", "s", "s"),
        ("xes", "x", "s"),
        ("zes", "z", "s"),
        ("ches", "ch", "s"),
        ("shes", "sh", "s"),
        ("men", "man", "s"),
        ("s", "", "s"),
    ),
    "verb": (
        ("ies", "y", "s"),
        ("es", "", "s"),
        ("s", "", "s"),
        ("ied", "y", "ed"),
        ("ed", "e", "ed"),
        ("ed", "", "ed"),
        ("ing", "e", "ing"),
        ("ing", "", "ing"),
    ),
    "adj": (
        ("ier", "y", "er"),
        ("iest", "y", "est"),
        ("er", "", "er"),
        ("est", "", "est"),
        ("er", "e", "er"),
        ("est", "e", "est"),
    ),
    "adv": (),
}

_DOUBLES = re.compile(r"[^aeiou]*(?:qu)?[aeiou][bdgklmnprtvz]")
_SYLLABLES = re.compile(r"[aeiouy]+")


def regular_lemmas(word: str, part: str) -> list[tuple[str, str]]:
    """Return what a form may be made from by the rules, and what form it would be.

    Args:
        word: in small letters.
        part: `noun`, `verb`, `adj` or `adv`.

    Example:
        >>> regular_lemmas("hopes", "verb")
        [('hop', 's'), ('hope', 's')]
    """
    return [
        (word[: len(word) - len(ending)] + lemma_ending, form)
        for ending, lemma_ending, form in ENDINGS[part]
        if word.endswith(ending) and len(word) > len(ending) + 1
    ]


def inflect(
    lemma: str, part: str, form: str, irregular: Mapping[str, list[str]] | None = None
) -> str | None:
    """Return a form of a word; `None` where the rules do not tell it.

    Args:
        lemma: in small letters.
        part: `noun`, `verb`, `adj` or `adv`.
        form: `s`, `ed`, `ing`, `er`, `est`, or "" for the lemma itself.
        irregular: forms of lemmas that are not made by the rules. Where there are several of the
            kind, such as `went` and `gone`, it cannot be told which.

    Example:
        >>> inflect("hope", "verb", "ing"), inflect("city", "noun", "s"), inflect("plan", "verb",
        ...     "ed"), inflect("go", "verb", "ed", {"go": ["gone", "went"]})
        ('hoping', 'cities', 'planned', None)
    """
    if not form:
        return lemma
    known = _known(part, form, (irregular or {}).get(lemma, []))
    if known:
        return known[0] if len(known) == 1 else None
    consonant_y = lemma.endswith("y") and lemma[-2:-1] not in "aeiou"
    doubled = lemma + lemma[-1:] if _DOUBLES.fullmatch(lemma) else lemma
    if part == "adv":
        return None
    if form == "s":
        if consonant_y:
            return lemma[:-1] + "ies"
        return lemma + ("es" if lemma.endswith(("s", "x", "z", "ch", "sh")) else "s")
    if form == "ing":
        if lemma.endswith("e") and not lemma.endswith(("ee", "oe", "ye", "ie")):
            return lemma[:-1] + "ing"
        return (lemma[:-2] + "y" if lemma.endswith("ie") else doubled) + "ing"
    if part == "adj" and len(_SYLLABLES.findall(lemma.rstrip("e"))) > 1 + lemma.endswith("y"):
        return None
    if lemma.endswith("e"):
        return lemma[:-1] + form
    return (lemma[:-1] + "i" if consonant_y else doubled) + form


def _known(part: str, form: str, forms: list[str]) -> list[str]:
    """Return those irregular forms of a lemma that are of one kind."""
    if part == "verb":
        # Exceptions hold the forms in -ing and those of the past; forms in -s are regular.
        if form == "s":
            return []
        return [f for f in forms if f.endswith("ing") == (form == "ing")]
    if part == "adj":
        return [f for f in forms if f.endswith("est" if form == "est" else "r")]
    return forms
