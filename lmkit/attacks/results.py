"""What an attack gives: each text and what became of it, and what they say of the classifier."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.table import Table

from ..cache import write_whole

__all__ = ["AttackReport", "AttackResult", "WordChange"]

Status = Literal["succeeded", "failed", "skipped"]


class WordChange(NamedTuple):
    """A word that was replaced.

    Attributes:
        place: among the words of `split_words`, from 0.
        before: the word.
        after: what stands there now.
    """

    place: int
    before: str
    after: str


@dataclass(frozen=True)
class AttackResult:
    """What became of one text.

    Attributes:
        index: of the example.
        status: `"succeeded"`; `"failed"`; or `"skipped"`, since it was classified wrongly before.
        original: the text.
        adversarial: the text that was found; of a failed attack the least certain one.
        inputs: what the classifier read then: that text, or the pair that it is in.
        label: number of the right class.
        probabilities: of the original.
        adversarial_probabilities: of what was found.
        changes: words that were replaced.
        words: how many words the text has, signs not counted.
        queries: distinct texts that the classifier was asked about, the original among them.
        similarity: of both texts, where the attack keeps to one.
    """

    index: int
    status: Status
    original: str
    adversarial: str
    inputs: tuple[str, ...]
    label: int
    probabilities: list[float]
    adversarial_probabilities: list[float]
    changes: list[WordChange]
    words: int
    queries: int
    similarity: float | None = None

    @property
    def prediction(self) -> int:
        """Number of the class that `adversarial` is taken for."""
        row = self.adversarial_probabilities
        return row.index(max(row))

    @property
    def changed_share(self) -> float:
        """Replaced words as a share of all."""
        return len(self.changes) / self.words if self.words else 0.0


@dataclass(frozen=True)
class AttackReport:
    """What an attack on many texts gave.

    Attributes:
        results: one for each text, in their order.
        label_names: of the classes, if they have names.
        constraints: the attack and what it kept to, as plain data.
        texts_read: how many texts the classifier read.
        seconds: that the attack took.
    """

    results: list[AttackResult]
    label_names: list[str] | None
    constraints: Mapping[str, Any]
    texts_read: int
    seconds: float

    def count(self, status: Status) -> int:
        """Return how many results are of a status."""
        return sum(result.status == status for result in self.results)

    @property
    def clean_accuracy(self) -> float:
        """Share of the texts that are classified rightly before the attack."""
        return 1 - self.count("skipped") / len(self.results)

    @property
    def accuracy_under_attack(self) -> float:
        """Share of the texts that are classified rightly before and after it."""
        return self.count("failed") / len(self.results)

    @property
    def success_rate(self) -> float | None:
        """Share of the attacked texts, all that were right before, that it flipped."""
        attacked = len(self.results) - self.count("skipped")
        return self.count("succeeded") / attacked if attacked else None

    @property
    def mean_changed_share(self) -> float | None:
        """Mean share of replaced words, of the attacks that succeeded."""
        return _mean([r.changed_share for r in self.results if r.status == "succeeded"])

    @property
    def mean_queries(self) -> float | None:
        """Mean number of distinct texts asked about, of all texts that were attacked."""
        return _mean([r.queries for r in self.results if r.status != "skipped"])

    @property
    def mean_similarity(self) -> float | None:
        """Mean similarity, of the attacks that succeeded, where the attack kept to one."""
        found = [r.similarity for r in self.results if r.status == "succeeded"]
        return _mean([value for value in found if value is not None])

    def summary(self) -> dict[str, Any]:
        """Return the figures, and what the attack kept to, as plain data."""
        return {
            "texts": len(self.results),
            "clean_accuracy": self.clean_accuracy,
            "accuracy_under_attack": self.accuracy_under_attack,
            "success_rate": self.success_rate,
            "mean_changed_share": self.mean_changed_share,
            "mean_queries": self.mean_queries,
            "mean_similarity": self.mean_similarity,
            "texts_read": self.texts_read,
            "seconds": self.seconds,
            "constraints": dict(self.constraints),
        }

    def table(self) -> Table:
        """Return the figures as a table for a terminal."""
        said = self.summary()
        kept = said.pop("constraints")
        table = Table(
            title=str(kept.get("attack", "attack")),
            caption=", ".join(f"{n}={v}" for n, v in kept.items() if n != "attack"),
            caption_justify="left",
            show_header=False,
        )
        attacked, flipped = len(self.results) - self.count("skipped"), self.count("succeeded")
        rows = {
            "texts": f"{len(self.results):,}",
            "clean accuracy": _percent(self.clean_accuracy),
            "accuracy under attack": _percent(self.accuracy_under_attack),
            "success rate": f"{_percent(self.success_rate)} ({flipped:,} of {attacked:,})",
            "words changed": _percent(self.mean_changed_share),
            "queries for a text": _number(self.mean_queries),
            "similarity": _number(self.mean_similarity),
        }
        for name, value in rows.items():
            table.add_row(name, value)
        return table

    def rows(
        self, statuses: Sequence[Status] = ("succeeded", "failed", "skipped")
    ) -> list[dict[str, Any]]:
        """Return the results as plain data.

        Each has `text`, what was found (of a pair `text` and `text_pair`), and `label`, the right
        class, by name if it has one, and so can be trained on; and `original`, `status`,
        `prediction`, `probabilities`, `adversarial_probabilities`, `changes`, `changed_share`,
        `queries`, `similarity` and `source_index`.

        Args:
            statuses: those that are wanted.
        """
        return [self._row(result) for result in self.results if result.status in statuses]

    def write(
        self, path: str | os.PathLike[str], statuses: Sequence[Status] = ("succeeded",)
    ) -> Path:
        """Write results as JSON lines, and return where; to train on, those that succeeded.

        Args:
            path: of the `.jsonl`.
            statuses: those that are wanted.

        Raises:
            ValueError: there are none, or the file has another ending.
        """
        if Path(path).suffix not in (".jsonl", ".json"):
            raise ValueError(f"{path} must end in .jsonl: what is written are JSON lines")
        rows = self.rows(statuses)
        if not rows:
            raise ValueError(
                f"there is nothing to write: of {len(self.results)} attacks none is "
                f"{' or '.join(statuses)}"
            )
        place = Path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        write_whole(place, "".join(lines))
        return place

    def _row(self, result: AttackResult) -> dict[str, Any]:
        return {
            **dict(zip(("text", "text_pair"), result.inputs, strict=False)),
            "label": self._name(result.label),
            "original": result.original,
            "status": result.status,
            "prediction": self._name(result.prediction),
            "probabilities": result.probabilities,
            "adversarial_probabilities": result.adversarial_probabilities,
            "changes": [change._asdict() for change in result.changes],
            "changed_share": result.changed_share,
            "queries": result.queries,
            "similarity": result.similarity,
            "source_index": result.index,
        }

    def _name(self, number: int) -> int | str:
        return number if self.label_names is None else self.label_names[number]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
