"""The parser behind `lmkit fit`: says in one line what is wrong, and what was perhaps meant."""

from __future__ import annotations

import argparse
import ast
import difflib
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger

from .modules.base import LMModule
from .modules.distillation_losses import DistillationLoss

__all__ = ["Parser", "plain_error"]

# A class's options are parsed by a parser of their own, whose error the outer one wraps in a page
# of text. The line that helps is set between these two characters, and taken out again.
_OPEN, _CLOSE = "\x02", "\x03"
_MARKED = re.compile(f"{_OPEN}([^{_OPEN}{_CLOSE}]*){_CLOSE}")
_OWNED = re.compile(
    rf"given class_path '([^']+)':\s*{_OPEN}([^{_OPEN}{_CLOSE}]*){_CLOSE}", re.DOTALL
)

# Of a union whose member is a list of unions, the outer one's reasons hold the inner one's page.
_OF_UNIONS = ("Expected a", "Not a valid", "a class", "a dict", "Does not validate")


class Parser(LightningArgumentParser):
    """A parser whose errors are one line with a suggestion; exits with code 2, without a trace."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what is wrong, and exit; an inner parser raises instead.

        Raises:
            argparse.ArgumentError: this parser is a class's own, and the outer one goes on.
        """
        text = _explain(message, self)
        if not self.exit_on_error:
            raise argparse.ArgumentError(None, f"{_OPEN}{text}{_CLOSE}") from ex
        command = self.prog.replace(" [options]", "")
        sys.stderr.write(f"{command}: error: {text}\n")
        self.exit(2)


def plain_error(message: str) -> str:
    r"""Take what a constructor said out of the page about unions that jsonargparse wraps it in.

    Example:
        >>> plain_error("Does not validate against any of the Union subtypes\n"
        ...             "Errors:\n  - rows must be at least 1\n  - Expected a <class 'bool'>\n")
        'rows must be at least 1'
    """
    if "Union subtypes" not in message:
        return message
    reasons = re.findall(r"^\s*- (.+)$", message, re.MULTILINE)
    own = [r for r in reasons if not r.startswith(_OF_UNIONS)]
    return own[0] if own else " ".join(message.split())


def _explain(message: str, parser: Parser) -> str:
    if _OPEN in message:
        return _inner(message)
    if match := re.search(r"Option '([^']+)' is not accepted", message):
        return _no_option(match[1], _destinations(parser))
    if match := re.match(r"unrecognized arguments: (\S+)", message):
        option = match[1].split("=")[0]
        known = [o for o in parser._option_string_actions if o.startswith("--")]
        return f"there is no option {option}{_nearest(option, known)}"
    if match := re.match(r"Subcommand '(\w+)' does not accept option '([^']+)'", message):
        commands: Any = parser._subcommands_action
        known = [a.dest for a in commands.choices[match[1]]._actions]
        return f"there is no option {match[2]!r}{_nearest(match[2], known)}"
    if match := re.match(r"the following arguments are required: ([^\s,]+)", message):
        return _required(match[1], is_section=parser.exit_on_error)
    if match := re.search(r'Parser key "([^"]+)":', message):
        return _wrong_value(match[1], message)
    return " ".join(message.split())


def _inner(message: str) -> str:
    owned: list[tuple[str, str]] = _OWNED.findall(message)
    if owned:
        # Of several ways to read a value, the one that got furthest has a suggestion.
        path, text = max(owned, key=lambda pair: "did you mean" in pair[1])
        return f"{path.rsplit('.', 1)[-1]}: {text}"
    return str(max(_MARKED.findall(message), key=lambda text: "did you mean" in text))


def _no_option(option: str, known: Iterable[str]) -> str:
    known = list(known)
    near = _nearest(option, known)
    return f"there is no option {option!r}{near or '; there are ' + ', '.join(known)}"


def _required(name: str, is_section: bool) -> str:
    name = name.rsplit(".", 1)[-1]
    if is_section and name in ("model", "data"):
        return (
            f"which {name}? Give a recipe or config with -c, or a class with --{name} "
            "(lmkit recipes lists recipes)"
        )
    return f"the option {name!r} is missing, and has no default"


def _wrong_value(key: str, message: str) -> str:
    if match := re.search(r"Expected a dot import path string: ([\w.]+)", message):
        return f"{key}: there is no class {match[1]!r}{_nearest(match[1], _class_names(key))}"
    if match := re.search(r"(?:No module named|module '[\w.]+' has no attribute) '[^']+'", message):
        return f"{key}: {match[0]}"
    if match := re.search(r"Expected a (.+?)\. Got value: (.*)", message, re.DOTALL):
        expected, given = [match[1]], match[2].strip()
    else:
        types = re.search(r"Subtypes: \[(.*)\]\n", message)
        value = re.search(r"Given value: (.*)", message, re.DOTALL)
        if types is None or value is None:
            return " ".join(message.replace("Parser key ", "").split())
        expected, given = re.split(r", (?=<|typing|list|dict|collections)", types[1]), value[1]
    choices = list(dict.fromkeys(choice for kind in expected for choice in _literals(kind)))
    others = [_plain(kind) for kind in expected if not list(_literals(kind))]
    kinds = " or ".join([*map(repr, choices), *others])
    kinds = kinds.replace("a whole number or a number", "a number")
    near = _nearest(given, choices) if choices else ""
    return f"{key}: expected {kinds}, got {given.strip()!r}{near}"


def _plain(kind: str) -> str:
    name = re.sub(r"<class '(?:.*\.)?(\w+)'>", r"\1", kind).removeprefix("typing.")
    return {"NoneType": "null", "str": "text", "int": "a whole number", "float": "a number"}.get(
        name, name
    )


def _literals(kind: str) -> Iterator[str]:
    if match := re.search(r"Literal(\[.*\])", kind):
        yield from map(str, ast.literal_eval(match[1]))


def _destinations(parser: Parser) -> list[str]:
    names = dict.fromkeys(a.dest.split(".")[0] for a in parser._actions)
    return [n for n in names if n not in ("help", "config", "print_config")]


def _class_names(key: str) -> list[str]:
    section = key.split(".")[-1].rstrip("+")
    known: dict[str, type[Any]] = {
        "model": LightningModule,
        "data": LightningDataModule,
        "callbacks": Callback,
        "logger": Logger,
        "student": LMModule,
        "losses": DistillationLoss,
    }
    bases = [known[section]] if section in known else list(known.values())
    names: dict[str, None] = {}
    while bases:
        for child in bases.pop().__subclasses__():
            bases.append(child)
            if not child.__name__.startswith("_"):
                names[child.__name__] = None
    return list(names)


def _nearest(word: str, known: Iterable[str]) -> str:
    # Of a dotted name the end counts, and case is what one gets wrong first.
    lowered = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), list(lowered), n=1, cutoff=0.6)
    return f"; did you mean {lowered[near[0]]!r}?" if near else ""
