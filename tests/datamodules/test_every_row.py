"""Every row of a split comes once, as training has it, so that what is kept of it is found."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lmkit.datamodules import (
    CausalLMDataModule,
    DenoisingDataModule,
    MaskedLMDataModule,
    MultipleChoiceDataModule,
    QuestionAnsweringDataModule,
    ReplacedTokenDataModule,
    Seq2SeqDataModule,
    SequenceClassificationDataModule,
    TokenClassificationDataModule,
)
from lmkit.modules.store_runs import token_runs
from lmkit.modules.store_writer import StoreWriter
from tests import task_files, tiny

DRAWN = [MaskedLMDataModule, ReplacedTokenDataModule, DenoisingDataModule]
TASKS = {
    "classes": (SequenceClassificationDataModule, task_files.labelled_texts, {}),
    "balanced": (
        SequenceClassificationDataModule,
        task_files.labelled_texts,
        {"class_balanced": True, "examples_per_class": 7},
    ),
    "values": (SequenceClassificationDataModule, task_files.scored_pairs, {"task": "regression"}),
    "tags": (TokenClassificationDataModule, task_files.tagged_words, {"max_length": 8}),
    "questions": (
        QuestionAnsweringDataModule,
        task_files.questions,
        {"doc_stride": 4, "max_question_length": 10},
    ),
    "choices": (MultipleChoiceDataModule, task_files.choices, {}),
    "pairs": (Seq2SeqDataModule, task_files.text_pairs, {}),
}
MODES = ("pack", "bucket", "chunk")


@pytest.fixture
def make(tmp_path):
    """A data module of causal texts (by its batching) or of a task."""

    def made(kind, **options):
        common = {
            "tokenizer": tiny.tokenizer_folder(tmp_path / "tokenizer"),
            "cache_dir": str(tmp_path / "cache"),
            "max_length": 24,
            "batch_size": 4,
            "seed": 1,
        }
        if kind in MODES:
            common["train_file"] = str(tiny.write_text(tmp_path / "train.txt", 60))
            data = CausalLMDataModule(batching=kind, **common | options)
        else:
            make_data, write, own = TASKS[kind]
            data = make_data(**common | write(tmp_path) | own | options)
        data.setup()
        return data

    return made


def contents(batches):
    """What stands in each row, by its number: a list, of which each is a turn of the row."""
    found = {}
    for batch in batches:
        real = batch["attention_mask"].bool()
        if "choice_mask" in batch:
            real &= batch["choice_mask"].bool().unsqueeze(-1)
        for row, number in enumerate(batch["index"].tolist()):
            if number >= 0:
                ids = batch["input_ids"][row][real[row]].tolist()
                rest = [batch[n][row] for n in batch if n in ("labels", "start_positions")]
                targets = [v.flatten()[v.flatten() != -100].tolist() for v in rest]
                found.setdefault(number, []).append((ids, targets))
    return found


@pytest.mark.parametrize("kind", [*MODES, *TASKS])
def test_every_row_comes_once_and_is_what_each_epoch_has(make, kind):
    data = make(kind)
    assert data.fixed_rows
    rows = contents(data.every_row())
    assert sorted(rows) == list(range(data.row_count())) and len(rows) > 5
    assert {len(turns) for turns in rows.values()} == {1}
    loader, seen = data.train_dataloader(), set()
    for _ in range(3):
        for number, turns in contents(loader).items():
            assert {str(turn) for turn in turns} == {str(rows[number][0])}
            seen.add(number)
    assert seen == set(rows)


@pytest.mark.parametrize("kind", [*MODES, "classes", "tags"])
def test_neither_the_trainer_nor_the_seed_nor_workers_change_the_batches(make, kind):
    def batches(data, **how):
        return [{n: t.tolist() for n, t in batch.items()} for batch in data.every_row(**how)]

    data = make(kind)
    expected = batches(data)
    data.trainer = SimpleNamespace(
        global_rank=1,
        world_size=2,
        limit_train_batches=1,
        overfit_batches=1,
        accumulate_grad_batches=3,
        lightning_module=None,
    )
    assert batches(data) == expected
    assert batches(make(kind, seed=7, num_workers=2)) == expected
    bigger = data.every_row(batch_size=16)
    assert contents(bigger) == contents(data.every_row()) and len(bigger) < len(expected)


@pytest.mark.parametrize("kind", [*MODES, *TASKS])
def test_the_validation_has_its_rows_too(make, kind):
    data = make(kind, eval_batching=kind) if kind in MODES else make(kind)
    rows = contents(data.every_row("val"))
    assert sorted(rows) == list(range(data.row_count("val")))
    longest = max(batch["input_ids"].shape[-1] for batch in data.every_row("val"))
    assert longest <= data.max_length
    assert rows != contents(data.every_row())


@pytest.mark.parametrize("kind", ["bucket", "classes", "tags", "pairs"])
def test_rows_of_about_one_length_are_together(make, kind):
    data = make(kind)

    def padding(loader):
        return sum(int((batch["attention_mask"] == 0).sum()) for batch in loader)

    # Sentences to tag meet at random in training.
    assert padding(data.every_row()) < (0.7 if kind == "tags" else 1.01) * padding(
        data.train_dataloader()
    )


@pytest.mark.parametrize("make_data", DRAWN)
def test_rows_that_are_drawn_anew_cannot_be_kept(make_data, train):
    for streaming in (False, True):
        data = make_data(train_file=str(train), streaming=streaming)
        assert not data.fixed_rows
        with pytest.raises(ValueError, match=f"{make_data.__name__} draws its rows anew .* ask it"):
            data.every_row()


def test_a_stream_has_no_rows_to_be_found_again(train):
    data = CausalLMDataModule(train_file=str(train), streaming=True)
    assert not data.fixed_rows
    with pytest.raises(ValueError, match=r"a stream has no rows .* or pass streaming=False"):
        data.every_row()


@pytest.mark.parametrize(
    ("kind", "what"), [("chunk", "is no test text"), ("classes", "are no test")]
)
def test_what_is_not_there_is_said(make, kind, what):
    data = make(kind)
    with pytest.raises(ValueError, match="split must be one of train, val, test, got 'predict'"):
        data.every_row("predict")
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        data.every_row(batch_size=0)
    for call in (data.every_row, data.row_count):
        with pytest.raises(ValueError, match=f"there {what}.*; pass test_file"):
            call("test")


def test_the_fingerprint_of_rows_knows_no_order_and_no_other_split(make, tmp_path):
    other = tiny.write_text(tmp_path / "other.txt", 12, seed=5)
    first = make("chunk", val_file=str(other))
    again = make("chunk", val_file=str(tiny.write_text(tmp_path / "o.txt", 9, seed=6)), seed=2)
    assert first.rows_fingerprint() == again.rows_fingerprint()
    assert first.fingerprint != again.fingerprint
    assert first.rows_fingerprint("val") != again.rows_fingerprint("val")
    prints = {first.rows_fingerprint(), first.rows_fingerprint("val")}
    for change in (
        {"max_length": 16},
        {"train_file": str(other)},
        {"tokenizer": None},
        {"val_file": None},
        {"kind": "pack"},
    ):
        options = {"kind": "chunk", "val_file": str(other)} | change
        prints.add(make(**options).rows_fingerprint())
    assert len(prints) == 7
    held = make("chunk")
    packed = make("chunk", eval_batching="pack")
    assert held.rows_fingerprint() == packed.rows_fingerprint()
    assert held.rows_fingerprint("val") != packed.rows_fingerprint("val")


def test_the_fingerprint_of_few_examples_knows_which_they_are(make):
    assert make("classes").rows_fingerprint() == make("classes", seed=2).rows_fingerprint()
    few = [make("balanced", seed=seed).rows_fingerprint() for seed in (1, 2, 1)]
    assert few[0] == few[2] != few[1] != make("classes").rows_fingerprint()


@pytest.mark.parametrize("kind", [*MODES, "tags", "packed tags", "classes"])
def test_what_a_teacher_said_of_each_token_is_found_in_training(make, tmp_path, kind):
    """A teacher that says each token's id: it must stand where the token stands."""
    data = make(kind.removeprefix("packed "))
    packed = kind == "packed tags"
    data.batching = "pack" if packed else getattr(data, "batching", None)
    data.trainer = SimpleNamespace(
        global_rank=0,
        world_size=1,
        limit_train_batches=1.0,
        lightning_module=SimpleNamespace(keeps_apart=lambda length: packed),
        fit_loop=SimpleNamespace(
            epoch_progress=SimpleNamespace(current=SimpleNamespace(processed=2))
        ),
    )
    with StoreWriter(tmp_path / "store", data.row_count(), {}, {"ids": "int32"}) as writer:
        for batch in data.every_row().starting_at(writer.position):
            numbers, runs = token_runs(batch["input_ids"], batch)
            writer.write(numbers, {"ids": runs})
        store = writer.finish()
    found = set()
    for batch in data.train_dataloader():
        name = "segment_index" if packed else "index"
        assert ("segment_index" in batch) == packed
        numbers, width = batch[name], batch["input_ids"].shape[1]
        ids = (store.segments if packed else store.rows)("ids", numbers, width)
        real = (batch["attention_mask"] > 0) & (batch["index"] >= 0).unsqueeze(1)
        assert torch.equal(torch.from_numpy(ids).long(), batch["input_ids"] * real)
        found |= set(numbers.flatten().tolist())
    assert found - {-1} == set(range(data.row_count()))


def test_a_loader_goes_on_with_any_of_its_batches(make):
    loader = make("bucket").every_row()
    whole = [batch["index"].tolist() for batch in loader]
    for position in range(len(loader) + 1):
        rest = [batch["index"].tolist() for batch in loader.starting_at(position)]
        assert rest == whole[position:]
    for position in (-1, len(loader) + 1):
        with pytest.raises(ValueError, match=rf"position must lie in \[0, {len(loader)}\], got"):
            loader.starting_at(position)


def test_nothing_is_drawn_from_the_global_generators(make):
    data = make("pack")
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    list(data.every_row())
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()
