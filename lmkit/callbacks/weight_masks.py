"""The masks of a network's weights, and what they are chosen by, for the callback that prunes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..functional.pruning import move_scores, prune, random_scores, wanda_scores

__all__ = ["PrunedWeight", "WeightMasks"]


class PrunedWeight(NamedTuple):
    """A weight that is pruned.

    Attributes:
        weight: `[out, in]`, or `[in, out]` if it is turned.
        is_turned: whether it is that of transformers' `Conv1D`.
    """

    weight: nn.Parameter
    is_turned: bool = False


class WeightMasks:
    r"""Chooses which weights are zero, and keeps them so.

    A weight that was zero at the start counts as pruned. By every criterion but movement a pruned
    weight stays pruned. By movement each weight has a score $S$, to which a step is taken whenever
    the optimizer takes one, and what a pruned weight was before is held: its score moves on with
    it, and it comes back with that value if its score rises. Once the masks are settled scores and
    held values are dropped.

    Args:
        criterion: of `functional.pruning.CRITERIA`.
        scope: of `functional.pruning.SCOPES`.
        pattern: N and M.
        seed: of the criterion `random`.
        score_rate: $\eta$ of the scores of movement.
        penalty: $\lambda$ of soft movement, for the mean of $\sigma(S)$ over all weights.

    Example:
        >>> masks = WeightMasks("magnitude", "local")
        >>> masks.start({"w": PrunedWeight(nn.Parameter(torch.tensor([[1.0, -3.0, 2.0]])))}, 0.7)
        >>> masks.choose(0.7)
        >>> masks.weights["w"].weight
        Parameter containing:
        tensor([[ 0., -3.,  0.]], requires_grad=True)
    """

    def __init__(
        self,
        criterion: str,
        scope: str,
        pattern: tuple[int, int] | None = None,
        seed: int = 0,
        score_rate: float = 1.0,
        penalty: float = 0.0,
    ) -> None:
        self.criterion, self.scope, self.pattern, self.seed = criterion, scope, pattern, seed
        self.score_rate, self.penalty = score_rate, penalty
        self.weights: dict[str, PrunedWeight] = {}
        #: Where each weight is zero, of its shape.
        self.pruned: dict[str, Tensor] = {}
        self.scores: dict[str, Tensor] = {}
        self.held: dict[str, Tensor] = {}
        #: Share of zeros that was last asked for, at first and at the start.
        self.level = self.initial = 0.0
        #: How many steps the scores have seen.
        self.moves = 0
        # The scores after the step that is being taken.
        self._moved: dict[str, Tensor] = {}
        self._kept: dict[str, Tensor] = {}
        self._loaded: dict[str, Any] = {}

    @property
    def by_movement(self) -> bool:
        """Whether weights are kept by their movement."""
        return self.criterion in ("movement", "soft_movement")

    @property
    def sparsity(self) -> float:
        """Share of the weights that are pruned now; looks at the device."""
        total = sum(mask.numel() for mask in self.pruned.values())
        return sum(int(mask.sum()) for mask in self.pruned.values()) / max(1, total)

    @torch.no_grad()
    def start(self, weights: Mapping[str, PrunedWeight], target: float) -> None:
        """Begin a run, or go on with what `load_state_dict` brought.

        Args:
            weights: by name.
            target: share of zeros in the end.

        Raises:
            ValueError: the state that was loaded is of other weights; or there are more zeros
                already than the target allows.
        """
        self.weights, self._moved = dict(weights), {}
        loaded, self._loaded = self._loaded, {}
        if loaded:
            self._take_up(loaded)
        else:
            self._begin(target)
        self._kept = {name: ~mask for name, mask in self.pruned.items()}
        self.apply()

    @torch.no_grad()
    def apply(self) -> None:
        """Set what is pruned to zero."""
        for name, kept in self._kept.items():
            # On a CPU several times as fast as to fill; the sum makes a zero of minus zero.
            self.weights[name].weight.mul_(kept).add_(0.0)

    @torch.no_grad()
    def apply_to(self, copies: Mapping[int, Tensor]) -> None:
        """Set the same to zero in copies of the weights, by the identities of these."""
        for name, mask in self.pruned.items():
            copy = copies.get(id(self.weights[name].weight))
            if copy is not None:
                copy.masked_fill_(mask.to(copy.device), 0.0)

    @torch.no_grad()
    def observe(self, factor: Tensor | float, owned: Collection[int]) -> None:
        """Look at the gradients before a step, and drop those of what is pruned.

        Args:
            factor: what the gradients are still to be multiplied by.
            owned: identities of the weights that the step is of.
        """
        self._moved = {}
        total = sum(scores.numel() for scores in self.scores.values())
        penalty = self.penalty / total if self.criterion == "soft_movement" and total else 0.0
        for name, (weight, _) in self.weights.items():
            if weight.grad is None or id(weight) not in owned:
                continue
            if name in self.scores:
                whole = weight.float() + self.held[name]
                # A step that a loss scaler skips has gradients that are no numbers.
                gradient = (weight.grad.float() * factor).nan_to_num_(0.0, 0.0, 0.0)
                self._moved[name] = self.scores[name].clone()
                move_scores(self._moved[name], whole, gradient, self.score_rate, penalty)
            weight.grad.mul_(self._kept[name])

    @torch.no_grad()
    def commit(self) -> None:
        """Take what was observed into the scores, once the step is done."""
        self.moves += bool(self._moved)
        self.scores |= self._moved
        self._moved = {}

    @torch.no_grad()
    def choose(self, sparsity: float, norms: Mapping[str, Tensor] | None = None) -> None:
        """Choose the weights that are zero from now on.

        Args:
            sparsity: share of zeros, of each scope.
            norms: of the inputs, `[in]`, by the weights' names; for the criterion `wanda`.

        Raises:
            ValueError: there is nothing to choose by yet.
        """
        scores = [self._score(name, norms) for name in self.weights]
        pruned = prune(scores, sparsity, self.scope, self.pattern)
        self.level = sparsity
        for (name, (weight, is_turned)), chosen in zip(self.weights.items(), pruned, strict=True):
            mask = (chosen.T if is_turned else chosen).to(weight.device).contiguous()
            if self.by_movement:
                whole = torch.where(self.pruned[name], self.held[name], weight)
                self.held[name] = whole.masked_fill(~mask, 0.0)
                weight.copy_(whole)
            else:
                mask |= self.pruned[name]
            self.pruned[name], self._kept[name] = mask, ~mask
        self.apply()

    def settle(self) -> None:
        """Let the masks be the final ones."""
        self.scores, self.held = {}, {}

    def state_dict(self) -> dict[str, Any]:
        """Return masks, scores and held values by the names of the weights; empty before a run."""
        if not self.pruned:
            return {}
        tensors = {"pruned": self.pruned, "scores": self.scores, "held": self.held}
        state: dict[str, Any] = {
            word: {name: tensor.cpu().clone() for name, tensor in part.items()}
            for word, part in tensors.items()
        }
        return {**state, "level": self.level, "initial": self.initial, "moves": self.moves}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Keep a state for the next `start`."""
        self._loaded = dict(state)

    def _begin(self, target: float) -> None:
        self.pruned = {name: weight == 0 for name, (weight, _) in self.weights.items()}
        self.level = self.initial = self.sparsity
        if self.initial > 0:
            self._refuse_zeros(target)
        self.moves = 0
        self.settle()
        if self.by_movement:
            for name, (weight, _) in self.weights.items():
                scores = torch.zeros_like(weight, dtype=torch.float32)
                # What comes pruned is never among the best.
                self.scores[name] = scores.masked_fill_(self.pruned[name], -torch.inf)
                self.held[name] = torch.zeros_like(weight)

    def _refuse_zeros(self, target: float) -> None:
        for name, mask in self.pruned.items():
            if bool(mask.all()):
                raise ValueError(
                    f"{name} is all zeros, which would be kept as pruned weights: leave it out of "
                    "the targets"
                )
        live = [self._straight(name, ~mask).float() for name, mask in self.pruned.items()]
        chosen = prune(live, target, self.scope, self.pattern)
        for (name, mask), pruned in zip(self.pruned.items(), chosen, strict=True):
            if bool((self._straight(name, mask) & ~pruned).any()):
                raise ValueError(
                    f"the weights are pruned already, to {self.initial:.1%} zeros, and in {name} "
                    f"there are more than a sparsity of {target:.1%} leaves (scope {self.scope!r}"
                    + (", pattern {}:{}".format(*self.pattern) if self.pattern else "")
                    + "): ask for more, or start from a base that is not pruned"
                )

    def _take_up(self, loaded: Mapping[str, Any]) -> None:
        shapes = {name: weight.shape for name, (weight, _) in self.weights.items()}
        masks: Mapping[str, Tensor] = loaded["pruned"]
        if shapes != {name: mask.shape for name, mask in masks.items()}:
            differ = sorted(shapes.keys() ^ masks.keys()) or sorted(shapes)
            raise ValueError(
                f"the checkpoint's masks are of {len(masks)} weights, and {len(shapes)} are to be "
                f"pruned, or their shapes differ; e.g. {differ[0]}. Give the model and targets "
                "that it was made with"
            )
        for word, own in (("pruned", self.pruned), ("scores", self.scores), ("held", self.held)):
            own.clear()
            for name in self.weights:
                if name in loaded[word]:
                    device = self.weights[name].weight.device
                    own[name] = loaded[word][name].to(device, copy=True)
        self.level, self.initial = loaded["level"], loaded["initial"]
        self.moves = loaded["moves"]

    def _score(self, name: str, norms: Mapping[str, Tensor] | None) -> Tensor:
        weight = self._straight(name, self.weights[name].weight.detach())
        if self.by_movement:
            if not self.moves:
                raise ValueError(
                    f"the criterion {self.criterion!r} has seen no step by which it could choose: "
                    "let start be later than the first step"
                )
            return self._straight(name, self.scores[name])
        if self.criterion == "random":
            scores = random_scores(weight.shape, self.seed, name)
        elif self.criterion == "wanda":
            if norms is None or name not in norms:
                raise ValueError(
                    f"the criterion 'wanda' has seen no inputs of {name}: let start be later than "
                    "the first step, and leave out of the targets what the step does not run"
                )
            scores = wanda_scores(weight.float(), norms[name])
        else:
            scores = weight.float().abs()
        pruned = self._straight(name, self.pruned[name])
        return scores.masked_fill_(pruned.to(scores.device), -torch.inf)

    def _straight(self, name: str, tensor: Tensor) -> Tensor:
        """Return a weight, or what is of its shape, as `[out, in]`."""
        return tensor.T if self.weights[name].is_turned else tensor
