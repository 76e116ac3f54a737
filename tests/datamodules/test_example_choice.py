"""Which examples are held out, and which few are trained on."""

from collections import Counter
from itertools import pairwise
from typing import NamedTuple

import pytest

from lmkit.datamodules.example_choice import few_of_each, hold_out_examples


class Example(NamedTuple):
    text: str
    label: str | None
    topic: str | None
    file: str
    line: int


def make(sizes, topics=0):
    rows = [
        (f"text {label} {number}", label, f"topic {number % topics}" if topics else None)
        for label, size in sizes.items()
        for number in range(size)
    ]
    return [Example(*row, "a.csv", line) for line, row in enumerate(rows, 1)]


def label(example):
    return (example.label,)


def count(examples):
    return dict(Counter(example.label for example in examples))


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.25, 0.5])
def test_the_share_of_each_class_is_exact(fraction):
    sizes = {"a": 200, "b": 40, "c": 7}
    kept, held = hold_out_examples(make(sizes), fraction, label)
    assert count(held) == {name: max(1, round(fraction * n)) for name, n in sizes.items()}
    assert sorted(kept + held) == sorted(make(sizes))


def test_both_parts_keep_the_order_of_the_examples():
    kept, held = hold_out_examples(make({"a": 30, "b": 30}), 0.3, label)
    assert kept == sorted(kept, key=lambda e: e.line) and held == sorted(held, key=lambda e: e.line)


def test_the_same_examples_are_held_out_wherever_they_stand():
    examples = make({"a": 50, "b": 20})
    moved = [e._replace(file="b.csv", line=99 - n) for n, e in enumerate(reversed(examples))]
    one = {e.text for e in hold_out_examples(examples, 0.2, label)[1]}
    assert one == {e.text for e in hold_out_examples(moved, 0.2, label)[1]}


def test_equal_examples_are_on_one_side():
    examples = [e._replace(text=f"text {e.line % 9}") for e in make({"a": 90, "b": 45})]
    kept, held = hold_out_examples(examples, 0.1, label)
    assert held and not {e[:2] for e in kept} & {e[:2] for e in held}


def test_a_class_with_one_example_is_trained_on():
    kept, held = hold_out_examples(make({"a": 20, "rare": 1}), 0.1, label)
    assert count(kept)["rare"] == 1 and "rare" not in count(held)


def test_without_classes_a_share_of_all_is_held_out():
    kept, held = hold_out_examples(make({"a": 50, "b": 50}), 0.1, lambda _: None)
    assert len(held) == 10 and len(kept) == 90


def test_groups_are_on_one_side():
    examples = make({None: 100}, topics=12)
    kept, held = hold_out_examples(examples, 0.2, label, lambda e: e.topic)
    assert held and not {e.topic for e in kept} & {e.topic for e in held}


def test_groups_are_on_one_side_of_several_classes():
    examples = [
        Example(f"text {n}", "a" if n % 3 else "b", f"topic {n * n % 17}", "a.csv", n)
        for n in range(60)
    ]
    kept, held = hold_out_examples(examples, 0.2, label, lambda e: e.topic)
    assert held and not {e.topic for e in kept} & {e.topic for e in held}


@pytest.mark.parametrize("examples", [[], make({"a": 1, "b": 1}), make({"a": 1}) * 8])
def test_nothing_to_hold_out_is_an_error(examples):
    with pytest.raises(ValueError, match="too few to hold any out; pass val_file, or val_fraction"):
        hold_out_examples(examples, 0.2, label)


def test_few_examples_are_so_many_of_each_class():
    few = few_of_each(make({"a": 90, "b": 12, "c": 3}), 8, 1, label)
    assert count(few) == {"a": 8, "b": 8, "c": 3}
    assert few == sorted(few, key=lambda e: e.line)


def test_more_examples_have_the_fewer_among_them():
    examples = make({"a": 90, "b": 12})
    sets = [set(few_of_each(examples, size, 4, label)) for size in (1, 2, 5, 20, 90)]
    assert all(one < other for one, other in pairwise(sets))
    assert sets[-1] == set(examples)


def test_the_seed_draws_the_few():
    examples = make({"a": 90, "b": 90})
    draws = [few_of_each(examples, 5, seed, label) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert {e.text for e in draws[0] if e.label == "a"} != {e.text for e in examples[:5]}
