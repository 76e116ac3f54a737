"""Every packaged recipe runs through the real command, made small."""

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import BertConfig, BertModel, T5Config, T5ForConditionalGeneration

from lmkit import cli, load
from lmkit.chain import has_stages
from tests import task_files
from tests.choices import write_choices
from tests.squad import write_questions
from tests.tiny import MASKED, SEQ2SEQ, tokenizer, write_text
from tests.tiny_run import lmkit

#: Less of everything, and a text of its own: the embedded corpus is read in its own tests.
FAST = (
    "--data.batch_size=4 --trainer.accelerator=cpu --trainer.max_steps=4 "
    "--trainer.max_epochs=-1 --trainer.val_check_interval=2 --trainer.log_every_n_steps=1 "
    "--trainer.enable_progress_bar=false --trainer.enable_model_summary=false"
)
TEXT = "--data.source=text.txt --data.val_fraction=0.2 --data.vocab_size=300 --data.max_length=16"
RECIPES = cli.recipes()
#: Recipes that begin with a model of the hub, in whose place a tiny one is put.
FROM_A_MODEL = ("masked_lm_head", "continued_pretraining")

#: Recipes that change the loss of a classifier, or the passes over a batch.
WITH_A_LOSS = (
    "awp",
    "cutoff",
    "fgm",
    "free_lb",
    "mixup",
    "pgd",
    "r_drop",
    "smart",
    "uda",
    "vat",
)

#: Recipes that train a part of an encoder to classify texts.
TUNED_IN_PART = (
    "adapter",
    "bitfit",
    "ia3",
    "lora",
    "prefix_tuning",
    "prompt_tuning",
    "selective_tuning",
)


@dataclass(frozen=True)
class Task:
    """What a downstream recipe is tried with.

    Attributes:
        files: writes the data, and returns the arguments that name them.
        flags: further options.
        ask: writes rows to predict on, and returns the file.
        answer: what a prediction has.
        model: what stands in the place of the recipe's model.
    """

    files: Callable[[Path], dict[str, Any]]
    answer: str
    flags: str = "--data.max_length=32"
    ask: Callable[[Path], Path] | None = None
    model: str | None = "encoder"


def line(text: str, ending: str = "txt") -> Callable[[Path], Path]:
    """Write one line to predict on."""

    def write(folder: Path) -> Path:
        path = folder / f"ask.{ending}"
        path.write_text(text + "\n")
        return path

    return write


PAIR = line('{"sentence1": "the fox", "sentence2": "the dog"}', "jsonl")
QUESTION_FLAGS = "--data.max_length=48 --data.doc_stride=8 --data.max_question_length=10"
TRANSLATION = "--data.max_length=32 --data.max_target_length=16 --model.max_new_tokens=4"
#: Recipes that train a classifier of texts with one technique.
CLASSIFIERS = (
    *WITH_A_LOSS,
    *TUNED_IN_PART,
    "gradual_unfreezing",
    "low_rank",
    "quantization",
    "structured_pruning",
    "text_augmentation",
)
#: Those whose callbacks differ from another's by a formula alone run in `make test-all`.
RARE = (
    *("awp", "cutoff", "free_lb", "mixup", "pgd", "smart", "vat"),
    *("bitfit", "ia3", "selective_tuning", "gradual_unfreezing"),
)
TASKS = {
    **{
        word: Task(task_files.labelled_texts, "label")
        for word in ("sequence_classification", *CLASSIFIERS)
    },
    "pair_classification": Task(
        task_files.scored_pairs, "label", "--data.max_length=32 --data.label_column=score", PAIR
    ),
    "regression": Task(task_files.scored_pairs, "value", ask=PAIR),
    "token_classification": Task(task_files.tagged_words, "entities"),
    "pos": Task(task_files.parts_of_speech, "words"),
    "question_answering": Task(
        task_files.questions,
        "answer",
        QUESTION_FLAGS,
        lambda folder: write_questions(folder / "ask.json", 3, 4, labelled=False),
    ),
    "multiple_choice": Task(
        task_files.choices,
        "probabilities",
        "--data.max_length=48",
        lambda folder: write_choices(folder / "ask.jsonl", 3, 4, labelled=False),
    ),
    "seq2seq": Task(task_files.text_pairs, "generated", TRANSLATION, model="t5"),
    "translation": Task(
        task_files.text_pairs, "generated", f"{TRANSLATION} --data.vocab_size=300", model=None
    ),
}
#: Recipes that need what another one has trained.
DISTILLATION = [word for word in RECIPES if word.startswith("distillation")]
#: Recipes of several fits are in tests/test_chain.py.
CHAINS = [word for word, path in RECIPES.items() if has_stages(path)]
OTHERS = (*TASKS, *DISTILLATION, *CHAINS, "adapter_fusion", "multi_task")
PRETRAINING = [word for word in RECIPES if word not in OTHERS]


def encoder(folder: Path) -> Path:
    """Save a tiny encoder without a language-model head, and its tokenizer."""
    config = BertConfig(**{k: v for k, v in MASKED["bert"].items() if k != "model_type"})
    config.vocab_size = len(tokenizer())
    BertModel(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def test_there_are_recipes():
    assert {"masked_lm", "causal_lm", "denoising", "replaced_token"} <= set(RECIPES)


def encoder_decoder(folder: Path) -> Path:
    """Save a tiny T5 and its tokenizer."""
    settings = {k: v for k, v in SEQ2SEQ["t5"].items() if k != "model_type"}
    own = tokenizer("bpe")
    config = T5Config(**settings, vocab_size=len(own), decoder_start_token_id=own.pad_token_id)
    config.pad_token_id, config.eos_token_id = own.pad_token_id, own.eos_token_id
    T5ForConditionalGeneration(config).save_pretrained(folder)
    own.save_pretrained(folder)
    return folder


# Of pairs the numbers are taken for classes here.
@pytest.mark.filterwarnings("ignore:the labels are 4 numbers")
@pytest.mark.parametrize(
    "word", [pytest.param(w, marks=pytest.mark.slow if w in RARE else ()) for w in TASKS]
)
def test_task_recipe_trains_resumes_tests_and_predicts(word, tmp_path):
    task = TASKS[word]
    named = " ".join(f"--data.{k}={v}" for k, v in task.files(tmp_path / "data").items())
    fast = f"{FAST} {named} {task.flags}"
    if task.model:
        make = {"encoder": encoder, "t5": encoder_decoder}[task.model]
        fast += f" --model.model={make(tmp_path / 'model')}"
    run = tmp_path / "runs" / word
    assert lmkit(f"fit -c {word} {fast}") == 0
    assert lmkit(f"fit -c {word} {fast} --trainer.max_steps=6 --ckpt_path last") == 0
    last = run / "checkpoints" / "last.ckpt"
    assert any((run / "checkpoints").glob("best-*.ckpt"))
    assert list((run / "tables" / "test").glob("*.jsonl")) or task.answer in ("value", "generated")
    asked = (task.ask or line("the quick fox"))(tmp_path)
    assert lmkit(f"predict --ckpt_path {last} --data.predict_file={asked}") == 0
    rows = [json.loads(row) for row in (run / "predictions.jsonl").open()]
    assert rows and all(task.answer in row for row in rows)
    if word in CLASSIFIERS:  # with a technique: what comes now is what the first of them does
        return
    assert lmkit(f"test --ckpt_path {last}") == 0
    output = f"--output={tmp_path / 'table.csv'}"
    assert lmkit(f"predict --ckpt_path {last} --data.predict_file={asked} {output}") == 0
    with (tmp_path / "table.csv").open() as file:
        assert task.answer in next(csv.reader(file))


def test_fusion_trains_on_adapters_that_were_trained_before(tmp_path):
    named = " ".join(f"--data.{k}={v}" for k, v in task_files.labelled_texts(tmp_path).items())
    fast = f"{FAST} {named} --data.max_length=32 --model.model={encoder(tmp_path / 'model')}"
    for number in ("first", "second"):
        root = f"--trainer.default_root_dir={tmp_path / number} --seed_everything={len(number)}"
        assert lmkit(f"fit -c adapter {fast} {root}") == 0
        (tmp_path / "adapters").mkdir(exist_ok=True)
        last = tmp_path / number / "checkpoints" / "last.ckpt"
        last.replace(tmp_path / "adapters" / f"{number}.ckpt")
    assert lmkit(f"fit -c adapter_fusion {fast}") == 0
    assert lmkit(f"fit -c adapter_fusion {fast} --trainer.max_steps=6 --ckpt_path last") == 0
    # From here on the checkpoint holds all that is needed.
    (tmp_path / "adapters").rename(tmp_path / "gone")
    assert lmkit(f"fit -c adapter_fusion {fast} --trainer.max_steps=7 --ckpt_path last") == 0
    last = tmp_path / "runs" / "adapter_fusion" / "checkpoints" / "last.ckpt"
    asked = line("the quick fox")(tmp_path)
    assert lmkit(f"predict --ckpt_path {last} --data.predict_file={asked}") == 0


def test_several_tasks_train_on_one_encoder(tmp_path, capsys):
    topics, names = task_files.labelled_texts(tmp_path), task_files.tagged_words(tmp_path / "ner")
    files = {"topic": topics, "names": names}
    named = " ".join(f"--data.tasks.{n}.{k}={v}" for n in files for k, v in files[n].items())
    model = f"--model.model={encoder(tmp_path / 'model')} --model.weights.names=0.5"
    fast = f"{FAST} {named} {model} --data.max_length=32"
    task = "--model.tasks.topic.label_smoothing=0.1"
    assert lmkit(f"fit -c multi_task {fast} {task}") == 0
    assert lmkit(f"fit -c multi_task {fast} {task} --trainer.max_steps=6 --ckpt_path last") == 0
    assert "overridden" not in capsys.readouterr().err
    last = Path("runs/multi_task/checkpoints/last.ckpt")
    config = yaml.safe_load(Path("runs/multi_task/config.yaml").read_text())
    tasks = config["model"]["init_args"]["tasks"]
    assert tasks["topic"]["init_args"] == {"label_smoothing": 0.1}
    found = {"val/mean", "val/topic/accuracy", "val/names/f1", "train/topic/loss"}
    assert found < logged("multi_task")
    assert list(Path("runs/multi_task/tables/test/names").glob("*.jsonl"))
    asked = f"--data.predict_task=topic --data.predict_file={line('the quick fox')(tmp_path)}"
    assert lmkit(f"predict --ckpt_path {last} {asked}") == 0
    assert "label" in json.loads(Path("runs/multi_task/predictions.jsonl").read_text())
    assert lmkit(f"export --ckpt {last} --output exported") == 0
    assert {path.name for path in Path("exported").iterdir()} == {"topic", "names"}
    with pytest.raises(ValueError, match="holds the models names, topic: give one of them"):
        load("exported")
    for command in ("test", "validate"):  # with the tokens of the checkpoint
        assert lmkit(f"{command} --ckpt_path {last}") == 0, capsys.readouterr().err
    assert lmkit(f"export --ckpt {last} --output alone --task names") == 0
    kind = json.loads(Path("alone/config.json").read_text())["architectures"]
    assert kind == ["BertForTokenClassification"]
    assert lmkit(f"fit -c multi_task {fast} --data.tasks.topics.batch_size=2") == 2
    assert "there is no task topics, did you mean topic?" in capsys.readouterr().err


def teach(word: str, fast: str) -> Path:
    """Train a teacher by its recipe, and return the export where a recipe of distillation looks."""
    assert lmkit(f"fit -c {word} {fast}") == 0
    run = Path("runs") / word
    assert lmkit(f"export --ckpt {run / 'checkpoints/last.ckpt'} --output {run / 'exported'}") == 0
    return run / "exported"


def distil(word: str, fast: str, capsys: pytest.CaptureFixture[str]) -> Path:
    """Train a student by a recipe, go on with it, and return its last checkpoint."""
    assert lmkit(f"fit -c {word} {fast}") == 0
    assert lmkit(f"fit -c {word} {fast} --trainer.max_steps=6 --ckpt_path last") == 0
    assert "overridden" not in capsys.readouterr().err
    return Path("runs") / word / "checkpoints" / "last.ckpt"


def logged(word: str) -> set[str]:
    """Return the names of all that a run has logged."""
    with Path(f"runs/{word}/csv/version_0/metrics.csv").open() as file:
        return set(next(csv.reader(file)))


def layers_of(ckpt: Path, name: str = "num_hidden_layers") -> Any:
    """Export a checkpoint, and return how many layers its model has."""
    assert lmkit(f"export --ckpt {ckpt} --output exported") == 0
    return json.loads(Path("exported/config.json").read_text())[name]


@pytest.mark.parametrize(
    ("word", "losses"),
    [
        ("distillation", {"hard", "logits", "hidden", "relations"}),
        ("distillation_two_stages", {"hard", "logits", "hidden", "attention"}),
    ],
)
def test_a_classifier_is_distilled_from_one_that_was_trained_before(word, losses, tmp_path, capsys):
    named = " ".join(f"--data.{k}={v}" for k, v in task_files.labelled_texts(tmp_path).items())
    fast = f"{FAST} {named} --data.max_length=32"
    made = teach("sequence_classification", f"{fast} --model.model={encoder(tmp_path / 'model')}")
    last = distil(word, f"{fast} --model.student_layers=1", capsys)
    assert {f"distillation/loss_{loss}" for loss in losses} < logged(word)
    assert {"val/accuracy", "val/agreement", "val/retention"} < logged(word)
    # What was trained needs its teacher no more.
    made.rename(tmp_path / "gone")
    asked = line("the quick fox")(tmp_path)
    assert lmkit(f"predict --ckpt_path {last} --data.predict_file={asked}") == 0
    assert "label" in json.loads((last.parent.parent / "predictions.jsonl").read_text())
    assert layers_of(last) == 1


def test_the_options_that_the_header_of_distillation_names_are_taken(tmp_path):
    files = task_files.labelled_texts(tmp_path)
    named = " ".join(f"--data.{k}={v}" for k, v in files.items())
    fast = f"{FAST} {named} --data.max_length=32"
    made = teach("sequence_classification", f"{fast} --model.model={encoder(tmp_path / 'model')}")
    made.rename(tmp_path / "elsewhere")
    other = (
        f"--model.teacher={tmp_path / 'elsewhere'} --model.student.model={tmp_path / 'elsewhere'}"
    )
    alone = f"--model.hard_weight=0 --data.unlabelled_file={files['val_file']}"
    more = "--model.losses+=FlowLoss --model.losses.weight=0.1 --model.losses.LogitLoss.weight=2"
    layers = "--model.student_layers=[0,1]"
    assert lmkit(f"fit -c distillation {fast} {other} {alone} {more} {layers}") == 0
    config = yaml.safe_load(Path("runs/distillation/config.yaml").read_text())
    weights = {
        loss["class_path"].rsplit(".", 1)[-1]: loss["init_args"]["weight"]
        for loss in config["model"]["init_args"]["losses"]
    }
    assert weights == {"LogitLoss": 2.0, "HiddenLoss": 1.0, "RelationLoss": 1.0, "FlowLoss": 0.1}
    assert "distillation/loss_flow" in logged("distillation")


def test_a_masked_language_model_is_distilled_from_its_base(tmp_path, capsys):
    write_text(tmp_path / "text.txt", 60)
    teach("masked_lm", f"{FAST} {TEXT}")
    last = distil("distillation_masked_lm", f"{FAST} {TEXT}", capsys)
    assert {"distillation/loss_logits", "distillation/loss_relations"} < logged(
        "distillation_masked_lm"
    )
    asked = line("the [MASK] fox")(tmp_path)
    assert lmkit(f"predict --ckpt_path {last} --data.predict_file={asked}") == 0
    assert (last.parent.parent / "tables" / "samples.jsonl").is_file()
    assert layers_of(last) == 1


def test_a_translator_is_distilled_from_what_its_teacher_writes(tmp_path, capsys):
    named = " ".join(f"--data.{k}={v}" for k, v in task_files.text_pairs(tmp_path).items())
    fast = f"{FAST} {named} --data.max_length=32 --data.max_target_length=16"
    teach("translation", f"{fast} --data.vocab_size=300 --model.max_new_tokens=4")
    fast += " --model.student.max_new_tokens=4"
    last = distil("distillation_seq2seq", fast, capsys)
    asked = line("the quick fox")(tmp_path)
    assert lmkit(f"predict --ckpt_path {last} --data.predict_file={asked}") == 0
    assert "generated" in json.loads((last.parent.parent / "predictions.jsonl").read_text())
    assert layers_of(last, "decoder_layers") == 1


@pytest.mark.parametrize("word", PRETRAINING)
def test_recipe_trains_resumes_and_predicts(word, tmp_path):
    write_text(tmp_path / "text.txt", 60)
    fills = ("masked_lm", "masked_lm_head", "continued_pretraining", "pruning")
    asked = {"denoising": "the <extra_id_0> fox", **dict.fromkeys(fills, "the [MASK] fox")}
    (tmp_path / "ask.txt").write_text(asked.get(word, "the quick") + "\n")
    run = tmp_path / "runs" / word
    fast = f"{FAST} {TEXT}"
    if word in FROM_A_MODEL:
        fast += f" --model.model={encoder(tmp_path / 'encoder')}"
    assert lmkit(f"fit -c {word} {fast}") == 0
    assert lmkit(f"fit -c {word} {fast} --trainer.max_steps=6 --ckpt_path last") == 0
    last = run / "checkpoints" / "last.ckpt"
    assert lmkit(f"predict --ckpt_path {last} --data.predict_file=ask.txt") == 0
    assert json.loads((run / "predictions.jsonl").read_text())
    steps = [json.loads(line)["step"] for line in (run / "tables" / "samples.jsonl").open()]
    assert sorted(set(steps)) == [0, 2, 4, 6]


@pytest.mark.parametrize(("word", "path"), RECIPES.items())
def test_recipe_says_what_why_and_how(word, path):
    what, empty, why, *_ = path.read_text().splitlines()
    assert what.startswith("# ") and what.endswith(".") and len(what) <= 100
    assert (empty, why[:7]) == ("#", "# Why: ")
    assert f"#   lmkit fit -c {word}" in path.read_text()


@pytest.mark.parametrize("word", [word for word in RECIPES if word not in CHAINS])
def test_recipe_is_resolved_without_a_change(word, capsys):
    """What the parser makes of a recipe holds every value that stands in it."""

    def contains(whole, part):
        if isinstance(part, dict):
            return all(contains(whole[key], part[key]) for key in part)
        if isinstance(part, list):
            return all(contains(w, p) for w, p in zip(whole, part, strict=True))
        # Short class names are resolved.
        return whole == part or str(whole).endswith(f".{part}")

    assert lmkit(f"fit -c {word} --print_config") == 0
    resolved = yaml.safe_load(capsys.readouterr().out)
    assert contains(resolved, yaml.safe_load(Path(RECIPES[word]).read_text()))
