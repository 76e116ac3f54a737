import pytest

from lmkit.datamodules.data_facts import compare_facts

FACTS = {
    "train text": "a1",
    "val text": "b2",
    "val_fraction": 0.0,
    "tokenizer": "c3",
    "max_length": 128,
    "seed": 1,
    "mask_rate": 0.15,
}


def test_equal_facts_say_nothing():
    assert compare_facts(FACTS, dict(FACTS)) == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train text": "a2"}, "the train text was changed"),
        ({"unlabelled text": "a1"}, "the unlabelled text was changed"),
        ({"tokenizer": "c4"}, "the tokenizer was changed"),
        ({"max_length": 64}, "max_length was changed from 128 to 64"),
        ({"seed": 2}, "seed was changed from 1 to 2"),
        ({"val_fraction": 0.1}, "val_fraction was changed from 0.0 to 0.1"),
    ],
)
def test_a_fact_that_orders_the_data_stops_a_resume(change, message):
    with pytest.raises(ValueError, match=f"cannot resume: .*{message}.*start a new run"):
        compare_facts(FACTS, {**FACTS, **change})


def test_other_facts_are_only_told():
    told = compare_facts(FACTS, {**FACTS, "mask_rate": 0.3, "val text": "b3"})
    assert "mask_rate was changed from 0.15 to 0.3" in told
    assert "the val text was changed" in told


def test_a_split_that_comes_or_goes_is_told():
    now = {**FACTS, "test text": "d4"}
    assert "the test text was changed" in compare_facts(FACTS, now)
    assert "the test text was changed" in compare_facts(now, FACTS)
