"""Losses of what is inside, against states that plain networks show of one text at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, layer_norm, normalize
from transformers import BertForSequenceClassification

from lmkit.modules import FlowLoss, HiddenLoss
from lmkit.types import Batch
from tests import lessons
from tests.lessons import Seen, fit, texts_of

NAME = "sequence_classification"
#: From the states of a text, `[L, D]` by layer, of student and teacher, and the projections.
Reference = Callable[[list[Tensor], list[Tensor], dict[str, Tensor]], Tensor]


def states(network: Any, text: Batch, stack: str = "") -> list[Tensor]:
    """The states that plain transformers shows: of the embeddings and of each layer."""
    given = {n: text[n] for n in ("input_ids", "attention_mask", "token_type_ids") if n in text}
    output = network(**given, output_hidden_states=True)
    return [each[0] for each in output.hidden_states]


def loss_of(name: str, folder: Path, loss: Any, **settings: Any) -> tuple[Any, Seen]:
    seen = Seen()
    how: dict[str, Any] = {"hard_weight": 0.0, "losses": [loss], **settings}
    module = lessons.distill(name, pupil={"learning_rate": 0.0}, **how)
    fit(module, lessons.data(name, folder), seen, max_steps=1)
    return module, seen


def items_in(name: str, text: Batch) -> int:
    """How many items of the loss a text has."""
    if name in ("token_classification", "masked_lm", "chunks"):
        return int((text["labels"] >= 0).sum())
    if name == "causal_lm":
        return int((text["labels"][0, 1:] >= 0).sum())
    return 1


def expected(name: str, module: Any, seen: Seen, teacher: str, compare: Reference) -> float:
    plain = module.auto_class.from_pretrained(teacher, dtype=torch.float64).eval()
    student = module.network.double().eval()
    weights = {n: p.weight.double() for n, p in module.projections.items()}
    total, count = 0.0, 0
    for text in texts_of(seen.batches[0]):
        with torch.no_grad():
            value = compare(states(student, text), states(plain, text), weights)
        items = items_in(name, text)
        total, count = total + items * float(value), count + items
    return total / count


def squared(normed: bool, pairs: list[tuple[int, int]]) -> Reference:
    def compare(ours: list[Tensor], theirs: list[Tensor], weights: dict[str, Tensor]) -> Tensor:
        each = []
        for i, j in pairs:
            s, t = ours[i] @ weights[f"0_{i}_{j}"].T, theirs[j]
            if normed:
                s, t = (layer_norm(x, x.shape[-1:]) for x in (s, t))
            each.append((s - t).square().mean())
        return torch.stack(each).mean()

    return compare


def angle(ours: list[Tensor], theirs: list[Tensor], weights: dict[str, Tensor]) -> Tensor:
    s = ours[2] @ weights["0_2_4"].T
    return 1 - cosine_similarity(s, theirs[4]).mean()


def first(ours: list[Tensor], theirs: list[Tensor], weights: dict[str, Tensor]) -> Tensor:
    s = normalize(ours[1][0] @ weights["0_1_2"].T, dim=0)
    return (s - normalize(theirs[2][0], dim=0)).square().sum()


def grams(ours: list[Tensor], theirs: list[Tensor], weights: dict[str, Tensor]) -> Tensor:
    s, t = (normalize(x[-1], dim=-1) for x in (ours, theirs))
    return (s @ s.T - t @ t.T).square().mean()


def flows(ours: list[Tensor], theirs: list[Tensor], weights: dict[str, Tensor]) -> Tensor:
    """Layers 0, 1, 2 of the student go with 0, 2, 4 of the teacher."""

    def flow(x: list[Tensor], i: int, j: int) -> Tensor:
        return x[i].T @ x[j] / len(x[i])

    pairs = [((0, 1), (0, 2)), ((1, 2), (2, 4))]
    return torch.stack(
        [(flow(ours, *a) - flow(theirs, *b)).square().mean() for a, b in pairs]
    ).mean()


UNIFORM = [(0, 0), (1, 2), (2, 4)]
CASES: dict[str, tuple[Any, Reference]] = {
    "uniform": (HiddenLoss(normalize=False), squared(False, UNIFORM)),
    "normalized": (HiddenLoss(), squared(True, UNIFORM)),
    "skip": (HiddenLoss(layers="skip"), squared(True, [(1, 2)])),
    "last": (HiddenLoss(layers="last"), squared(True, [(2, 4)])),
    "pairs": (HiddenLoss(layers=[[0, 1], [-1, 3]]), squared(True, [(0, 1), (2, 3)])),
    "cosine": (HiddenLoss(layers="last", distance="cosine"), angle),
    "first_token": (HiddenLoss(layers="skip", distance="first_token"), first),
    "similarity": (HiddenLoss(layers="last", distance="similarity"), grams),
    "flow": (FlowLoss(), flows),
}


@pytest.mark.parametrize("case", CASES)
def test_loss_is_that_of_the_states_of_plain_networks(case: str, tmp_path: Path) -> None:
    loss, compare = CASES[case]
    teacher = lessons.teacher(NAME, hidden_size=16) if case == "flow" else lessons.teacher(NAME)
    module, seen = loss_of(NAME, tmp_path, loss, teacher=teacher)
    wanted = expected(NAME, module, seen, teacher, compare)
    assert wanted > 0 and seen.losses[0].item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("name", ["pairs", "causal_lm", "chunks"])
def test_each_text_counts_by_its_items_without_its_padding(name: str, tmp_path: Path) -> None:
    """The last layer of a GPT-2 is followed by a norm in what transformers shows of it."""
    loss = HiddenLoss(layers=[[0, 0], [1, 2]])
    module, seen = loss_of(name, tmp_path, loss)
    wanted = expected(name, module, seen, lessons.teacher(name), squared(True, [(0, 0), (1, 2)]))
    assert seen.losses[0].item() == pytest.approx(wanted, rel=1e-5)


def test_a_dynamic_map_takes_the_nearest_layers_in_order(tmp_path: Path) -> None:
    config = {"num_hidden_layers": 3, "initializer_range": 0.3}
    seen = Seen()
    module = lessons.distill(
        NAME,
        pupil={"learning_rate": 0.0, "config": config},
        hard_weight=0.0,
        losses=[HiddenLoss(layers="dynamic")],
    )
    fit(module, lessons.data(NAME, tmp_path), seen, max_steps=1)
    student = module.network.double().eval()
    folder = lessons.teacher(NAME)
    plain = BertForSequenceClassification.from_pretrained(folder, dtype=torch.float64).eval()
    weight = module.projections["0_all"].weight.double()
    chosen = [1, 3, 4]  # three of the teacher's four layers, spread to the last
    costs = torch.zeros(3, 3, dtype=torch.float64)
    texts = texts_of(seen.batches[0])
    with torch.no_grad():
        for text in texts:
            ours, theirs = states(student, text), states(plain, text)
            for row, layer in enumerate(chosen):
                for column in range(3):
                    s = ours[column + 1] @ weight.T
                    pair = [layer_norm(x, x.shape[-1:]) for x in (s, theirs[layer])]
                    costs[row, column] += (pair[0] - pair[1]).square().mean() / len(texts)
    # Three layers on three, in order: there is one way.
    assert seen.losses[0].item() == pytest.approx(float(costs.diagonal().mean()), rel=1e-5)


def test_a_dynamic_map_of_a_deep_student_finds_its_teachers_layers(tmp_path: Path) -> None:
    """A student that is its teacher finds each layer again, at no distance."""
    teacher = lessons.teacher(NAME)
    student = lessons.LESSONS[NAME].module(teacher, learning_rate=0.0, dropout=0.0)
    module = lessons.DistillationModule(
        student, teacher, losses=[HiddenLoss(layers="dynamic")], hard_weight=0.0
    )
    seen = Seen()
    fit(module, lessons.data(NAME, tmp_path), seen, max_steps=1)
    assert seen.losses[0].item() == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_each_stack_of_an_encoder_decoder_is_compared_alone(stack: str, tmp_path: Path) -> None:
    loss = HiddenLoss(stack=stack, layers=[[0, 0], [1, 2]])  # type: ignore[arg-type]
    module, seen = loss_of("seq2seq", tmp_path, loss)
    folder = lessons.teacher("seq2seq")
    teacher = module.auto_class.from_pretrained(folder, dtype=torch.float64).eval()
    student = module.network.double().eval()
    total, count = 0.0, 0
    for text in texts_of(module.task_module.prepare(seen.batches[0])):
        labels = text["labels"][:, (text["labels"] >= 0)[0]]
        start = torch.tensor([[student.config.decoder_start_token_id]])
        given = {
            "input_ids": text["input_ids"],
            "decoder_input_ids": torch.cat([start, labels[:, :-1]], 1),
            "output_hidden_states": True,
        }
        with torch.no_grad():
            both = [
                [each[0] for each in network(**given)[f"{stack}_hidden_states"]]
                for network in (student, teacher)
            ]
            weights = {n: p.weight.double() for n, p in module.projections.items()}
            value = squared(True, [(0, 0), (1, 2)])(*both, weights)
        total, count = total + float(value) * labels.shape[1], count + labels.shape[1]
    assert seen.losses[0].item() == pytest.approx(total / count, rel=1e-5)


WHOLE = [
    HiddenLoss(layers="skip", distance="first_token"),
    HiddenLoss(layers="last", distance="similarity"),
    FlowLoss(),
]


@pytest.mark.parametrize("loss", WHOLE, ids=["first_token", "similarity", "flow"])
def test_what_compares_the_tokens_of_a_text_has_rows_of_one_text(loss: Any, tmp_path: Path) -> None:
    """Sentences to be tagged then have a row each; a packed language model is refused."""
    name = "token_classification"
    config = {"hidden_size": 16} if isinstance(loss, FlowLoss) else {}
    teacher = lessons.teacher(name, **config)
    module, seen = loss_of(name, tmp_path, loss, teacher=teacher)
    assert all("segment_ids" not in batch for batch in seen.batches)
    compare = {"skip": first, "last": grams}.get(str(loss.layers), flows)
    wanted = expected(name, module, seen, teacher, compare)
    assert seen.losses[0].item() == pytest.approx(wanted, rel=1e-5)
    with pytest.raises(ValueError, match="rows that hold several texts cannot be compared so"):
        loss_of("masked_lm", tmp_path, loss, teacher=lessons.teacher("masked_lm", **config))
