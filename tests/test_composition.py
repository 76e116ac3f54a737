"""Any two techniques in one Trainer, in both orders."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, seed_everything

import lmkit
from tests.cases import CASES, Case, make_trainer, weights

WITH_CALLBACKS = [case for case in CASES if case.callbacks()]
WATCHING = [case for case in WITH_CALLBACKS if case.watches]
CHANGING = [case for case in WITH_CALLBACKS if not case.watches]
LOSSES = [case for case in CHANGING if case.loss]
STRUCTURES = [case for case in CHANGING if not case.loss]
#: What looks at a run is paired with its like here, and all of it with each technique below. What
#: changes the loss sets up behind all that changes the network, in whatever order they are given.
PAIRS = [
    *permutations(WATCHING, 2),
    *permutations(STRUCTURES, 2),
    *permutations(LOSSES, 2),
    *product(STRUCTURES, LOSSES),
]
#: Of these a run has one.
ADVERSARIES = {"fgm", "pgd", "free_lb", "awp"}
#: What does not go together, and what is said of it.
REFUSED = {
    frozenset({"low_rank", "pruning"}): "computed by a LowRankLinear",
    frozenset({"low_rank", "quantization"}): "is a product of rank|is a FakeQuantizedLinear",
    frozenset({"low_rank", "structured_pruning"}): "is a product of rank",
    frozenset({"quantization", "structured_pruning"}): "only plain linear layers are cut",
    frozenset({"pruning", "structured_pruning"}): "weights that PruningCallback has masks for",
} | {
    frozenset({name, "structured_pruning"}): "is wrapped by"
    for name in ("surgery", "ia3", "adapter", "adapter_fusion")
}

pytestmark = pytest.mark.filterwarnings("ignore:TrainableOnlyCheckpoint")


def train(
    case: Case, folder: Path, *callbacks: Callback, **settings: int
) -> lmkit.modules.LMModule:
    seed_everything(1)
    module = case.make_module()
    trainer = make_trainer(*callbacks, **settings)
    trainer.fit(module, case.make_data(folder))
    trainer.save_checkpoint(folder / "last.ckpt")
    loaded = weights(lmkit.load(folder / "last.ckpt"))
    assert all(torch.equal(loaded[k], v) for k, v in weights(module).items())
    return module


def is_rare(first: Case, second: Case) -> bool:
    """Whether a pair takes its time in `make test-all` alone.

    It does with a loss that stands for no family of them; of a structure and the other losses with
    all but two, in turn; and of the two orders of a pair with one, so that each technique is as
    often the first as the second.
    """
    one, two = CASES.index(first), CASES.index(second)
    if not (first.loss or second.loss):
        return (one < two) == bool((one + two) % 2)
    if first.loss and second.loss:
        return not (first.core and second.core)
    return (
        not second.core
        or (STRUCTURES.index(first) + _CORE_LOSSES.index(second)) % len(_CORE_LOSSES) > 1
    )


_CORE_LOSSES = [case for case in LOSSES if case.core]


@pytest.mark.parametrize(
    ("first", "second"),
    [pytest.param(*pair, marks=pytest.mark.slow if is_rare(*pair) else ()) for pair in PAIRS],
    ids=[f"{a.name}-{b.name}" for a, b in PAIRS],
)
def test_two_techniques_train_together_and_load_alone(
    first: Case, second: Case, tmp_path: Path
) -> None:
    # Virtual tokens are shown on a task of their own, on which the others work too.
    case = max(first, second, key=lambda case: case.module is not CASES[0].module)
    if refusal := REFUSED.get(frozenset({first.name, second.name})):
        with pytest.raises(ValueError, match=refusal):
            train(case, tmp_path, *first.callbacks(), *second.callbacks(), max_steps=2)
        return
    if {first.name, second.name} <= ADVERSARIES:
        with pytest.raises(ValueError, match="each decide which gradient a step has"):
            train(case, tmp_path, *first.callbacks(), *second.callbacks(), max_steps=2)
        return
    module = train(case, tmp_path, *first.callbacks(), *second.callbacks(), max_steps=2)
    changes = {name for each in (first, second) if not each.watches for name in [each.name]}
    frozen = {n for n, p in module.named_parameters() if not p.requires_grad}
    trains_all = {
        "gradual_unfreezing",
        "low_rank",
        "pruning",
        "quantization",
        "structured_pruning",
        *(each.name for each in LOSSES),
    }
    assert bool(frozen) == bool(changes - trains_all)


@pytest.mark.parametrize("case", CHANGING, ids=[case.name for case in CHANGING])
def test_a_technique_can_be_looked_at(case: Case, tmp_path: Path) -> None:
    # A classifier has no samples to show.
    apart = {"export"} if case.module is CASES[0].module else {"export", "samples"}
    looking = [c for each in WATCHING if each.name not in apart for c in each.callbacks()]
    train(case, tmp_path, *case.callbacks(), *looking, max_steps=2)


@pytest.mark.parametrize("case", CHANGING, ids=[case.name for case in CHANGING])
def test_what_plain_transformers_cannot_express_is_refused_before_it_is_trained(
    case: Case, tmp_path: Path
) -> None:
    steps: list[int] = []

    class Count(Callback):
        def on_train_batch_end(self, *_: object) -> None:
            steps.append(1)

    export = next(each for each in WATCHING if each.name == "export")
    callbacks = [*case.callbacks(), *export.callbacks(), Count()]
    if case.export in ("plain", "structure"):
        train(case, tmp_path, *callbacks, max_steps=2)
        assert len(steps) == 2
        return
    with pytest.raises(ValueError, match=r"cannot express|merge=True"):
        train(case, tmp_path, *callbacks, max_steps=2)
    # The surgery of the tests is not known to the export before it tries.
    assert len(steps) == (2 if case.name == "surgery" else 0)


def test_all_techniques_at_once(tmp_path: Path) -> None:
    case = next(each for each in CASES if each.name == "prompt_tuning")
    together = [
        callback
        for each in WITH_CALLBACKS
        # Products of low-rank factors have no weights to be set to zero one by one, or rounded, and
        # no units; and one adversary decides the gradient.
        if each.name not in ("export", "samples", "surgery", "pgd", "free_lb", "awp")
        and each.name not in ("pruning", "quantization", "structured_pruning")
        for callback in each.callbacks()
    ]
    module = case.make_module()
    trainer = make_trainer(*together, max_steps=3, accumulate_grad_batches=2)
    trainer.fit(module, case.make_data(tmp_path))
    assert trainer.global_step == 3 and len(module.ledger) == 12
