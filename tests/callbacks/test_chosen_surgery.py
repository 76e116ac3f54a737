from typing import Any

from lmkit.callbacks.chosen_surgery import entry_of, why_no_entry

HALF = {"class_path": "Cut", "init_args": {"chosen": {"share": 0.5, "by": "size"}}}
OTHER = {"class_path": "Fold", "init_args": {"chosen": {"share": 0.7, "by": "size"}}}
WORDS: Any = {"name": "CutCallback", "done": "was cut", "otherwise": "is whole"}


def test_an_entry_is_known_by_its_class_and_all_its_settings() -> None:
    ledger = [OTHER, HALF]
    assert entry_of(ledger, "Cut", {"share": 0.5, "by": "size"}) is HALF
    assert entry_of(ledger, "Cut", {"share": 0.7, "by": "size"}) is None
    assert entry_of(ledger, "Cut", {"share": 0.5}) is None


def test_only_what_differs_is_named() -> None:
    said = why_no_entry([HALF, OTHER], "Cut", {"share": 0.7, "by": "size"}, **WORDS)
    assert said.startswith("the checkpoint was cut with share=0.5, and CutCallback of this run has")
    assert "share=0.7: give" in said and "size" not in said


def test_a_ledger_without_such_surgeries_says_so() -> None:
    said = why_no_entry([OTHER], "Cut", {"share": 0.7}, **WORDS)
    assert said.startswith("the checkpoint is whole: give the callback")
