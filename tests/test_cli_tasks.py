"""Options of one task reach it alone, whatever config it stands in."""

import json

import pytest

from lmkit.cli_tasks import keep_adapter_size, place_task_options

CONFIG = json.dumps(
    {
        "model": {"init_args": {"tasks": {"ner": {"class_path": "A"}, "qa": {"class_path": "B"}}}},
        "data": {"init_args": {"tasks": {"ner": {"class_path": "C", "init_args": {"seed": 1}}}}},
    }
)


def tasks_of(words, section):
    """Return the tasks of the last config that has some."""
    found = [json.loads(word) for word in words if word.startswith("{")]
    return [c[section]["init_args"]["tasks"] for c in found if section in c][-1]


@pytest.mark.parametrize(
    "option", ["--data.tasks.ner.lr", "--data.init_args.tasks.ner.init_args.lr"]
)
@pytest.mark.parametrize("equals", [True, False])
def test_an_option_changes_one_argument_of_one_task(option, equals):
    words = [f"{option}=1e-3"] if equals else [option, "1e-3"]
    placed = place_task_options(["fit", "-c", CONFIG, *words, "--trainer.max_steps=2"])
    assert placed[:3] == ["fit", "-c", CONFIG] and placed[-1] == "--trainer.max_steps=2"
    changed = {"ner": {"class_path": "C", "init_args": {"seed": 1, "lr": 1e-3}}}
    assert tasks_of(placed, "data") == changed


def test_options_of_several_tasks_and_sections_add_up():
    words = ["--model.tasks.ner.a=x", "--model.tasks.qa.b=[1, 2]", "--data.tasks.ner.c=null"]
    placed = place_task_options(
        ["fit", f"--config={CONFIG}", *words, "--model.tasks.qa.class_path=Z"]
    )
    ner, qa = tasks_of(placed, "model").values()
    assert ner == {"class_path": "A", "init_args": {"a": "x"}}
    assert qa == {"class_path": "Z", "init_args": {"b": [1, 2]}}
    assert tasks_of(placed, "data")["ner"]["init_args"] == {"seed": 1, "c": None}


def test_what_is_about_no_task_stays_as_it_is():
    words = ["fit", "-c", CONFIG, "--data.batch_size=4", "--model.weights.ner=2", "--x", "y"]
    assert place_task_options(words) == words


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("--data.tasks.nre.lr=1", "there is no task nre, did you mean ner"),
        ("--data.tasks.ner.lr", "needs a value"),
    ],
)
def test_wrong_options_are_refused(word, words):
    with pytest.raises(ValueError, match=words):
        place_task_options(["fit", "-c", CONFIG, word])


WITH_SIZE = json.dumps({"model": {"init_args": {"task_adapters": 16}}})
MIXED = "--model.task_adapters.aggregate=true"


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["-c", WITH_SIZE, MIXED], ["-c", WITH_SIZE, "--model.task_adapters.size=16", MIXED]),
        (
            ["-c", WITH_SIZE, "--model.task_adapters=8", MIXED],
            ["-c", WITH_SIZE, "--model.task_adapters.size=8", MIXED],
        ),
        (["--model.task_adapters", "8", MIXED], ["--model.task_adapters.size=8", MIXED]),
        (["--model.task_adapters=8"], ["--model.task_adapters=8"]),
        ([MIXED, "--model.task_adapters=8"], [MIXED, "--model.task_adapters=8"]),
        (['--model.task_adapters={"kind": "houlsby"}', MIXED],) * 2,
        ([MIXED], [MIXED]),
        (
            ["-c", WITH_SIZE, MIXED, "--model.task_adapters.size=4"],
            ["-c", WITH_SIZE, MIXED, "--model.task_adapters.size=4"],
        ),
    ],
)
def test_a_size_that_is_a_number_alone_stays_beside_other_words(words, kept):
    assert keep_adapter_size(words) == kept
