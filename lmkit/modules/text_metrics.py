"""How near written texts are to their references: BLEU, chrF and ROUGE, right over ranks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.text import rouge_score
from torchmetrics.text import CHRFScore, SacreBLEUScore

from .token_metrics import TokenMean

__all__ = ["TEXT_METRICS", "Bleu", "Chrf", "Rouge", "text_metrics"]

#: What can be asked for by name; `rouge` stands for the three of them.
TEXT_METRICS = ("bleu", "chrf", "rouge", "rouge1", "rouge2", "rougeL")


def text_metrics(names: Iterable[str]) -> dict[str, Metric]:
    """Make metrics of written texts, each to be updated with texts and references.

    Args:
        names: some of `TEXT_METRICS`.

    Returns:
        A metric for each name, and three for `rouge`.

    Raises:
        ValueError: a name is unknown.

    Example:
        >>> list(text_metrics(["bleu", "rouge"]))
        ['bleu', 'rouge1', 'rouge2', 'rougeL']
    """
    made: dict[str, Metric] = {}
    for name in names:
        if name not in TEXT_METRICS:
            raise ValueError(f"metrics must be some of {', '.join(TEXT_METRICS)}, got {name!r}")
        if name == "bleu":
            made[name] = Bleu()
        elif name == "chrf":
            made[name] = Chrf()
        else:
            for key in ("rouge1", "rouge2", "rougeL") if name == "rouge" else (name,):
                made[key] = Rouge(key)
    return made


class Bleu(SacreBLEUScore):
    """Corpus BLEU over the tokens of sacreBLEU's `13a`, with case, from 0 to 100.

    The counts of n-grams are added over batches and ranks, and the score is made of the sums
    (arXiv:1804.08771).

    Example:
        >>> metric = Bleu()
        >>> metric.update(["a cat sat on the mat", "yes"], ["a cat sat on the mat", "no"])
        >>> round(metric.compute().item(), 1)
        96.2
    """

    def update(self, preds: Sequence[str], target: Sequence[str]) -> None:  # type: ignore[override]
        """Add texts, and one reference for each."""
        _own_states(self)
        super().update(preds, [[text] for text in target])

    def compute(self) -> Tensor:
        """Return the score of all texts so far."""
        return 100 * super().compute()


class Chrf(CHRFScore):
    """Corpus chrF: the F-score, with recall weighing twice, of n-grams of up to 6 characters.

    From 0 to 100. Spaces do not count, and case does; without words, as sacreBLEU's `chrF2` is by
    default (doi:10.18653/v1/W15-3049).

    Example:
        >>> metric = Chrf()
        >>> metric.update(["a small cat"], ["a small cat"])
        >>> metric.compute().item()
        100.0
    """

    def __init__(self) -> None:
        super().__init__(n_word_order=0)

    def update(self, preds: Sequence[str], target: Sequence[str]) -> None:  # type: ignore[override]
        """Add texts, and one reference for each."""
        _own_states(self)
        super().update(preds, [[text] for text in target])

    def compute(self) -> Tensor:
        """Return the score of all texts so far."""
        return 100 * cast(Tensor, super().compute())


class Rouge(TokenMean):
    """Mean over texts of the F-score of ROUGE (Lin 2004, W04-1013), from 0 to 100.

    It is that of Google's `rouge-score` without stemming: of lower-case runs of the letters a to z
    and digits, so that it tells little of texts in other scripts.

    Args:
        key: `rouge1` or `rouge2` for n-grams, `rougeL` for the longest common subsequence.

    Example:
        >>> metric = Rouge("rouge1")
        >>> metric.update(["the cat", "a dog"], ["the cat", "the dog"])
        >>> metric.compute().item()
        75.0
    """

    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key

    def update(self, preds: Sequence[str], target: Sequence[str]) -> None:  # type: ignore[override]
        """Add texts, and one reference for each."""
        if preds:
            scores = rouge_score(list(preds), list(target), rouge_keys=self.key)
            mean = 100 * scores[f"{self.key}_fmeasure"]
            super().update(mean.to(self.total.device), torch.tensor(len(preds)))


def _own_states(metric: Metric) -> None:
    # torchmetrics adds in place, which tensors that a validation made in inference mode refuse
    # in a fit that follows it.
    for name, state in metric.metric_state.items():
        setattr(metric, name, cast(Tensor, state).clone())
