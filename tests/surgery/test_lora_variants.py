"""The kinds of LoRA start and learn as their papers say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lmkit.surgery.composition import injected_layers
from lmkit.surgery.ia3 import IA3
from lmkit.surgery.lora import LoRA
from lmkit.surgery.lora_variants import triplets
from tests.surgery.adapted import bert, build, logits, stir
from tests.surgery.lora_formulas import folded_layers, own_weight

pytest.importorskip("peft", reason="LoRA needs the extra peft")
FROM_BASE = ("pissa", "olora")


def test_dora_holds_the_norm_of_the_moved_weight_for_a_constant() -> None:
    network = bert().double()
    LoRA(variant="dora", rank=2, alpha=3.0)(network)
    stir(network.double(), "lora_")
    layer = next(iter(injected_layers(network).values()))
    x, pull = torch.randn(4, 16).double(), torch.randn(4, 16).double()
    (layer(x) * pull).sum().backward()
    names = ("lora_A.default", "lora_B.default", "lora_magnitude_vector.default")
    own = [layer.get_submodule(name).weight for name in names]
    down, up, lengths = (weight.detach().requires_grad_() for weight in own)
    moved = layer.base_layer.weight.detach() + 1.5 * up @ down
    turned = (lengths / moved.detach().norm(dim=1))[:, None] * moved
    ((x @ turned.T + layer.base_layer.bias.detach()) * pull).sum().backward()
    for weight, expected in zip(own, (down, up, lengths), strict=True):
        assert torch.allclose(weight.grad, expected.grad, atol=1e-10)


@pytest.mark.parametrize("name", ["bert", "gpt2", "bart"])
def test_pissa_takes_the_best_part_of_its_rank_out(name: str) -> None:
    network, plain = build(name), build(name)
    LoRA(variant="pissa", targets=["all"], rank=3, alpha=5.0)(network)
    for place, (layer,) in folded_layers(network).items():
        values = np.linalg.svd(own_weight(plain.get_submodule(place)), compute_uv=False)
        rest = np.linalg.svd(own_weight(layer), compute_uv=False)
        # No matrix of rank 3 leaves less (Eckart and Young).
        assert np.allclose(rest[: len(values) - 3], values[3:], atol=1e-5)
        assert np.allclose(rest[len(values) - 3 :], 0, atol=1e-5)
        up, down = layer.lora_B["default"].weight, layer.lora_A["default"].weight
        for gram in (up.T @ up, down @ down.T):
            assert np.allclose(gram.detach(), np.diag(values[:3] * 3 / 5), atol=1e-5)


def test_olora_takes_the_first_columns_of_the_orthogonal_factor_out() -> None:
    network, plain = bert(), bert()
    LoRA(variant="olora", targets=["all"], rank=3, alpha=5.0)(network)
    for place, (layer,) in folded_layers(network).items():
        weight = own_weight(plain.get_submodule(place))
        left, right = np.linalg.qr(weight)
        rest = weight - 5 / 3 * left[:, :3] @ right[:3]
        assert np.allclose(own_weight(layer), rest, atol=1e-5)
        up = layer.lora_B["default"].weight
        assert torch.allclose(up.T @ up, torch.eye(3), atol=1e-5)


@pytest.mark.parametrize("variant", FROM_BASE)
def test_what_stays_of_the_base_is_what_peft_leaves(variant: str) -> None:
    import peft

    ours, theirs = bert(), bert()
    LoRA(variant=variant, rank=3, alpha=5.0)(ours)
    config = peft.LoraConfig(
        r=3, lora_alpha=5.0, target_modules=["query", "value"], init_lora_weights=variant
    )
    peft.inject_adapter_in_model(config, theirs)
    for place, (layer,) in folded_layers(ours).items():
        assert np.allclose(own_weight(layer), own_weight(theirs.get_submodule(place)), atol=1e-5)


def test_adalora_has_half_as_many_ranks_again_unless_it_is_said() -> None:
    assert LoRA(variant="adalora", rank=7).ranks == 11
    assert LoRA(variant="adalora", rank=7, initial_rank=7).ranks == 7
    network = bert()
    LoRA("a", variant="adalora", rank=4)(network)
    found = triplets(network, "a")
    assert [tuple(p.shape) for p in next(iter(found.values()))] == [(16, 6), (6, 1), (6, 16)]
    assert len(found) == 4 and not triplets(network, "b")


@pytest.mark.parametrize("variant", FROM_BASE)
def test_a_weight_that_others_read_is_not_taken_apart(variant: str) -> None:
    for first in (IA3(targets=["query"], inputs=[]), LoRA("d", variant="dora")):
        network = bert()
        first(network)
        keys = network.state_dict().keys()
        with pytest.raises(ValueError, match=f"add the {variant} adapter first"):
            LoRA("a", variant=variant)(network)
        assert network.state_dict().keys() == keys
    tied = bert()
    layers = tied.bert.encoder.layer
    layers[1].attention.self.query.weight = layers[0].attention.self.query.weight
    with pytest.raises(ValueError, match="are one weight; take variant='lora'"):
        LoRA(variant=variant)(tied)
    with pytest.raises(ValueError, match=r"pissa of rank 17.*\(16, 16\)|olora of rank 17"):
        LoRA(variant=variant, rank=17)(bert())
    assert tied.classifier.weight.requires_grad and not injected_layers(tied)


@pytest.mark.parametrize("variant", FROM_BASE)
def test_what_was_taken_out_can_be_put_back_below_others(variant: str) -> None:
    network, base = bert(), logits(bert())
    LoRA("a", variant=variant, rank=3)(network)
    LoRA("b", variant=variant, rank=2)(network)
    assert torch.allclose(logits(network), base, atol=1e-5)
    stir(network, "lora_A", "lora_B")
    assert not torch.allclose(logits(network), base, atol=1e-3)
