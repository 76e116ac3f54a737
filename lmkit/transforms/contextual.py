"""Words replaced by what a masked language model expects in their place."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from .arguments import check_rate, check_whole
from .base import WordTransform
from .candidates import match_case
from .changes import Change
from .model_digest import model_digest
from .random_words import count_for, pick
from .stop_words import STOP_WORDS

__all__ = ["ContextualReplacement"]


class _Proposer(NamedTuple):
    """A masked language model, ready to be asked."""

    network: Any
    tokenizer: Any
    #: Whole words by id, `None` for what must not be proposed.
    words: list[str | None]
    allowed: Any
    longest: int


@lru_cache(maxsize=2)
def _proposer_of(model: str) -> _Proposer:
    # Slow to import, and only needed here.
    import torch
    from transformers import AutoModelForMaskedLM

    from ..tokenization import load_tokenizer, require_mask_token
    from .whole_words import whole_words

    tokenizer = load_tokenizer(model)
    require_mask_token(tokenizer)
    try:
        loaded: Any = AutoModelForMaskedLM.from_pretrained(model, output_loading_info=True)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model: {model!r} cannot be loaded as a masked language model: {error}"
        ) from error
    network, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"model: {model!r} is an encoder without the head of a masked language model "
            f"({missing[0]} is not there), and would propose at random: give one that has it, "
            "or train one (lmkit fit -c masked_lm_head)"
        )
    network.eval()
    size = network.get_input_embeddings().weight.shape[0]
    words: list[str | None] = [None] * size
    for word, number in whole_words(tokenizer).items():
        if number < size and word.lower() not in STOP_WORDS:
            words[number] = word
    allowed = torch.tensor([word is not None for word in words])
    positions = getattr(network.config, "max_position_embeddings", None) or 0
    # RoBERTa and its kin lose two; XLNet has -1, for no bound.
    longest = min(int(tokenizer.model_max_length), positions - 2 if positions > 2 else 512)
    return _Proposer(network, tokenizer, words, allowed, longest)


class ContextualReplacement(WordTransform):
    r"""Replaces $\max(1, \lfloor \alpha L \rfloor)$ words by ones that fit between the others.

    The words become mask tokens all at once, the model is asked once, and for each of them one of
    its `top_k` most probable words is drawn by its probability $p^{1 / T}$. It proposes neither the
    word itself nor pieces of words, special tokens, signs, numbers or stop words, and stop words
    are not replaced. So a word keeps its place in a phrase, but not always its meaning: of labels
    such as sentiment protect the words that make them. As in contextual augmentation
    (arXiv:1805.06201) without labels, and BAE-R (arXiv:2004.01970) without an attack.

    One pass of a network for each text: change texts ahead of training, or with a small model.

    Args:
        model: a folder or a name of the Hugging Face hub with a masked language model.
        alpha: in `[0, 1]`; 0 for never.
        top_k: at least 1.
        temperature: $T$, above 0.
        least_probability: of all words, what is less probable is not proposed, in `[0, 1]`.

    Raises:
        ValueError: a number lies outside its range; at first use, there is no such model, or its
            tokenizer has no mask token.

    Example:
        >>> ContextualReplacement("some/model", top_k=5).top_k
        5
    """

    def __init__(
        self,
        model: str,
        alpha: float = 0.1,
        top_k: int = 10,
        temperature: float = 1.0,
        least_probability: float = 0.0,
    ) -> None:
        if not isinstance(model, str):
            raise ValueError(f"model must be a folder or a hub name, got {model!r}")
        check_rate("alpha", alpha)
        check_whole("top_k", top_k, 1)
        check_rate("least_probability", least_probability)
        if not 0.0 < temperature < float("inf"):
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.model, self.alpha, self.top_k = model, alpha, top_k
        self.temperature, self.least_probability = temperature, least_probability

    def sources(self) -> dict[str, str]:
        """Return the digest of the model's files."""
        return {"model": model_digest(self.model)}

    def propose(self, words: Sequence[str], places: Sequence[int]) -> list[list[tuple[str, float]]]:
        """Return for each place what may stand there, with its probability, the likeliest first.

        Args:
            words: of a text.
            places: of them, those that the model shall not see. Places behind what the model can
                read get nothing.
        """
        import torch

        network, tokenizer, known, allowed, longest = _proposer_of(self.model)
        hidden = set(places)
        mask = tokenizer.mask_token
        # Of words that are hidden the tokenizer sees a mask token; of the others their letters. As
        # one text, for some tokenizers know words by the space before them.
        row = [mask if place in hidden else word for place, word in enumerate(words)]
        encoded = tokenizer(" ".join(row), truncation=True, max_length=longest, return_tensors="pt")
        masked = (encoded["input_ids"][0] == tokenizer.mask_token_id).nonzero().flatten().tolist()
        # The words themselves may hold some; of a text that is cut the last ones have no token.
        owners = [place for place, word in enumerate(row) for _ in range(word.count(mask))]
        found = {
            place: token for place, token in zip(owners, masked, strict=False) if place in hidden
        }
        with torch.no_grad():
            scores = network(**encoded).logits[0].float()
        made: list[list[tuple[str, float]]] = []
        for place in places:
            if place not in found:
                made.append([])
                continue
            chances = scores[found[place]].softmax(-1)
            open_ones = chances.masked_fill(~allowed[: len(chances)], 0.0)
            own = words[place].lower()
            # Some more than are asked for: the word itself may be among them, in other letters.
            top = open_ones.topk(min(self.top_k + 4, len(open_ones)))
            pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
            listed = [(known[i], chance) for i, chance in pairs if chance > 0.0]
            near = [(w, c) for w, c in listed if w is not None and w.lower() != own]
            near = [(w, c) for w, c in near if c >= self.least_probability]
            made.append(near[: self.top_k])
        return made

    def changes(
        self,
        words: list[str],
        free: list[int],
        rng: np.random.Generator,
        strength: float,
        groups: list[int] | None,
    ) -> list[Change]:
        """Draw words, and one of what the model proposes for each."""
        able = [p for p in free if words[p].isalpha() and words[p].lower() not in STOP_WORDS]
        count = count_for(self.alpha, len(free), strength, rng) if able else 0
        if not count:
            return []
        places = sorted(pick(count, able, rng))
        drawn = rng.random(len(places)).tolist()
        made = []
        for place, number, found in zip(places, drawn, self.propose(words, places), strict=True):
            if not found:
                continue
            # Beside the likeliest one, for low temperatures would make nothing of all of them.
            shares = np.array([c for _, c in found]) / found[0][1]
            weights = np.cumsum(shares ** (1 / self.temperature))
            chosen = int(np.searchsorted(weights, number * weights[-1], side="right"))
            new = match_case(found[min(chosen, len(found) - 1)][0], words[place])
            made.append(Change("substitute", place, place + 1, [new]))
        return made
