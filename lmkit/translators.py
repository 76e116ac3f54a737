"""What translates a batch of texts: a model, a program that reads lines, or any function."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from .loading import load
from .modules import Seq2SeqModule
from .modules.checks import require_tokenizer
from .modules.generation import source_batch
from .modules.network import usable_positions

__all__ = [
    "CommandTranslator",
    "ModelTranslator",
    "Translator",
    "make_translator",
    "translator_name",
]

Translator = Callable[[list[str]], list[str]]

# Of what a program says when it fails.
_STDERR = 2000


class ModelTranslator:
    """Translates with an encoder-decoder.

    Args:
        model: folder or hub name, or what else `lmkit.load` takes.
        prefix: stands before each text, as `translate English to German: ` for T5 or `>>fr<< ` for
            a Marian model of several languages.
        temperature: of the draws, above 0: each token is drawn from the whole vocabulary.
        beams: search with this many beams instead of drawing.
        max_new_tokens: how many tokens are written at most; by default 16 more than twice as many
            as the longest text of a batch has.
        device: by default CUDA, if it is there.

    Raises:
        ValueError: there is no such model, or it is no encoder-decoder.
    """

    def __init__(
        self,
        model: str,
        prefix: str = "",
        temperature: float = 0.9,
        beams: int | None = None,
        max_new_tokens: int | None = None,
        device: str | None = None,
    ) -> None:
        module = load(model)
        if not isinstance(module, Seq2SeqModule):
            raise ValueError(
                f"a translation is written by an encoder-decoder (Marian, T5, BART ...), and "
                f"{model} is for a {type(module).__name__}"
            )
        found = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.network = cast(Any, module.network).to(found).eval()
        self.tokenizer = require_tokenizer(module)
        self.prefix, self.max_new_tokens = prefix, max_new_tokens
        self.search: dict[str, Any] = {"do_sample": False, "num_beams": beams}
        if beams is None:
            draw = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
            self.search = {**draw, "num_beams": 1, "early_stopping": False}

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> list[str]:
        """Translate texts; draws are from torch's global generator."""
        batch = source_batch(self.network, self.tokenizer, [self.prefix + text for text in texts])
        most = self.max_new_tokens or 2 * batch["input_ids"].shape[1] + 16
        if (places := usable_positions(self.network.get_decoder())) is not None:
            most = min(most, places - 1)
        rows = self.network.generate(**batch, **self.search, max_new_tokens=most)
        written = self.tokenizer.batch_decode(rows, skip_special_tokens=True)
        return [text.strip() for text in written]


class CommandTranslator:
    """Translates with a program that reads a text a line and writes its translation a line.

    It is started once for each batch, without a shell. What a text has of line breaks and other
    runs of white space becomes one space.

    Args:
        command: the program and its arguments.

    Example:
        >>> CommandTranslator(["tr", "a-z", "A-Z"])(["a cat", "dogs"])
        ['A CAT', 'DOGS']
    """

    def __init__(self, command: Sequence[str]) -> None:
        if not command or not all(isinstance(word, str) for word in command):
            raise ValueError(
                "a command is a list of words, as in ['apertium', '-u', 'en-es'], got "
                f"{list(command)!r}"
            )
        self.command = list(command)

    def __call__(self, texts: list[str]) -> list[str]:
        """Translate texts.

        Raises:
            ValueError: there is no such program, it fails, or it writes more or fewer lines.
        """
        lines = "".join(" ".join(text.split()) + "\n" for text in texts)
        name = shlex.join(self.command)
        try:
            done = subprocess.run(
                self.command, input=lines.encode(), capture_output=True, check=False
            )
        except OSError as error:
            raise ValueError(f"cannot run the command {name}: {error.strerror}") from error
        said = done.stderr.decode(errors="replace").strip()[-_STDERR:]
        said = f"; it says: {said}" if said else ""
        if done.returncode:
            raise ValueError(f"the command {name} failed with code {done.returncode}{said}")
        try:
            written = done.stdout.decode().removesuffix("\n").split("\n") if done.stdout else []
        except UnicodeDecodeError as error:
            raise ValueError(f"the command {name} writes no UTF-8: {error}{said}") from error
        if len(written) != len(texts):
            raise ValueError(
                f"the command {name} was given {len(texts)} lines and wrote {len(written)}; it has "
                f"to write one for each{said}"
            )
        return [line.strip() for line in written]


def make_translator(
    given: str | os.PathLike[str] | Sequence[str] | Translator,
    argument: str,
    prefix: str,
    temperature: float,
    beams: int | None,
    max_new_tokens: int | None,
    device: str | None,
) -> Translator:
    """Return what translates.

    Args:
        given: folder or hub name of a model, the words of a command, or a function from a list of
            texts to a list of as many.
        argument: its name, for errors.
        prefix: as of `ModelTranslator`, as all further ones; before the texts of a command or
            function too.
        temperature: of a model.
        beams: of a model.
        max_new_tokens: of a model.
        device: of a model.

    Raises:
        TypeError: it is none of these.
    """
    if isinstance(given, str | os.PathLike):
        name = os.fspath(given)
        return ModelTranslator(name, prefix, temperature, beams, max_new_tokens, device)
    if isinstance(given, Sequence):
        given = CommandTranslator(given)
    if not callable(given):
        raise TypeError(
            f"{argument} must be a model's folder or hub name, a list of words that are a command, "
            f"or a function, got {type(given).__name__}"
        )
    function = given

    def translate(texts: list[str]) -> list[str]:
        written = function([prefix + text for text in texts])
        if not isinstance(written, Sequence) or not all(isinstance(text, str) for text in written):
            raise TypeError(f"{argument} has to return a list of texts, got {written!r:.200}")
        if len(written) != len(texts):
            raise ValueError(
                f"{argument} was given {len(texts)} texts and returned {len(written)}; it has to "
                "return one for each"
            )
        return list(written)

    return translate


def translator_name(given: str | os.PathLike[str] | Sequence[str] | Translator) -> str:
    """Say what translates, the same in each process.

    Example:
        >>> translator_name(["tr", "a-z", "A-Z"]), translator_name(len)
        ('tr a-z A-Z', 'builtins.len')
    """
    if isinstance(given, str | os.PathLike):
        path = Path(given)
        return str(path.absolute()) if path.exists() else os.fspath(given)
    if isinstance(given, Sequence):
        return shlex.join(given)
    home, name = getattr(given, "__module__", ""), getattr(given, "__qualname__", None)
    return f"{home}.{name or type(given).__qualname__}"
