"""Texts, tagged words and answers after a transform."""

from __future__ import annotations

import random

import numpy as np
import pytest

from lmkit.transforms import (
    Chain,
    CharacterNoise,
    OneOf,
    Protection,
    Ramp,
    RandomDeletion,
    RandomSwap,
    SpellingErrors,
    SynonymReplacement,
    TokenDropout,
    WordTransform,
    example_rng,
    transform_answer,
    transform_from,
    transform_tagged,
    transform_text,
    transforms_from,
)
from lmkit.transforms.changes import Change
from tests.transforms.every import EVERY
from tests.transforms.tiny_wordnet import write_wordnet


class Fixed(WordTransform):
    """Makes the changes that it is given."""

    def __init__(self, made):
        self.made = made

    def changes(self, words, free, rng, strength, groups):
        return self.made


@pytest.mark.parametrize(
    ("text", "change", "expected"),
    [
        ("one  two three", Change("delete", 1, 2, []), "one  three"),
        ("one two, three", Change("delete", 1, 2, []), "one, three"),
        ("one (two three)", Change("delete", 2, 3, []), "one (three)"),
        ("one two\nthree", Change("delete", 1, 2, []), "one\nthree"),
        (" one two ", Change("delete", 0, 1, []), " two "),
        ("one two. ", Change("delete", 2, 3, []), "one two "),
        ("one-- two", Change("delete", 1, 2, []), "one two"),
        ("a.b", Change("delete", 1, 2, []), "a b"),
        ("one two", Change("insert", 0, 0, ["x"]), "x one two"),
        ("one two", Change("insert", 1, 1, ["x", "y"]), "one x y two"),
        ("one two", Change("insert", 2, 2, ["x"]), "one two x"),
        ("one two\n", Change("insert", 2, 2, ["x"]), "one two x\n"),
        ("one, two", Change("insert", 1, 1, ["x"]), "one x, two"),
        ("(one)", Change("insert", 1, 1, ["x"]), "(x one)"),
        ("one\ntwo", Change("insert", 1, 1, ["x"]), "one\nx two"),
        ("one  two", Change("substitute", 0, 1, ["x"]), "x  two"),
        ("one two three", Change("substitute", 0, 2, ["x"]), "x three"),
        ("one, two", Change("substitute", 0, 1, ["x", "y"]), "x y, two"),
        ("one", Change("substitute", 0, 1, ["x", "y"]), "x y"),
    ],
)
def test_gaps(text, change, expected):
    assert transform_text(Fixed([change]), text, np.random.default_rng(0), None) == expected


def test_answers_are_followed_or_nothing_is_changed(tmp_path):
    wordnet = write_wordnet(tmp_path)
    rng = random.Random(0)
    moved = same = 0
    for turn in range(400):
        transform = EVERY[rng.choice(list(EVERY))](wordnet)
        words = rng.choices(["film", "city,", "(big", "plan", "went", "car.", "her"], k=12)
        context = " ".join(words)
        start = rng.randrange(len(context))
        answer = context[start : start + rng.randint(1, 12)]
        made, place = transform_answer(transform, context, start, answer, example_rng(0, 0, turn))
        assert made[place : place + len(answer)] == answer
        same += made == context
        moved += place != start
        assert made != context or place == start
    assert moved > 100 and same < 250


def test_an_answer_that_is_torn_is_refused():
    tear = Fixed([Change("insert", 1, 1, ["x"])])
    rng = np.random.default_rng(0)
    assert transform_answer(tear, "New York is big", 0, "New York", rng) == ("New York is big", 0)
    assert transform_answer(tear, "New York is big", 4, "York", rng) == ("New x York is big", 6)
    # An answer inside of a word, and none.
    assert transform_answer(tear, "New York", 5, "or", rng) == ("New x York", 7)
    assert transform_answer(tear, "New York", -1, "", rng) == ("New x York", -1)
    with pytest.raises(ValueError, match="answer_text must stand at answer_start: 'York'"):
        transform_answer(tear, "New York", 3, "York", rng)


def test_an_answer_is_the_right_one_of_several():
    gone = Fixed([Change("delete", 0, 1, [])])
    made = transform_answer(gone, "cat and cat and cat", 8, "cat", np.random.default_rng(0))
    assert made == ("and cat and cat", 4)


def test_generators_depend_on_every_number_alone():
    drawn = {
        example_rng(*key).random(4).tobytes()
        for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0, 1), (2**64 - 1, 5, 5)]
    }
    assert len(drawn) == 6
    one = example_rng(3, 4, 5, 6).random(4)
    # As Philox itself has it.
    bits = np.random.Philox(key=3 + (5 << 64), counter=(4 << 128) + (6 << 192))
    assert np.array_equal(np.random.Generator(bits).random(4), one)
    with pytest.raises(ValueError, match="index must be a whole number of 64 bits"):
        example_rng(0, 0, -1)


def test_tagged_words_under_protection():
    made = transform_tagged(
        RandomDeletion(1.0),
        ["He", "met", "New", "York's", "mayor"],
        ["O", "O", "B-LOC", "I-LOC", "O"],
        np.random.default_rng(0),
    )
    assert made.words == ["New", "York's"] and made.labels == ["B-LOC", "I-LOC"]
    free = transform_tagged(
        RandomDeletion(1.0), ["New", "York"], ["B-LOC", "I-LOC"], np.random.default_rng(0), None
    )
    assert free.labels == ["B-LOC"]


def test_lists_of_specs():
    made = transforms_from(
        [
            {"class_path": "lmkit.transforms.RandomSwap", "init_args": {"alpha": 0.3}},
            "RandomDeletion",
            TokenDropout("[MASK]"),
        ]
    )
    assert made == Chain([RandomSwap(0.3), RandomDeletion(), TokenDropout("[MASK]")])
    assert transforms_from(["RandomSwap"]) == RandomSwap()
    assert transforms_from([]) == Chain([])
    inner = {"class_path": "OneOf", "init_args": {"transforms": ["RandomSwap", "SpellingErrors"]}}
    assert transforms_from(inner) == OneOf([RandomSwap(), SpellingErrors()])
    assert transforms_from([made.spec]) == made


@pytest.mark.parametrize(
    ("spec", "kind", "message"),
    [
        (["Swap"], ValueError, r"transforms\[0\].class_path: there is no 'Swap'; there are Chain"),
        (["no.such.Thing"], ValueError, r"transforms\[0\].class_path: 'no.such.Thing' cannot be"),
        (["lmkit.transforms.Edit"], TypeError, "is no transform"),
        (["Transform"], TypeError, "is no transform"),
        ([3], TypeError, r"transforms\[0\] must be a transform or a dictionary"),
        ([{"init_args": {}}], TypeError, r"transforms\[0\] must be a transform or a dictionary"),
        (
            [{"class_path": "RandomSwap", "args": {}}],
            ValueError,
            "may have class_path and init_arg",
        ),
        (
            [{"class_path": "RandomSwap", "init_args": {"rate": 1}}],
            ValueError,
            r"transforms\[0\].init_args: RandomSwap has no argument 'rate'; it has alpha",
        ),
        (
            [{"class_path": "RandomSwap", "init_args": {"alpha": 3}}],
            ValueError,
            r"transforms\[0\] \(RandomSwap\): alpha must lie in \[0, 1\], got 3",
        ),
        ([{"class_path": "TokenDropout"}], TypeError, r"transforms\[0\] \(TokenDropout\)"),
        ([{"class_path": 3}], TypeError, r"transforms\[0\].class_path must be a string"),
    ],
)
def test_specs_that_are_wrong(spec, kind, message):
    with pytest.raises(kind, match=message):
        transforms_from(spec)


def test_combinations_that_are_wrong():
    with pytest.raises(ValueError, match="at least one transform"):
        OneOf([])
    with pytest.raises(ValueError, match="one for each of 1 transforms, got 2"):
        OneOf(["RandomSwap"], [1, 2])
    with pytest.raises(ValueError, match="not be negative and not all 0"):
        OneOf(["RandomSwap"], [0])
    with pytest.raises(ValueError, match="probability must lie in"):
        transform_from(
            {"class_path": "Sometimes", "init_args": {"transform": "RandomSwap", "probability": 2}}
        )


def test_one_of_draws_in_proportion():
    either = OneOf([TokenDropout("A", 1.0), TokenDropout("B", 1.0)], [3, 1])
    rng = np.random.default_rng(0)
    drawn = [either(["x"], None, rng).words[0] for _ in range(2000)]
    assert abs(drawn.count("A") / 2000 - 0.75) < 0.04


def test_a_chain_keeps_protected_words_in_sight():
    chain = Chain([Fixed([Change("insert", 0, 0, ["x"])]), RandomDeletion(1.0)])
    made = chain(["a", "b"], None, np.random.default_rng(0), [False, True])
    assert made.words == ["b"]


@pytest.mark.parametrize(
    ("ramp", "progress", "strength"),
    [
        (Ramp(), 0.25, 0.25),
        (Ramp(1.0, 0.0), 0.25, 0.75),
        (Ramp(0.2, 1.0, 0.5, 0.75), 0.1, 0.2),
        (Ramp(0.2, 1.0, 0.5, 0.75), 0.625, 0.6),
        (Ramp(0.2, 1.0, 0.5, 0.75), 2.0, 1.0),
        (Ramp(0.0, 1.0, 0.5, 0.5), 0.5, 1.0),
    ],
)
def test_ramps(ramp, progress, strength):
    assert ramp.at(progress) == pytest.approx(strength, abs=1e-12)


def test_ramps_that_are_wrong():
    with pytest.raises(ValueError, match="stop must lie in"):
        Ramp(stop=2)
    with pytest.raises(ValueError, match="end must be at least begin"):
        Ramp(begin=0.5, end=0.2)


def test_protection():
    sentence = [
        "Yes",
        ".",
        "Anna",
        "saw",
        "I'm",
        "@you",
        "a",
        "3rd",
        "[SEP]",
        "Isn't",
        "it",
        "?",
        "He",
        "<s>",
        "cant",
        "X",
    ]
    flags = Protection(special_tokens=["X"])(sentence)
    kept = [word for word, flag in zip(sentence, flags, strict=True) if flag]
    assert kept == [".", "@you", "3rd", "[SEP]", "Isn't", "?", "<s>", "cant", "X"]
    open_all = Protection(
        negations=False, names=False, numbers=False, urls=False, punctuation=False
    )
    fixed = [w for w, f in zip(sentence, open_all(sentence), strict=True) if f]
    assert fixed == ["[SEP]", "<s>"]
    given = Protection(words=["Film"], patterns=[r"x\d+"], names=False, numbers=False)
    assert given(["film", "FILM", "x12", "x12y", "films"]) == [True, True, True, False, False]
    assert given == Protection(words=["Film"], patterns=[r"x\d+"], names=False, numbers=False)
    with pytest.raises(ValueError, match=r"patterns: '\(' is no regular expression"):
        Protection(patterns=["("])
    with pytest.raises(TypeError, match="words must be a list of strings"):
        Protection(words="film")


def test_protected_words_that_are_several_stay_together():
    noise = CharacterNoise(rate=1.0)
    for text, protection, stays in (
        ("a [subj] belongs here", Protection(special_tokens=["[subj]"]), "[subj]"),
        ("we like NODE.js very much", Protection(words=["Node.js"]), "NODE.js"),
        ("they saw new york again", Protection(words=["New York"]), "new york"),
    ):
        for seed in range(20):
            assert stays in transform_text(noise, text, example_rng(seed, 0, 0), protection)
    flags = Protection(words=["new york"])(["a", "new", "car", "in", "new", "york"])
    assert flags == [False, False, False, False, True, True]
    assert Protection(special_tokens=["[subj]"])(["[", "SUBJ", "]"]) == [True, False, True]


def test_what_is_no_protection():
    with pytest.raises(TypeError, match="got False; YAML reads no"):
        Protection(words=[False])
    with pytest.raises(TypeError, match="patterns must be a list of strings, got 3"):
        Protection(patterns=3)
    with pytest.raises(TypeError, match="names must be true or false, got 'no'"):
        Protection(names="no")


def test_a_chain_leaves_special_tokens_that_it_put_in():
    chain = Chain([TokenDropout("[MASK]", 0.5), CharacterNoise(rate=1.0)])
    text = "the film was good and long today"
    seen = 0
    for seed in range(10):
        made = transform_text(chain, text, example_rng(seed, 0, 0)).split()
        hidden = [word for word in made if not word.isalpha()]
        assert set(hidden) <= {"[MASK]"}
        seen += len(hidden)
    assert seen > 10


def test_names_are_told_inside_of_a_sentence():
    row = ["The", "man", "met", "Anna", "Smith", "in", "May", ".", "Then", "he", "left"]
    flags = Protection(punctuation=False)(row)
    assert [w for w, f in zip(row, flags, strict=True) if f] == ["Anna", "Smith", "May"]


def test_the_files_of_all_parts_count(tmp_path):
    files = [tmp_path / f"{number}.json" for number in range(2)]
    for file in files:
        file.write_text('{"big": ["large"]}')
    parts = [SynonymReplacement(source=str(file)) for file in files]
    for both in (Chain(parts), OneOf(parts)):
        before = both.fingerprint()
        files[0].write_text('{"big": ["huge"]}')
        assert type(both)(parts).fingerprint() != before
        files[0].write_text('{"big": ["large"]}')


def test_a_spec_imports_nothing(tmp_path, monkeypatch):
    (tmp_path / "spelled_out.py").write_text("raise SystemError('it was run')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="import the module first"):
        transform_from("spelled_out.Thing")
