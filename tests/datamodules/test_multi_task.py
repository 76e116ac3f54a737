"""Batches of several tasks: complete, disjoint, in the same order everywhere, and resumed."""

from collections import Counter

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from lmkit.datamodules import SequenceClassificationDataModule, TokenClassificationDataModule
from lmkit.datamodules.batch_plan import BatchPlan
from lmkit.datamodules.multi_task import MultiTaskDataModule
from lmkit.datamodules.multi_task_plan import MultiTaskPlan
from lmkit.datamodules.task_sampling import TaskSchedule
from tests import task_files, tiny
from tests.several_tasks import data_specs, make_data


def plan_of(rank=0, world_size=1, sampling="temperature", batches=12, used=None, accumulate=1):
    plans = [BatchPlan(rows, 2, rank, world_size, seed=4) for rows in (20, 9, 3)]
    schedule = TaskSchedule(sampling, (20, 9, 3), batches, seed=4, accumulate=accumulate)
    return MultiTaskPlan(plans, schedule if sampling else None, batches, used)


def told(plan, epoch, position):
    """Return the parts of a batch: task, its epoch and the rows."""
    words, parts = plan.batch(epoch, position).tolist(), []
    while words:
        task, own, count, *words = words
        parts.append((task, own, words[:count]))
        words = words[count:]
    return parts


@pytest.mark.parametrize("sampling", ["temperature", "round_robin", None])
def test_each_task_goes_through_its_own_epochs_whole(sampling):
    plan = plan_of(sampling=sampling)
    seen = [Counter() for _ in plan.plans]
    for epoch in range(6):
        for position in range(len(plan)):
            for task, own, rows in told(plan, epoch, position):
                seen[task].update((own, row) for row in rows if row >= 0)
    for task, rows in enumerate((20, 9, 3)):
        assert set(seen[task].values()) == {1}
        last = max(own for own, _ in seen[task])
        assert last > 1
        for own in range(last):
            assert {row for at, row in seen[task] if at == own} == set(range(rows))


def test_a_batch_can_be_made_without_those_before_it():
    plan = plan_of()
    order = [(epoch, position) for epoch in range(3) for position in range(len(plan))]
    in_order = [plan.batch(*place).tolist() for place in order]
    for place in np.random.default_rng(0).permutation(len(order)):
        assert plan.batch(*order[place]).tolist() == in_order[place]
    assert plan_of().batch(*order[-1]).tolist() == in_order[-1]


@pytest.mark.parametrize("sampling", ["temperature", None])
def test_ranks_have_the_same_tasks_and_different_rows(sampling):
    ranks = [plan_of(rank, 2, sampling) for rank in range(2)]
    for epoch in range(2):
        for position in range(12):
            first, second = (told(plan, epoch, position) for plan in ranks)
            assert [part[:2] for part in first] == [part[:2] for part in second]
            for (*_, ours), (*_, theirs) in zip(first, second, strict=True):
                assert not {r for r in ours if r >= 0} & {r for r in theirs if r >= 0}


def test_batches_that_are_not_used_are_no_turns():
    short = plan_of(used=5)
    tasks = [short.turns(0, position)[0][0] for position in range(5)]
    firsts = {}
    for position in range(12):
        task, turn = short.turns(1, position)[0]
        firsts.setdefault(task, turn)
    assert firsts == {task: tasks.count(task) for task in firsts}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_turns_go_on_where_a_shortened_epoch_ended(accumulate, tmp_path):
    limit = 2 * accumulate
    trainer = trainer_of(limit_train_batches=limit, accumulate_grad_batches=accumulate)
    how = {"sampling": "round_robin", "epoch_batches": 30}
    _, loader = loader_of(tmp_path, "topic", "ner", "qa", trainer=trainer, **how)
    turns = [loader.plan.turns(e, b)[0] for e in range(6) for b in range(limit)]
    assert [task for task, _ in turns[::accumulate]] == [0, 1, 2] * 4
    for task in range(3):
        assert [turn for each, turn in turns if each == task] == list(range(4 * accumulate))


def loader_of(folder, *names, trainer=None, **settings):
    data = make_data(folder, *names, **settings)
    data.trainer = trainer
    data.prepare_data()
    data.setup("fit")
    return data, data.train_dataloader()


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_a_batch_of_one_task_says_which_and_is_what_its_own_loader_makes(tmp_path):
    data, loader = loader_of(tmp_path, "topic", "ner", sampling="round_robin")
    own = {name: iter(each.train_dataloader()) for name, each in data.tasks.items()}
    assert len(loader) == sum(len(each.train_dataloader()) for each in data.tasks.values())
    for position, batch in zip(range(8), loader, strict=False):
        assert batch["task"].tolist() == [position % 2] * len(batch["input_ids"])
        number = batch.pop("task")
        assert number.dtype == torch.int64
        assert same(batch, next(own[data.names[position % 2]]))


def test_a_batch_of_all_tasks_has_the_entries_of_each(tmp_path):
    data, loader = loader_of(tmp_path, "topic", "qa", batches="all")
    lengths = [len(each.train_dataloader()) for each in data.tasks.values()]
    assert len(loader) == -(-sum(lengths) // 2)
    batch = next(iter(loader))
    for name, each in data.tasks.items():
        own = next(iter(each.train_dataloader()))
        part = {k.split("/")[1]: v for k, v in batch.items() if k.startswith(f"{name}/")}
        part.pop("task")
        assert same(part, own)


@pytest.mark.parametrize("batches", ["one", "all"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_goes_on_where_it_was_saved_with_any_number_of_workers(batches, workers, tmp_path):
    how = {"batches": batches, "epoch_batches": 7}
    _, whole = loader_of(tmp_path, "topic", "mlm", **how)
    expected = [*whole, *whole, *whole]
    _, first = loader_of(tmp_path, "topic", "mlm", num_workers=workers, **how)
    taken = [*first]
    for batch in first:
        taken.append(batch)
        if len(taken) == 10:
            break
    _, second = loader_of(tmp_path, "topic", "mlm", **how)
    second.load_state_dict(first.state_dict())
    taken += [*second, *second]
    assert len(taken) == len(expected) == 21
    assert all(same(ours, theirs) for ours, theirs in zip(taken, expected, strict=True))


def trainer_of(**settings):
    return Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **settings)


def test_an_epoch_is_of_whole_windows_of_one_task(tmp_path):
    trainer = trainer_of(accumulate_grad_batches=3, max_epochs=1)
    how = {"sampling": "round_robin", "epoch_batches": 10}
    _, loader = loader_of(tmp_path, "topic", "ner", trainer=trainer, **how)
    assert len(loader) == 12
    tasks = [int(batch["task"][0]) for batch in loader]
    assert tasks == [0, 0, 0, 1, 1, 1] * 2


def test_annealing_knows_how_long_the_run_is(tmp_path):
    for length, epochs in (
        ({"max_epochs": 4}, 4),
        ({"max_steps": 25}, 3),
        ({"max_steps": 25, "limit_train_batches": 5}, 5),
    ):
        how = {"trainer": trainer_of(**length), "sampling": "annealed", "epoch_batches": 10}
        _, loader = loader_of(tmp_path, "topic", "ner", **how)
        assert loader.plan.schedule.epochs == epochs
    with pytest.raises(ValueError, match="set max_epochs or max_steps"):
        loader_of(tmp_path, "topic", "ner", trainer=trainer_of(max_epochs=-1), sampling="annealed")


def test_a_strength_grows_over_the_own_epochs_of_a_task(tmp_path):
    """60 rows in batches of 4 are 15 turns; each task has half of 40 batches in each epoch."""
    specs = data_specs(tmp_path, "topic", "ner")
    specs["topic"]["init_args"] |= {
        "transforms": "RandomDeletion",
        "transform_options": {"strength": {"start": 0.0, "stop": 1.0}},
    }
    tiny.tokenizer_folder(tmp_path / "t")
    for sampling, length, turns in (
        ("round_robin", {"max_epochs": 3}, 60),
        ("round_robin", {"max_steps": 80}, 40),
        ("round_robin", {"max_epochs": 3, "limit_train_batches": 10}, 15),
    ):
        data = MultiTaskDataModule(
            specs,
            tokenizer=str(tmp_path / "t"),
            max_length=48,
            batch_size=4,
            seed=3,
            sampling=sampling,
            epoch_batches=40,
        )
        data.trainer = trainer_of(**length)
        data.prepare_data()
        data.setup("fit")
        collate = data.train_dataloader().collate.parts[0].collate
        assert collate.epochs == -(-turns // 15)


def test_sizes_are_those_of_the_training_examples(tmp_path):
    _, loader = loader_of(tmp_path, "topic", "qa", cap=50)
    assert loader.plan.schedule.sizes == (60.0, 74.0)  # 60 questions in 74 rows
    weighted = make_data(
        tmp_path, "topic", "qa", sampling="weights", weights={"qa": 3.0, "topic": 1.0}
    )
    weighted.setup("fit")
    assert weighted.train_dataloader().plan.schedule.sizes == (1.0, 3.0)


def test_evaluation_has_a_loader_for_each_task_that_says_which_it_is(tmp_path):
    data, _ = loader_of(tmp_path, "topic", "ner")
    for loaders in (data.val_dataloader(), data.test_dataloader()):
        assert len(loaders) == 2
        for number, loader in enumerate(loaders):
            batches = list(loader)
            assert {int(n) for batch in batches for n in batch["task"]} == {number}
            rows = torch.cat([batch["index"] for batch in batches])
            assert sorted(rows[rows >= 0].tolist()) == list(range(13))


def test_prediction_is_of_the_named_task_alone(tmp_path):
    (tmp_path / "ask.txt").write_text("the quick fox\nold trees\n")
    asked = {"predict_file": str(tmp_path / "ask.txt"), "predict_task": "topic"}
    data = make_data(tmp_path, "ner", "topic", **asked)
    data.setup("predict")
    (batch,) = data.predict_dataloader()
    assert set(batch["task"].tolist()) == {1}
    assert data.inputs(1)["text"] == "old trees"
    with pytest.raises(ValueError, match="predict_task must name the task to predict, one of ner"):
        make_data(tmp_path, "ner", "topic", predict_file="ask.txt")


def test_a_data_module_may_be_given_as_it_is_and_is_kept_as_plain_data(tmp_path):
    files = task_files.labelled_texts(tmp_path / "topic")
    own = SequenceClassificationDataModule(**files, batch_size=7)
    data = MultiTaskDataModule({"topic": own}, batch_size=5)
    assert data.tasks["topic"] is own and own.batch_size == 7
    spec = data.hparams["tasks"]["topic"]
    assert spec["class_path"] == "lmkit.datamodules.SequenceClassificationDataModule"
    again = MultiTaskDataModule(**data.hparams)
    assert again.tasks["topic"].batch_size == 7
    assert again.tasks["topic"].files == own.files


def test_the_tokenizer_of_all_is_that_of_made_data_modules_too(tmp_path):
    folder = str(tiny.tokenizer_folder(tmp_path / "tokenizer"))
    texts, words = (
        task_files.labelled_texts(tmp_path / "a"),
        task_files.tagged_words(tmp_path / "b"),
    )
    made = {
        "topic": SequenceClassificationDataModule(**texts),
        "ner": TokenClassificationDataModule(**words, tokenizer="of/its/own"),
    }
    data = MultiTaskDataModule(made, tokenizer=folder)
    assert data.tasks["topic"].tokenizer_name == folder
    assert data.tasks["ner"].tokenizer_name == "of/its/own"


def test_settings_of_all_give_way_to_those_of_a_task(tmp_path):
    specs = data_specs(tmp_path, "topic", "ner")
    specs["ner"]["init_args"]["batch_size"] = 3
    data = MultiTaskDataModule(specs, batch_size=5, seed=11)
    assert [each.batch_size for each in data.tasks.values()] == [5, 3]
    assert [each.seed for each in data.tasks.values()] == [11, 11]


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        ({"class_path": "TopicDataModule"}, ValueError, "task 'topic': class_path 'TopicData"),
        (
            {"class_path": "TokenClassificationDataModul"},
            ValueError,
            "did you mean 'TokenClassificationDataModule'",
        ),
        (
            {"class_path": "TokenClassificationDataModule", "init_args": {"train_fil": "x"}},
            ValueError,
            "task 'topic': TokenClassificationDataModule has no argument 'train_fil'; did you mean",
        ),
        ({"class": "TokenClassificationDataModule"}, TypeError, "data of a task are"),
        ({"class_path": "os.path"}, ValueError, "names no data module"),
    ],
)
def test_wrong_specs_are_refused_by_name(spec, error, words):
    with pytest.raises(error, match=words):
        MultiTaskDataModule({"topic": spec})


def test_a_task_without_training_rows_is_named(tmp_path):
    specs = data_specs(tmp_path, "topic", "ner")
    specs["ner"]["init_args"].pop("train_file")
    folder = tiny.tokenizer_folder(tmp_path / "tokenizer")
    data = MultiTaskDataModule(specs, tokenizer=folder)
    with pytest.raises(ValueError, match="task 'ner': "):
        data.setup("fit")
        data.train_dataloader()


def test_different_tokenizers_are_refused_by_name(tmp_path):
    specs = data_specs(tmp_path, "topic", "ner", "qa")
    specs["qa"]["init_args"]["tokenizer"] = tiny.tokenizer_folder(tmp_path / "other", "bpe")
    data = MultiTaskDataModule(specs, tokenizer=tiny.tokenizer_folder(tmp_path / "tokenizer"))
    with pytest.raises(ValueError, match="'topic' and 'qa' have different tokenizers"):
        data.setup("fit")


def test_a_stream_is_refused(tmp_path):
    specs = data_specs(tmp_path, "topic", "mlm")
    specs["mlm"]["init_args"]["streaming"] = True
    data = MultiTaskDataModule(specs, tokenizer=tiny.tokenizer_folder(tmp_path / "tokenizer"))
    data.setup("fit")
    with pytest.raises(ValueError, match="task 'mlm': a stream has no end"):
        data.train_dataloader()
