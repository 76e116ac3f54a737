"""Gates on units that learn which of them to shut, held to a size by a Lagrangian."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..functional.hard_concrete import (
    gate_log_alpha,
    gate_mean,
    gate_probability,
    gate_sample,
    lagrangian,
)
from ..functional.random import mix, uniform
from ..surgery.unit_gates import straight_weight
from ..surgery.units import Units, gate_units
from .unit_targets import UnitTargets

__all__ = ["LearnedGates"]

# How probable it is at the start that a gate is open: without noise it is exactly 1 then.
_OPEN = 0.99
_LARGEST = 6.0
_HALVINGS = 30

#: Joins a tensor over all ranks.
Reduce = Callable[[Tensor], Tensor]


class LearnedGates:
    r"""Trains a gate on each head and neuron to be 0 or 1, as CoFi does (arXiv:2204.00408).

    A gate is drawn from the hard concrete distribution of its $\log \alpha$, once for each
    optimizer step: a function of the seed, the step and the name, so it is the same in all batches
    of the step and on all ranks. $\log \alpha$ descends the loss by steps of Adam, within $\pm 6$.

    The expected share $\hat s$ that is left, of the parameters of the layers, or of heads and of
    neurons by themselves, is held to a target: after each step all $\log \alpha$ of a size are
    moved together by the number that meets it. CoFi adds a Lagrangian to the loss, whose
    multipliers ascend, and do not come to rest in a short run; a rate of ascent has it so.

    An evaluation sees no noise: the gates without it, of which the least probable are shut, as many
    as the target of the step asks for.

    Args:
        targets: how many units are left.
        rate: of Adam, for $\log \alpha$.
        seed: of the noise.
        ascent: rate of Adam for the multipliers of the Lagrangian; 0 for none.
    """

    def __init__(self, targets: UnitTargets, rate: float, seed: int, ascent: float = 0.0) -> None:
        self.targets, self.seed, self.ascent = targets, seed, ascent
        self.units: dict[str, Units] = {each.name: each for each in targets.units}
        self.log_alpha = {
            name: torch.full([each.count], gate_log_alpha(_OPEN), requires_grad=True)
            for name, each in self.units.items()
        }
        plan = targets.plan
        #: What the size is of: all parameters together, or each kind of units.
        self.sizes = ["parameters"] if plan.parameters is not None else plan.kinds
        self.multipliers = torch.zeros(len(self.sizes), 2, requires_grad=True)
        self._descent = torch.optim.Adam(list(self.log_alpha.values()), lr=rate)
        self._ascent = torch.optim.Adam([self.multipliers], lr=ascent, maximize=True)
        # What multiplies the units; the same tensors for the whole run.
        self.gates: dict[str, Tensor] = {}
        self._network: nn.Module | None = None
        self._handles: list[Any] = []
        self._final = self._final_shares()

    def attach(self, network: nn.Module, gradients: Mapping[str, Tensor] | None = None) -> None:
        """Put the gates in front of what reads the units.

        Args:
            network: has the units.
            gradients: what an unfinished window has gathered, by name; see `state_dict`.
        """
        self.close()
        self._network = network
        for name, each in self.units.items():
            reader: Any = network.get_submodule(each.readers[0])
            device = reader.weight.device
            self.gates[name] = torch.ones(each.count, device=device, requires_grad=True)
            if gradients and name in gradients:
                self.gates[name].grad = gradients[name].to(device, copy=True)
        self._handles = gate_units(network, self.targets.units, self.gates)

    @torch.no_grad()
    def draw(self, step: int) -> None:
        """Draw the gates of an optimizer step, for all of its batches."""
        for name, gate in self.gates.items():
            key = torch.tensor(mix(self.seed, step, *name.encode()))
            noise = uniform(key, len(gate))
            gate.copy_(gate_sample(self.log_alpha[name], noise))

    @torch.no_grad()
    def settle(self, done: float) -> None:
        """Set the gates that an evaluation sees.

        Args:
            done: which share of what is to go is gone by now.
        """
        for name, gate in self.evaluated(done).items():
            self.gates[name].copy_(gate)

    @torch.no_grad()
    def evaluated(self, done: float) -> dict[str, Tensor]:
        """Return the gates without noise, 0 where a unit is shut."""
        kept = self.targets.choose(self.scores(), done)
        means = {name: gate_mean(log_alpha) for name, log_alpha in self.log_alpha.items()}
        # A unit that stays has to be open.
        return {
            name: torch.where(kept[name], mean.clamp(min=torch.finfo(mean.dtype).eps), 0.0)
            for name, mean in means.items()
        }

    @torch.no_grad()
    def scores(self) -> dict[str, Tensor]:
        """Return how probable it is that a gate is open, times what its unit counts for."""
        known = {name: gate_probability(a) for name, a in self.log_alpha.items()}
        if self.sizes != ["parameters"]:
            return known
        per_unit = self.targets.parameters.per_unit
        return {name: probability * per_unit[name] for name, probability in known.items()}

    def step(self, step: int, factor: Tensor | float, done: float, reduce: Reduce) -> None:
        """Let the gates learn of an optimizer step's gradients, and the multipliers of the size.

        Args:
            step: the optimizer step, from 0, whose gates were drawn.
            factor: what the gradients are to be multiplied by.
            done: which share of what is to go is to be gone by now.
            reduce: takes the mean over ranks.
        """
        samples = []
        for name, gate in self.gates.items():
            noise = uniform(torch.tensor(mix(self.seed, step, *name.encode())), len(gate))
            samples.append(gate_sample(self.log_alpha[name], noise))
        flat = torch.cat(
            [
                torch.zeros_like(gate) if gate.grad is None else gate.grad
                for gate in self.gates.values()
            ]
        ).float()
        # A step that a loss scaler skips has gradients that are no numbers.
        gradients = (reduce(flat) * factor).nan_to_num(0.0, 0.0, 0.0).cpu()
        targets = {name: 1 - done * (1 - final) for name, final in self._final.items()}
        loss = (torch.cat(samples) * gradients).sum()
        if self.ascent:
            for name, pair in zip(self.sizes, self.multipliers, strict=True):
                loss = loss + lagrangian(self.expected(name), targets[name], *pair.unbind())
        self._descent.zero_grad()
        self._ascent.zero_grad()
        loss.backward()
        self._descent.step()
        self._ascent.step()
        for name in self.sizes:
            if not self.ascent:
                self._hold(name, min(_OPEN, targets[name]))
        with torch.no_grad():
            for log_alpha in self.log_alpha.values():
                log_alpha.clamp_(-_LARGEST, _LARGEST)
        self.forget()

    def forget(self) -> None:
        """Drop the gradients of a step."""
        for gate in self.gates.values():
            gate.grad = None

    def expected(self, name: str, moved: float = 0.0) -> Tensor:
        r"""Return $\hat s$, the expected share that is left.

        Args:
            name: `"parameters"`, or a kind of units.
            moved: added to each $\log \alpha$, which stays in its bounds then.
        """
        parts, total = [], 0
        parameters = self.targets.parameters
        for units in self._sized(name):
            log_alpha = self.log_alpha[units.name]
            if moved:
                log_alpha = (log_alpha + moved).clamp(-_LARGEST, _LARGEST)
            weight = parameters.per_unit[units.name] if name == "parameters" else 1
            parts.append((1 - gate_probability(log_alpha)).sum() * weight)
            total += units.count
        whole = parameters.total if name == "parameters" else total
        return 1 - torch.stack(parts).sum() / whole

    @torch.no_grad()
    def fold(self, done: float = 1.0) -> dict[str, Tensor]:
        """Multiply what is left into the weights, and take the gates away.

        Args:
            done: which share of what is to go is gone.

        Returns:
            Which units are shut, bool `[count]`, by name.
        """
        gates = self.evaluated(done)
        self.close()
        if self._network is not None:
            for name, gate in gates.items():
                for reader in self.units[name].readers:
                    layer = self._network.get_submodule(reader)
                    open_gate = torch.where(gate > 0, gate, 1.0)
                    straight_weight(layer).mul_(self._columns(name, open_gate, layer))
        return {name: gate == 0 for name, gate in gates.items()}

    @torch.no_grad()
    def bake(self, state: dict[str, Any], done: float, prefix: str) -> dict[str, Tensor]:
        """Let weights that are saved have the gates of an evaluation in them.

        Args:
            state: a state dict; other tensors take the place of those that read units.
            done: which share of what is to go is gone by now.
            prefix: of the network in it.

        Returns:
            The weights as they are without, by the readers' names.
        """
        whole = {}
        for name, gate in self.evaluated(done).items():
            for reader in self.units[name].readers:
                assert self._network is not None
                layer, key = self._network.get_submodule(reader), f"{prefix}{reader}.weight"
                whole[reader] = state[key].detach().cpu().clone()
                state[key] = state[key].detach().clone()
                straight_weight(layer, state[key]).mul_(self._columns(name, gate, layer))
        return whole

    def close(self) -> None:
        """Take the gates away from the network."""
        while self._handles:
            self._handles.pop().remove()

    def state_dict(self, reduce: Reduce) -> dict[str, Any]:
        """Return what was learned, and the gradients of a window that is not full.

        Args:
            reduce: takes the mean over ranks, each of which then goes on from it.
        """
        gradients = {
            name: reduce(gate.grad.clone()).cpu()
            for name, gate in self.gates.items()
            if gate.grad is not None
        }
        return {
            "log_alpha": {name: a.detach().clone() for name, a in self.log_alpha.items()},
            "multipliers": self.multipliers.detach().clone(),
            "descent": copy.deepcopy(self._descent.state_dict()),
            "ascent": copy.deepcopy(self._ascent.state_dict()),
            "gradients": gradients,
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what was learned."""
        for name, log_alpha in self.log_alpha.items():
            log_alpha.copy_(state["log_alpha"][name])
        self.multipliers.copy_(state["multipliers"])
        self._descent.load_state_dict(state["descent"])
        self._ascent.load_state_dict(state["ascent"])

    def _sized(self, name: str) -> list[Units]:
        return [each for each in self.units.values() if name in ("parameters", each.kind)]

    @torch.no_grad()
    def _hold(self, name: str, target: float) -> None:
        """Move all log alphas of a size together until it meets its target."""
        low, high = -2 * _LARGEST, 2 * _LARGEST
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            if float(self.expected(name, middle)) > target:
                high = middle
            else:
                low = middle
        for units in self._sized(name):
            self.log_alpha[units.name].add_(low)

    def _final_shares(self) -> dict[str, float]:
        """Return which share of each size is to be left in the end."""
        kept = self.targets.choose(self.scores(), 1.0)
        counts = {name: int(mask.sum()) for name, mask in kept.items()}
        shares = {}
        for size in self.sizes:
            if size == "parameters":
                left = self.targets.parameters.left(self.targets.units, counts)
                shares[size] = left / self.targets.parameters.total
                continue
            here = [each for each in self.units.values() if each.kind == size]
            shares[size] = sum(counts[e.name] for e in here) / sum(e.count for e in here)
        return shares

    def _columns(self, name: str, gate: Tensor, layer: Any) -> Tensor:
        return gate.repeat_interleave(self.units[name].width).to(layer.weight)
