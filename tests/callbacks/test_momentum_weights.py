"""Averages of weights: against a loop, and a network that runs with them."""

import copy

import torch
from torch import nn

from lmkit.callbacks.momentum_weights import MomentumWeights
from lmkit.types import StepOutput


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)
        self.second.bias.requires_grad_(False)

    def forward(self, x):
        return self.second(self.first(x).tanh())


def ask(network):
    return lambda batch: StepOutput(network(batch["x"]).sum(), torch.tensor(1))


def test_the_average_is_that_of_a_loop():
    network = Net()
    average = MomentumWeights(network)
    expected = {n: p.detach().clone() for n, p in network.named_parameters()}
    for step in range(5):
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter))
        average.update(0.9 if step < 3 else 0.5)
        beta = 0.9 if step < 3 else 0.5
        for name, parameter in network.named_parameters():
            expected[name] = beta * expected[name] + (1 - beta) * parameter.detach()
    assert set(average.weights) == {"first.weight", "first.bias", "second.weight"}
    assert all(torch.allclose(average.weights[n], expected[n]) for n in average.weights)


def test_it_runs_with_the_averages_and_leaves_the_weights_and_their_graph():
    network, batch = Net(), {"x": torch.ones(2, 3)}
    average = MomentumWeights(network)
    own = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.5) if parameter.requires_grad else parameter
    changed = {n: p.detach().clone() for n, p in network.named_parameters()}
    loss = ask(network)(batch).loss
    made = average.run(ask(network), batch).loss
    assert torch.equal(made, ask(own)(batch).loss) and not made.requires_grad
    assert all(torch.equal(changed[n], p) for n, p in network.named_parameters())
    loss.backward()
    assert network.first.weight.grad.any()


def test_it_comes_back_from_its_state():
    network = Net()
    average = MomentumWeights(network)
    average.weights["first.weight"].fill_(7.0)
    again = MomentumWeights(network, average.state_dict())
    assert torch.equal(again.weights["first.weight"], torch.full((4, 3), 7.0))
    again.weights["first.weight"].zero_()
    assert average.weights["first.weight"].eq(7.0).all()
    # What it does not know begins at the weights.
    assert torch.equal(MomentumWeights(network, {}).weights["first.bias"], network.first.bias)


def test_of_a_state_the_same_weights_are_averaged_whatever_thawed_since():
    network = Net()
    for parameter in network.first.parameters():
        parameter.requires_grad_(False)
    state = MomentumWeights(network).state_dict()
    network.requires_grad_(True)
    assert set(MomentumWeights(network, state).weights) == set(state) == {"second.weight"}
    network.requires_grad_(False)
    assert set(MomentumWeights(network, state).weights) == set(state)


def test_a_weight_that_was_cut_begins_anew_and_one_that_is_gone_is_left_out():
    layer = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    average = MomentumWeights(layer)
    kept = average.weights["1.bias"]
    layer[0].weight.data, layer[0].bias = layer[0].weight.data[:2], None
    average.update(0.5)
    assert torch.equal(average.weights["0.weight"], layer[0].weight)
    assert "0.bias" not in average.weights and average.weights["1.bias"] is kept
