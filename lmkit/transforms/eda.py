"""EDA: one of four simple changes to each text."""

from __future__ import annotations

from .arguments import check_rate
from .base import Transform
from .combine import OneOf
from .random_words import RandomDeletion, RandomSwap
from .synonyms import RandomInsertion, SynonymReplacement

__all__ = ["EDA"]


class EDA(OneOf):
    r"""Does one of four changes, drawn anew for each text (arXiv:1901.11196).

    Synonym replacement, random insertion and random swap of $n = \max(1, \lfloor \alpha L \rfloor)$
    words, or random deletion of each word with a probability. A change whose rate is 0 is never
    drawn. The paper makes several texts of one before training; here each epoch draws another.

    Args:
        replacement: $\alpha$ of `SynonymReplacement`, in `[0, 1]`.
        insertion: $\alpha$ of `RandomInsertion`, in `[0, 1]`.
        swap: $\alpha$ of `RandomSwap`, in `[0, 1]`.
        deletion: rate of `RandomDeletion`, in `[0, 1]`.
        source: of the synonyms, see `SynonymReplacement`.
        senses: of the synonyms, see `SynonymReplacement`.
        rare: of the synonyms, see `SynonymReplacement`.

    Raises:
        ValueError: a number lies outside its range, or all four are 0.
        FileNotFoundError: at first use, there is no WordNet; says how it is installed.

    Example:
        >>> from lmkit.transforms import example_rng
        >>> swap = EDA(replacement=0, insertion=0, deletion=0)
        >>> swap(["a", "b"], None, example_rng(0, 0, 0)).words
        ['b', 'a']
    """

    def __init__(
        self,
        replacement: float = 0.1,
        insertion: float = 0.1,
        swap: float = 0.1,
        deletion: float = 0.1,
        source: str | None = None,
        senses: int = 2,
        rare: bool = False,
    ) -> None:
        rates = {"replacement": replacement, "insertion": insertion, "swap": swap}
        for name, value in {**rates, "deletion": deletion}.items():
            check_rate(name, value)
        self.replacement, self.insertion = replacement, insertion
        self.swap, self.deletion = swap, deletion
        self.source, self.senses, self.rare = source, senses, rare
        parts: list[tuple[float, Transform]] = [
            (replacement, SynonymReplacement(replacement, source, senses, rare)),
            (insertion, RandomInsertion(insertion, source, senses, rare)),
            (swap, RandomSwap(swap)),
            (deletion, RandomDeletion(deletion)),
        ]
        used = [part for rate, part in parts if rate]
        if not used:
            raise ValueError("one of replacement, insertion, swap and deletion must be above 0")
        super().__init__(used)
