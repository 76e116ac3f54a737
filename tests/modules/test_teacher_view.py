"""How a teacher's scores are laid beside the student's: vocabularies, classes, runs of a store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lmkit.modules import LogitLoss
from lmkit.modules.scores import Scores
from lmkit.modules.teacher import TeacherFacts
from lmkit.modules.teacher_view import Alignment, align, attach, said_of, spread
from tests import lessons, tiny
from tests.cases import make_trainer
from tests.lessons import Seen, fit
from tests.modules.test_distillation_losses import following, masked, taken_apart


def facts(**changed: Any) -> TeacherFacts:
    return TeacherFacts("t", "", [], 0, "", [])._replace(**changed)


def test_classes_are_brought_into_the_students_order() -> None:
    assert align(["a", "b"], 0, 9, facts(labels=["b", "a"])) == Alignment([1, 0], None)
    assert align(["a", "b"], 0, 9, facts(labels=["a", "b"])) == Alignment(None, None)


@pytest.mark.parametrize(
    ("ours", "theirs", "width"), [(300, 300, None), (304, 300, 300), (300, 320, 300)]
)
def test_what_pads_a_vocabulary_is_left_out(ours: int, theirs: int, width: int | None) -> None:
    assert align([], ours, 300, facts(vocabulary=theirs)) == Alignment(None, width)


@pytest.mark.parametrize(("ours", "theirs"), [(300, 280), (280, 300)])
def test_a_vocabulary_that_lacks_tokens_is_refused(ours: int, theirs: int) -> None:
    with pytest.raises(ValueError, match=f"the teacher t has a vocabulary of {theirs}"):
        align([], ours, 300, facts(vocabulary=theirs))


@pytest.mark.parametrize(("ours", "theirs"), [(0, 16), (16, 0), (8, 32)])
@pytest.mark.parametrize("name", ["causal_lm", "masked_lm"])
def test_a_padded_vocabulary_learns_of_the_tokens_alone(
    name: str, ours: int, theirs: int, tmp_path: Path
) -> None:
    kind = lessons.LESSONS[name].tokenizer
    known, seen = len(tiny.tokenizer(kind)), Seen()
    teacher = lessons.teacher(name, vocab_size=known + theirs)
    config = {"vocab_size": known + ours, "initializer_range": 0.3}
    module = lessons.distill(
        name,
        teacher=teacher,
        pupil={"config": config, "learning_rate": 0.0},
        hard_weight=0.0,
        losses=[LogitLoss(weight=1.0)],
    )
    fit(module, lessons.data(name, tmp_path), seen, max_steps=1)
    cls = module.auto_class
    plain = cls.from_pretrained(teacher, dtype=torch.float64).eval()
    student = module.network.double().eval()

    class Cut:
        """A network without the rows that pad its vocabulary."""

        def __init__(self, network: Any) -> None:
            self.network = network

        def __call__(self, **inputs: Any) -> Any:
            output = self.network(**inputs)
            output.logits = output.logits[..., :known]
            return output

    reference = {"causal_lm": following, "masked_lm": masked}[name]
    with torch.no_grad():
        items = [
            each
            for text in taken_apart(seen.batches[0])
            for _, each in reference(Cut(student), Cut(plain), text)
        ]
    assert seen.losses[0].item() == pytest.approx(float(torch.stack(items).mean()), rel=1e-5)
    module.network.float()
    (found,) = make_trainer().validate(module, lessons.data(name, tmp_path), verbose=False)
    assert found["val/teacher_divergence"] > 0 and 0 <= found["val/agreement"] <= 1


def test_a_run_is_spread_over_the_places_that_count() -> None:
    places = torch.tensor([[True, False, True], [False, False, True]])
    run = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    expected = torch.zeros(2, 3, 2)
    expected[places] = run
    assert torch.equal(spread(run, places), expected)
    nothing = spread(torch.zeros(0, 2), torch.zeros(2, 3, dtype=torch.bool))
    assert torch.equal(nothing, torch.zeros(2, 3, 2))


def test_what_each_teacher_said_is_found_under_its_number() -> None:
    logits = torch.arange(6.0).reshape(2, 3)
    valid = torch.tensor([True, True])
    rows = torch.arange(2)
    scores = Scores("classes", logits, valid, None, rows, torch.ones(2, 1).bool(), torch.ones(2))
    batch = attach({"input_ids": rows}, [{"logits": logits}, {"logits": -logits}])
    first = said_of(batch, 0, scores, Alignment(None, None), ())
    second = said_of(batch, 1, scores, Alignment([2, 0, 1], 2), ())
    assert torch.equal(first.logits, logits)  # type: ignore[arg-type]
    assert torch.equal(second.logits, -logits[:, [2, 0]])  # type: ignore[arg-type]
    runs = attach({}, [{"runs.logits": logits[1:]}])
    half = scores._replace(valid=torch.tensor([False, True]))
    found = said_of(runs, 0, half, Alignment(None, None), ()).logits
    assert found is not None and found.tolist() == [[0.0, 0.0, 0.0], [3.0, 4.0, 5.0]]
    nobody = said_of({}, 0, scores, Alignment(None, None), ())
    assert nobody.logits is None and nobody.top is None and not nobody.inside
