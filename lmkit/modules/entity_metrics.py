"""Metrics of tagged words: entities as `seqeval` counts them, and the words themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from ..functional.tagging import count_entities, parse_tag
from ..types import IGNORE_INDEX

__all__ = [
    "EntityF1",
    "EntityPrecision",
    "EntityRecall",
    "EntityTypes",
    "WordAccuracy",
    "WordConfusion",
    "confusion_rows",
    "entity_rows",
]


class EntityTypes(Metric):
    """Counts the entities of each type that were found, predicted and there.

    The counts are added over batches and ranks and divided once, so that the scores are those of
    the whole data set, and equal to `seqeval`'s.

    Args:
        labels: the tags by number, e.g. `["O", "B-PER", "I-PER"]`, of any scheme.
        strict: read BIO (IOB2) alone, where an I with nothing to continue is no entity; by default
            it begins one, as `seqeval` and the `conlleval` of CoNLL-2000 have it.

    Raises:
        ValueError: a label is no tag of an entity.

    Example:
        >>> metric = EntityTypes(["O", "B-PER", "I-PER"])
        >>> metric.update(torch.tensor([[1, 2, 0]]), torch.tensor([[1, 0, 1]]))
        >>> metric.types, metric.compute().tolist()
        (['PER'], [[0, 1, 2]])
    """

    full_state_update = False
    counts: Tensor
    _prefixes: Tensor
    _kinds: Tensor

    def __init__(self, labels: Sequence[str], strict: bool = False) -> None:
        super().__init__()
        parsed = [parse_tag(label) for label in labels]
        #: The types, sorted: the rows of the counts.
        self.types = sorted({kind for _, kind in parsed if kind})
        self.strict = strict
        prefixes = ["OBIES".index(prefix) for prefix, _ in parsed]
        kinds = [self.types.index(kind) if kind else 0 for _, kind in parsed]
        self.register_buffer("_prefixes", torch.tensor(prefixes), persistent=False)
        self.register_buffer("_kinds", torch.tensor(kinds), persistent=False)
        zeros = torch.zeros(len(self.types), 3, dtype=torch.int64)
        self.add_state("counts", zeros, dist_reduce_fx="sum")

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        """Add some sentences.

        Args:
            predictions: int64 `[B, W]`, a label for each word; -1, no prediction, counts as `O`.
            labels: int64 `[B, W]`; -100 where there is no word.
        """
        made = count_entities(
            predictions, labels, self._prefixes, self._kinds, len(self.types), self.strict
        )
        # Not in place, as in `TokenMean`.
        self.counts = self.counts + torch.stack(made, 1)

    def compute(self) -> Tensor:
        """Return hits, predicted and gold entities of each type, int64 `[T, 3]`."""
        return self.counts


class EntityF1(EntityTypes):
    r"""$F_1 = 2 \cdot \text{hits} / (\text{predicted} + \text{gold})$ over entities of all types.

    An entity is right if its first word, its last one and its type are (CoNLL-2003,
    arXiv:cs/0306050). 0 where there is no entity.

    Args:
        labels: as of `EntityTypes`.
        strict: as of `EntityTypes`.

    Example:
        >>> metric = EntityF1(["O", "B-PER", "I-PER"])
        >>> metric.update(torch.tensor([[1, 2, 1]]), torch.tensor([[1, 2, 0]]))
        >>> round(metric.compute().item(), 4)
        0.6667
    """

    def compute(self) -> Tensor:
        """Return the score over all batches and ranks so far, a scalar in `[0, 1]`."""
        hits, predicted, gold = self.counts.sum(0)
        score: Tensor = 2 * hits / (predicted + gold).clamp(min=1)
        return score


class EntityPrecision(EntityTypes):
    """Share of the predicted entities that are right; 0 where none is predicted.

    Args:
        labels: as of `EntityTypes`.
        strict: as of `EntityTypes`.

    Example:
        >>> metric = EntityPrecision(["O", "B-PER", "I-PER"])
        >>> metric.update(torch.tensor([[1, 2, 1]]), torch.tensor([[1, 2, 0]]))
        >>> metric.compute().item()
        0.5
    """

    def compute(self) -> Tensor:
        """Return the share over all batches and ranks so far, a scalar in `[0, 1]`."""
        hits, predicted, _ = self.counts.sum(0)
        share: Tensor = hits / predicted.clamp(min=1)
        return share


class EntityRecall(EntityTypes):
    """Share of the entities in the data that are found; 0 where there is none.

    Args:
        labels: as of `EntityTypes`.
        strict: as of `EntityTypes`.

    Example:
        >>> metric = EntityRecall(["O", "B-PER", "I-PER"])
        >>> metric.update(torch.tensor([[1, 2, 1]]), torch.tensor([[1, 2, 0]]))
        >>> metric.compute().item()
        1.0
    """

    def compute(self) -> Tensor:
        """Return the share over all batches and ranks so far, a scalar in `[0, 1]`."""
        hits, _, gold = self.counts.sum(0)
        share: Tensor = hits / gold.clamp(min=1)
        return share


class WordAccuracy(Metric):
    """Share of the words whose tag is right; a word without a prediction is wrong.

    Args:
        outside: the label that a word without a prediction (-1) counts as, such as that of `O`;
            `None` where there is none.

    Example:
        >>> metric = WordAccuracy()
        >>> metric.update(torch.tensor([[1, 0, -1, 3]]), torch.tensor([[1, 1, 2, -100]]))
        >>> round(metric.compute().item(), 4)
        0.3333
    """

    full_state_update = False
    right: Tensor
    words: Tensor

    def __init__(self, outside: int | None = None) -> None:
        super().__init__()
        self.outside = -1 if outside is None else outside
        for name in ("right", "words"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        """Add some sentences, as `EntityTypes.update`."""
        predictions = predictions.masked_fill(predictions < 0, self.outside)
        self.right = self.right + (predictions == labels).sum()
        self.words = self.words + (labels != IGNORE_INDEX).sum()

    def compute(self) -> Tensor:
        """Return the share over all batches and ranks so far, a scalar in `[0, 1]`."""
        return self.right / self.words.clamp(min=1)


class WordConfusion(Metric):
    """Counts how often each tag was taken for each other.

    Args:
        label_count: $C$.

    Example:
        >>> metric = WordConfusion(2)
        >>> metric.update(torch.tensor([[1, 0, -1, 1]]), torch.tensor([[1, 1, 0, -100]]))
        >>> metric.compute().tolist()
        [[0, 0, 1], [1, 1, 0]]
    """

    full_state_update = False
    matrix: Tensor

    def __init__(self, label_count: int) -> None:
        super().__init__()
        zeros = torch.zeros(label_count, label_count + 1, dtype=torch.int64)
        self.add_state("matrix", zeros, dist_reduce_fx="sum")

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        """Add some sentences, as `EntityTypes.update`."""
        rows, columns = self.matrix.shape
        word = labels != IGNORE_INDEX
        # -1, no prediction, goes to the last column.
        cells = labels[word] * columns + predictions[word] % columns
        one = torch.ones_like(cells)
        made = torch.zeros(rows * columns, dtype=torch.int64, device=cells.device)
        self.matrix = self.matrix + made.scatter_add(0, cells, one).reshape(rows, columns)

    def compute(self) -> Tensor:
        """Return words by label and prediction, int64 `[C, C + 1]`; last, without a prediction."""
        return self.matrix


def entity_rows(types: Sequence[str], counts: Tensor) -> list[dict[str, Any]]:
    """Return precision, recall, F1 and numbers of each type, and of all.

    Args:
        types: the names of the rows.
        counts: int64 `[T, 3]`, hits, predicted and gold.

    Example:
        >>> entity_rows(["PER"], torch.tensor([[1, 1, 3]]))[0]
        {'type': 'PER', 'precision': 1.0, 'recall': 0.3333, 'f1': 0.5, 'gold': 3, 'predicted': 1}
    """
    named = [*zip(types, counts.tolist(), strict=True), ("all", counts.sum(0).tolist())]
    return [{"type": name, **_scores(*numbers)} for name, numbers in named]


def confusion_rows(labels: Sequence[str], matrix: Tensor) -> list[dict[str, Any]]:
    """Return precision, recall, F1 and numbers of each tag.

    Args:
        labels: the tags by number.
        matrix: int64 `[C, C + 1]` of `WordConfusion`.

    Example:
        >>> confusion_rows(["X", "Y"], torch.tensor([[2, 0, 0], [2, 0, 0]]))[0]
        {'tag': 'X', 'precision': 0.5, 'recall': 1.0, 'f1': 0.6667, 'gold': 2, 'predicted': 4}
    """
    counts = zip(
        matrix.diagonal().tolist(), matrix.sum(0).tolist()[:-1], matrix.sum(1).tolist(), strict=True
    )
    return [{"tag": name, **_scores(*each)} for name, each in zip(labels, counts, strict=True)]


def _scores(hits: int, predicted: int, gold: int) -> dict[str, Any]:
    return {
        "precision": round(hits / max(1, predicted), 4),
        "recall": round(hits / max(1, gold), 4),
        "f1": round(2 * hits / max(1, predicted + gold), 4),
        "gold": gold,
        "predicted": predicted,
    }
