"""Other views of a batch: what a network should say the same of as of the batch itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from torch import Tensor

from ..functional import mix
from ..functional.cutoff import cut_features, cut_span, cut_tokens
from ..types import VIEW_PREFIX, Batch, Objective, StepOutput
from .adversary import Adversary, check_share
from .perturbed_embedding import Move, PerturbedEmbedding, Tokens, tokens_of

if TYPE_CHECKING:
    from .consistency import ConsistencyCallback, Seen

__all__ = [
    "CUTOFFS",
    "AdversarialView",
    "BatchView",
    "CutoffView",
    "TokenDropoutView",
    "View",
    "has_view",
]

#: What cutoff may take away.
CUTOFFS = ("token", "span", "feature")

# The stream of what is cut off, beside that of starts.
_CUT = 0x5851F42D


class View:
    """Runs an objective on another view of a batch: here, the batch itself with other dropout.

    What a subclass changes is the batch, the embeddings or both. Its predictions have to be of the
    same items, in the same order.
    """

    def check(self, owner: ConsistencyCallback) -> None:
        """Check, when a training begins, that the view can be made."""

    def __call__(
        self, owner: ConsistencyCallback, objective: Objective, batch: Batch, seen: Seen
    ) -> StepOutput:
        """Return what the objective says of the other view.

        Args:
            owner: knows the module and its embedding layers.
            objective: from a batch to its result.
            batch: of the step.
            seen: the first pass over it.
        """
        return owner.run(objective, batch)


class BatchView(View):
    """The view that a data module has put into the batch, under names that begin with `view_`.

    `view_input_ids`, `view_attention_mask` and so on take the places of `input_ids`,
    `attention_mask` ...; other entries, such as the labels, are of both.
    """

    def __call__(
        self, owner: ConsistencyCallback, objective: Objective, batch: Batch, seen: Seen
    ) -> StepOutput:
        """Return what the objective says of the view in the batch."""
        other = {
            n.removeprefix(VIEW_PREFIX): t for n, t in batch.items() if n.startswith(VIEW_PREFIX)
        }
        plain = {n: t for n, t in batch.items() if not n.startswith(VIEW_PREFIX)}
        return owner.run(objective, {**plain, **other})


def has_view(batch: Batch) -> bool:
    """Whether a data module has put another view into a batch.

    Example:
        >>> has_view({"input_ids": Tensor(), "view_input_ids": Tensor()})
        True
    """
    return any(name.startswith(VIEW_PREFIX) for name in batch)


class CutoffView(View):
    """The batch with some of its embeddings set to zero (arXiv:2009.13818).

    What is cut off is drawn anew in each epoch, by the text: neither batch nor rank matters.

    Args:
        kind: `token` cuts off single tokens, `span` tokens in a row, `feature` the same numbers of
            all tokens; special tokens stay whole.
        ratio: share that is cut off, in `[0, 1]`.

    Raises:
        ValueError: an option lies outside its range.
    """

    def __init__(self, kind: Literal["token", "span", "feature"], ratio: float) -> None:
        if kind not in CUTOFFS:
            raise ValueError(f"cutoff must be one of {', '.join(CUTOFFS)}, got {kind!r}")
        check_share("ratio", ratio, 0.0, 1.0)
        self.kind, self.ratio = kind, ratio

    def __call__(
        self, owner: ConsistencyCallback, objective: Objective, batch: Batch, seen: Seen
    ) -> StepOutput:
        """Return what the objective says of the batch with less in it."""
        stream = mix(owner.stream, _CUT)
        return owner.run(objective, batch, self._move(stream))

    def _move(self, stream: int) -> Move:
        def cut(number: int, tokens: Tokens, embedded: Tensor) -> Tensor:
            gone = self._cut(tokens, embedded.shape[-1], mix(stream, number))
            return embedded.masked_fill(gone, 0.0)

        return cut

    def _cut(self, tokens: Tokens, width: int, stream: int) -> Tensor:
        keys, free = tokens.text_keys(stream), tokens.free.squeeze(-1)
        if self.kind == "feature":
            texts = keys[:, :1] if tokens.segments is None else keys
            return cut_features(texts, width, self.ratio) & tokens.free
        if self.kind == "span":
            return cut_span(keys, free, self.ratio, tokens.segments).unsqueeze(-1)
        how = keys, free, self.ratio, tokens.segments
        return cut_tokens(tokens.keys(stream), *how).unsqueeze(-1)


class TokenDropoutView(View):
    """The batch with some tokens replaced by the mask token, or the unknown one.

    Args:
        ratio: share of the tokens of each text that are replaced, in `[0, 1]`; never special ones.

    Raises:
        ValueError: the ratio lies outside its range; in `check`, the tokenizer has neither token.
    """

    def __init__(self, ratio: float) -> None:
        check_share("ratio", ratio, 0.0, 1.0)
        self.ratio = ratio

    def check(self, owner: ConsistencyCallback) -> None:
        """Check that there is something to put in a token's place."""
        self._replacement(owner)

    def __call__(
        self, owner: ConsistencyCallback, objective: Objective, batch: Batch, seen: Seen
    ) -> StepOutput:
        """Return what the objective says of the batch with gaps in it."""
        ids, embedding = batch["input_ids"], owner.embedding
        assert isinstance(embedding, PerturbedEmbedding)
        tokens = tokens_of(ids, batch, embedding.special, owner.offset)
        stream = mix(owner.stream, _CUT)
        how = tokens.free.squeeze(-1), self.ratio, tokens.segments
        gone = cut_tokens(tokens.keys(stream), tokens.text_keys(stream), *how)
        other = ids.masked_fill(gone.reshape(ids.shape), self._replacement(owner))
        return owner.run(objective, {**batch, "input_ids": other})

    def _replacement(self, owner: ConsistencyCallback) -> int:
        tokenizer = owner.module.tokenizer
        for name in ("mask_token_id", "unk_token_id"):
            found = getattr(tokenizer, name, None)
            if isinstance(found, int):
                return found
        raise ValueError(
            "view='token_dropout' puts the mask or the unknown token in a token's place, and the "
            "tokenizer has neither: take view='token_cutoff'"
        )


class AdversarialView(View):
    r"""The batch with its embeddings moved to where the prediction differs most (VAT).

    $\delta = \epsilon\, g / \lVert g \rVert$ with
    $g = \nabla_d \mathrm{KL}(p(0) \| p(d))$ at a random $d$ of norm $\xi \epsilon$ (Miyato et al.
    2017, arXiv:1704.03976). No label is needed. All passes have the dropout of the first.

    Args:
        adversary: keeps the perturbations; also the owner's, which takes up each call with it.
        probe: $\xi$, over 0.
        steps: how often the direction is sought, each time from where the last one led; at least 1.
    """

    def __init__(self, adversary: Adversary, probe: float = 0.5, steps: int = 1) -> None:
        self.adversary, self.probe, self.steps = adversary, probe, steps

    def __call__(
        self, owner: ConsistencyCallback, objective: Objective, batch: Batch, seen: Seen
    ) -> StepOutput:
        """Return what the objective says of the worst neighbours."""
        adversary = self.adversary
        adversary.start(self.probe, "normal")
        for number in range(self.steps):
            found = owner.ascent(objective, batch, seen, "forward")
            adversary.aim(found, 1.0 if number == self.steps - 1 else self.probe)
        seen.before.restore()
        return owner.run(objective, batch, adversary.move)
