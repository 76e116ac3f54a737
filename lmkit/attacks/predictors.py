"""What is attacked: probabilities of texts, from a module, an export or any function."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..loading import load
from ..modules import SequenceClassificationModule
from ..modules.checks import require_tokenizer
from ..modules.generation import evaluating
from ..modules.network_inputs import network_inputs
from ..modules.sentence_vectors import sorted_batches
from ..modules.word_predictions import label_list
from .together import Asked

__all__ = ["Predictor", "Rows"]

#: Probabilities, float64 `[N, C]`.
Rows = npt.NDArray[np.float64]

# Texts at once: of a processor measured with MiniLM (benchmarks/attacks.py), of others chosen.
_OF_CPU, _OF_ACCELERATOR, _OF_FUNCTION = 16, 256, 64
# Rows that are kept; a row is asked for again within one example, hardly ever in another.
_KEPT = 100_000


class Predictor:
    """Tells the probabilities of texts, in batches of like length; of a text it knows it does not.

    Args:
        given: a `SequenceClassificationModule` with one label per text, the path of what
            `lmkit.load` makes such a one of, or a function from a list of texts to probabilities
            `[N, C]`; of pairs it gets two lists.
        batch_size: of texts; by default 16 on a processor, 256 on an accelerator, 64 of a function.

    Attributes:
        batch_size: of texts.
        label_names: of the classes; `None` of a function.
        unknown: what stands for a word that is masked.
        module: the module; `None` of a function.
        texts_read: how many texts the network has read.

    Raises:
        TypeError: it is none of these, or a module of another task.
        ValueError: it has several labels per text, or is a regression; it has no tokenizer.

    Example:
        >>> predictor = Predictor(lambda texts: [[0.3, 0.7] for _ in texts], 8)
        >>> predictor(["a", "b", "a"]).shape, predictor.texts_read
        ((3, 2), 2)
    """

    def __init__(self, given: Any, batch_size: int | None = None) -> None:
        if isinstance(given, str | os.PathLike):
            given = load(given)
        self.module: SequenceClassificationModule | None = None
        self.label_names: list[str] | None = None
        self.unknown, self.texts_read = "[UNK]", 0
        self._known = dict[Asked, Rows]()
        self._largest = 0
        usual = _OF_FUNCTION
        if isinstance(given, SequenceClassificationModule):
            self._use(given)
            usual = _OF_CPU if given.device.type == "cpu" else _OF_ACCELERATOR
        elif isinstance(given, torch.nn.Module):
            raise TypeError(
                "an attack is on a SequenceClassificationModule or on a function from texts to "
                f"probabilities, got a {type(given).__name__}"
            )
        elif callable(given):
            self._function: Callable[..., Any] = given
        else:
            raise TypeError(
                "predictor must be a SequenceClassificationModule, the path of one, or a function "
                f"from texts to probabilities, got {type(given).__name__}"
            )
        self.batch_size = batch_size or usual

    def __call__(self, texts: Sequence[Asked]) -> Rows:
        """Return the probabilities of texts, or of pairs of texts, at least one.

        Raises:
            ValueError: what a function returns are no probabilities, or not one row for each text.
        """
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        known = self._known
        if new:
            self.texts_read += len(new)
            rows = self._of_function(new) if self.module is None else self._of_module(new)
            if self._largest >= len(rows[0]):
                raise ValueError(
                    f"labels has {self._largest}, and the predictor says probabilities of "
                    f"{len(rows[0])} classes"
                )
            if len(known) + len(new) > _KEPT:
                # Not `clear`: what is known of these texts is still wanted below.
                self._known = {text: known[text] for text in texts if text in known}
                known = self._known
            known.update(zip(new, rows, strict=True))
        return np.stack([known[text] for text in texts])

    def numbers(self, labels: Sequence[int | str]) -> list[int]:
        """Return the numbers of classes, which may be given by name.

        Raises:
            ValueError: there is no such class.
        """
        names = self.label_names or []
        made = []
        for label in labels:
            if isinstance(label, str):
                if label not in names:
                    known = ", ".join(map(repr, names))
                    known = f"the classes are {known}" if names else "a function has no names"
                    raise ValueError(f"labels has {label!r}, and {known}: give numbers")
                made.append(names.index(label))
            else:
                number = int(label)
                if number != label:
                    raise ValueError(f"labels must be names or numbers of classes, got {label!r}")
                if number < 0 or (names and number >= len(names)):
                    bound = f" of {len(names)}" if names else ""
                    raise ValueError(f"labels has {number}, which is the number of no class{bound}")
                made.append(number)
        self._largest = max(made, default=0)
        return made

    def _use(self, module: SequenceClassificationModule) -> None:
        module.configure_model()
        if module.task != "single_label":
            raise ValueError(
                f"the module's task is {module.task}: an attack changes the one label of a text, "
                "and there it is not said when it has succeeded"
            )
        tokenizer: Any = require_tokenizer(module)
        self.module, self.label_names = module, label_list(module.network.config)
        self.unknown = tokenizer.unk_token or tokenizer.mask_token or self.unknown

    def _of_function(self, texts: list[Asked]) -> Rows:
        columns = _columns(texts)
        order = sorted(range(len(texts)), key=lambda n: -sum(len(column[n]) for column in columns))
        parts = []
        for first in range(0, len(order), self.batch_size):
            batch = order[first : first + self.batch_size]
            given = self._function(*([column[place] for place in batch] for column in columns))
            if isinstance(given, torch.Tensor):
                given = given.detach().cpu().double()
            try:
                rows = np.asarray(given, dtype=np.float64)
            except (TypeError, ValueError) as error:
                raise ValueError(
                    "the predictor has to return probabilities, numbers of the shape [texts, "
                    f"classes], and returned {given!r:.80}"
                ) from error
            if rows.ndim != 2 or len(rows) != len(batch):
                raise ValueError(
                    f"the predictor was given {len(batch)} texts and returned numbers of the shape "
                    f"{list(rows.shape)}; it has to return [texts, classes]"
                )
            sums = rows.sum(1)
            if not (
                np.isfinite(rows).all() and (rows >= 0).all() and np.allclose(sums, 1, atol=1e-3)
            ):
                raise ValueError(
                    "the predictor returns no probabilities, which are at least 0 and add up to 1 "
                    f"for each text (a row adds up to {sums[np.abs(sums - 1).argmax()]:.3g}); if "
                    "they are logits, take their softmax"
                )
            parts.append(rows)
        made = np.empty((len(texts), parts[0].shape[1]))
        made[order] = np.concatenate(parts)
        return made

    @torch.no_grad()
    def _of_module(self, texts: list[Asked]) -> Rows:
        assert self.module is not None
        network, tokenizer = self.module.network, require_tokenizer(self.module)
        made = np.empty((len(texts), len(self.label_names or [])))
        first, *pairs = _columns(texts)
        batches = sorted_batches(network, tokenizer, first, self.batch_size, *pairs)
        with evaluating(network):
            for places, encoded in batches:
                batch = {name: ids.to(self.module.device) for name, ids in encoded.items()}
                if network.config.pad_token_id is None:
                    # The head of a decoder looks for the last token that is no padding.
                    network.config.pad_token_id = tokenizer.pad_token_id
                logits = network(**network_inputs(network, batch)).logits
                made[places] = logits.double().softmax(-1).cpu().numpy()
        return made


def _columns(texts: Sequence[Asked]) -> list[list[str]]:
    """Return the texts, or of pairs the first and the second ones."""
    rows = [(text,) if isinstance(text, str) else text for text in texts]
    return [list(column) for column in zip(*rows, strict=True)]
