"""The losses of each task against those of plain networks, one text at a time, in float64."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lmkit.modules import AttentionLoss, FlowLoss, HiddenLoss, LogitLoss, RelationLoss
from lmkit.modules.distillation_losses import DistillationLoss, loss_from_spec, loss_to_spec
from lmkit.types import Batch
from tests import lessons
from tests.lessons import Seen, fit, texts_of

#: Of one item: the student's own loss, `None` without a label, and that against the teacher.
Item = tuple[Tensor | None, Tensor]


def own(log_p: Tensor, label: Tensor) -> Tensor | None:
    return None if label < 0 else -log_p[label]


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    p, q = (student / temperature).softmax(-1), (teacher / temperature).softmax(-1)
    terms = torch.where(q > 0, q * (q.log() - p.log()), 0.0)
    return temperature**2 * terms.sum()


def run(network: Any, text: Batch, *names: str) -> Any:
    keys = ("input_ids", "attention_mask", "token_type_ids", *names)
    return network(**{name: text[name] for name in keys if name in text})


def classes(student: Any, teacher: Any, text: Batch) -> list[Item]:
    ours, theirs = (run(network, text).logits[0] for network in (student, teacher))
    theirs = theirs.flip(-1)  # the teacher has them in reverse
    return [(own(ours.log_softmax(-1), text["labels"][0]), divergence(ours, theirs, 2.0))]


def values(student: Any, teacher: Any, text: Batch) -> list[Item]:
    ours, theirs = (run(network, text).logits[0, 0] for network in (student, teacher))
    label = text["labels"][0].double()
    return [(None if label.isnan() else (ours - label) ** 2, (ours - theirs) ** 2)]


def labels(student: Any, teacher: Any, text: Batch) -> list[Item]:
    ours, theirs = (run(network, text).logits[0] for network in (student, teacher))
    theirs, wanted = theirs.flip(-1), text["labels"][0].double()
    p, sure = ours.sigmoid(), -(wanted * ours.sigmoid().log())
    hard = (sure - (1 - wanted) * (1 - p).log()).mean()
    pairs = zip(ours, theirs, strict=True)
    both = [(torch.stack([s, s * 0]), torch.stack([t, t * 0])) for s, t in pairs]
    soft = torch.stack([divergence(s, t, 2.0) for s, t in both]).mean()
    return [(None if wanted.isnan().any() else hard, soft)]


def tags(student: Any, teacher: Any, text: Batch) -> list[Item]:
    ours, theirs = (run(network, text).logits[0] for network in (student, teacher))
    theirs, given = theirs.flip(-1), text["labels"][0]
    chosen = (given >= 0).nonzero().flatten() if (given >= 0).any() else range(len(given))
    return [
        (own(ours[i].log_softmax(-1), given[i]), divergence(ours[i], theirs[i], 2.0))
        for i in chosen
    ]


def spans(student: Any, teacher: Any, text: Batch) -> list[Item]:
    ours, theirs = (run(network, text) for network in (student, teacher))
    ends = ("start", "end")
    soft = [divergence(ours[f"{e}_logits"][0], theirs[f"{e}_logits"][0], 2.0) for e in ends]
    hard = [own(ours[f"{e}_logits"][0].log_softmax(-1), text[f"{e}_positions"][0]) for e in ends]
    both = None if hard[0] is None or hard[1] is None else (hard[0] + hard[1]) / 2
    return [(both, (soft[0] + soft[1]) / 2)]


def choices(student: Any, teacher: Any, text: Batch) -> list[Item]:
    there = text["choice_mask"][0].bool()
    parts = ("input_ids", "attention_mask", "token_type_ids")
    given = {name: text[name][:, there] for name in parts if name in text}
    ours, theirs = (run(network, given).logits[0] for network in (student, teacher))
    return [(own(ours.log_softmax(-1), text["labels"][0]), divergence(ours, theirs, 2.0))]


def masked(student: Any, teacher: Any, text: Batch) -> list[Item]:
    ours, theirs = (run(network, text).logits[0] for network in (student, teacher))
    given = text["labels"][0]
    return [
        (own(ours[i].log_softmax(-1), given[i]), divergence(ours[i], theirs[i], 1.0))
        for i in (given >= 0).nonzero().flatten()
    ]


def following(student: Any, teacher: Any, text: Batch) -> list[Item]:
    ours, theirs = (run(network, text).logits[0] for network in (student, teacher))
    given = text["labels"][0]
    return [
        (own(ours[i].log_softmax(-1), given[i + 1]), divergence(ours[i], theirs[i], 1.0))
        for i in range(len(given) - 1)
        if given[i + 1] >= 0
    ]


def written(student: Any, teacher: Any, text: Batch) -> list[Item]:
    given = text["labels"][0]
    given = given[given >= 0]
    start = torch.tensor([student.config.decoder_start_token_id])
    begun = {**text, "decoder_input_ids": torch.cat([start, given[:-1]]).unsqueeze(0)}
    ours, theirs = (run(n, begun, "decoder_input_ids").logits[0] for n in (student, teacher))
    return [
        (own(ours[i].log_softmax(-1), given[i]), divergence(ours[i], theirs[i], 1.0))
        for i in range(len(given))
    ]


REFERENCES: dict[str, Callable[[Any, Any, Batch], list[Item]]] = {
    "sequence_classification": classes,
    "pairs": classes,
    "regression": values,
    "multi_label": labels,
    "token_classification": tags,
    "question_answering": spans,
    "multiple_choice": choices,
    "masked_lm": masked,
    "chunks": masked,
    "causal_lm": following,
    "packed_causal": following,
    "denoising": written,
    "seq2seq": written,
}
UNLABELLED = (
    "sequence_classification",
    "regression",
    "multi_label",
    "token_classification",
    "question_answering",
    "multiple_choice",
)
pytestmark = [
    pytest.mark.filterwarnings("ignore:Metric `Spearman:UserWarning"),
]


def taken_apart(batch: Batch) -> list[Batch]:
    if "choice_mask" not in batch:
        return texts_of(batch)
    rows = (batch["index"] >= 0).nonzero().flatten().tolist()
    return [{n: t[row : row + 1] for n, t in batch.items()} for row in rows]


def check(name: str, module: Any, seen: Seen, hard: float = 0.5, soft: float = 0.5) -> int:
    """Compare each loss with the formula of the class; return how many items had no label."""
    cls, bare = module.auto_class, 0
    teacher = cls.from_pretrained(lessons.teacher(name), dtype=torch.float64).eval()
    student = module.network.double().eval()
    for loss, batch in zip(seen.losses, seen.batches, strict=True):
        with torch.no_grad():
            items = [
                item
                for text in taken_apart(module.task_module.prepare(batch))
                for item in REFERENCES[name](student, teacher, text)
            ]
        assert items
        total = sum(soft * each + (hard * mine if mine is not None else 0) for mine, each in items)
        assert loss.item() == pytest.approx(float(total) / len(items), rel=2e-6, abs=1e-7)
        bare += sum(mine is None for mine, _ in items)
    return bare


@pytest.mark.parametrize("name", REFERENCES)
def test_loss_is_that_of_plain_networks_one_text_at_a_time(name: str, tmp_path: Path) -> None:
    seen = Seen()
    module = lessons.distill(name, pupil={"learning_rate": 0.0})
    fit(module, lessons.data(name, tmp_path), seen)
    assert len(seen.losses) == 2
    assert check(name, module, seen) == 0


@pytest.mark.parametrize("name", UNLABELLED)
def test_rows_without_a_label_learn_from_the_teacher_beside_those_with_one(
    name: str, tmp_path: Path
) -> None:
    seen = Seen()
    module = lessons.distill(name, pupil={"learning_rate": 0.0}, hard_weight=0.3)
    fit(module, lessons.half_labelled(name, tmp_path), seen, max_steps=6)
    assert check(name, module, seen, hard=0.3) > 0


@pytest.mark.parametrize("name", UNLABELLED)
def test_rows_without_any_label_teach_with_no_weight_on_the_own_loss(
    name: str, tmp_path: Path
) -> None:
    seen = Seen()
    still = lessons.distill(name, pupil={"learning_rate": 0.0}, hard_weight=0.0)
    fit(still, lessons.half_labelled(name, tmp_path, train_file=None), seen)
    moving = lessons.distill(name, hard_weight=0.0)
    fit(moving, lessons.half_labelled(name, tmp_path, train_file=None))
    first, second = (module.network.get_input_embeddings().weight for module in (still, moving))
    assert not torch.equal(first, second)
    assert check(name, still, seen, hard=0.0) > 0


def test_the_weight_of_a_loss_moves_in_a_straight_line_between_its_start_and_stop() -> None:
    loss = LogitLoss(weight=2.0, final_weight=4.0, start=0.25, stop=0.75)
    shares = [0.0, 0.2, 0.25, 0.5, 0.74, 0.75, 0.9]
    expected = [0.0, 0.0, 2.0, 3.0, 3.96, 0.0, 0.0]
    assert [loss.weight_at(share) for share in shares] == pytest.approx(expected)
    assert LogitLoss(weight=0.5).weight_at(1.0) == 0.5
    assert not LogitLoss(weight=0.5).needs_length


@pytest.mark.parametrize("cls", [LogitLoss, HiddenLoss, FlowLoss, AttentionLoss, RelationLoss])
def test_a_loss_is_plain_data_and_back(cls: type[DistillationLoss]) -> None:
    loss = cls(weight=0.25, final_weight=0.5, start=0.5)
    spec = json.loads(json.dumps(loss_to_spec(loss)))
    assert loss_from_spec(spec) == loss
    assert loss_from_spec({"class_path": cls.__name__}) == cls()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: LogitLoss(weight=-1.0), "LogitLoss: weight must be at least 0, got -1"),
        (lambda: LogitLoss(final_weight=-0.1), "final_weight must be at least 0"),
        (lambda: LogitLoss(start=0.5, stop=0.5), "0 <= start < stop <= 1, got 0.5 and 0.5"),
        (lambda: LogitLoss(stop=1.5), "0 <= start < stop <= 1"),
        (lambda: LogitLoss(temperature=0.0), "temperature must be above 0, got 0"),
        (lambda: LogitLoss(divergence="sideways"), "divergence must be one of forward, reverse"),
        (lambda: LogitLoss(beta=1.0), r"beta must lie in \(0, 1\), got 1"),
        (lambda: HiddenLoss(distance="far"), "distance must be one of mse, cosine"),
        (lambda: loss_from_spec({"class_path": "HidenLoss"}), "there is no loss 'HidenLoss'.*Hid"),
    ],
)
def test_numbers_and_names_outside_their_range_are_named(make: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


@pytest.mark.parametrize("divergence", ["reverse", "jensen_shannon", "total_variation", "mse"])
def test_the_other_divergences_reach_the_loss_with_their_temperature(
    divergence: str, tmp_path: Path
) -> None:
    seen, name = Seen(), "sequence_classification"
    loss = LogitLoss(weight=1.0, divergence=divergence, temperature=3.0, beta=0.2)
    module = lessons.distill(name, pupil={"learning_rate": 0.0}, losses=[loss], hard_weight=0.0)
    fit(module, lessons.data(name, tmp_path), seen, max_steps=1)
    teacher = module.auto_class.from_pretrained(lessons.teacher(name), dtype=torch.float64).eval()
    student = module.network.double().eval()
    expected = []
    for text in texts_of(seen.batches[0]):
        with torch.no_grad():
            ours, theirs = run(student, text).logits[0], run(teacher, text).logits[0].flip(-1)
        p, q = (ours / 3).softmax(-1), (theirs / 3).softmax(-1)
        m = 0.2 * q + 0.8 * p
        values = {
            "reverse": 9 * (p * (p / q).log()).sum(),
            "jensen_shannon": 9
            * (0.2 * (q * (q / m).log()).sum() + 0.8 * (p * (p / m).log()).sum()),
            "total_variation": 9 * (p - q).abs().sum() / 2,
            "mse": (ours - theirs).square().mean(),
        }
        expected.append(values[divergence])
    assert seen.losses[0].item() == pytest.approx(float(torch.stack(expected).mean()), rel=1e-5)
