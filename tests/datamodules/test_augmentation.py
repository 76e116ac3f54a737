"""Changed words in the data modules: as more examples, or anew in each epoch."""

import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn

from lmkit.callbacks import UDACallback
from lmkit.datamodules import (
    QuestionAnsweringDataModule,
    SequenceClassificationDataModule,
    TokenClassificationDataModule,
)
from lmkit.modules import SequenceClassificationModule, TokenClassificationModule
from lmkit.transforms import (
    Edit,
    RandomDeletion,
    Sometimes,
    Transform,
    Transformed,
    example_rng,
    transform_tagged,
    transform_text,
)
from tests import task_files, tiny
from tests.cases import make_trainer, named

HALF = {"strength": 0.5}
DELETE = [{"class_path": "RandomDeletion", "init_args": {"rate": 0.4}}]


@pytest.fixture
def make(tmp_path, tmp_path_factory):
    shared = tmp_path_factory.getbasetemp() / "word-pieces"
    if not shared.exists():
        tiny.tokenizer_folder(shared)

    def of(files=task_files.labelled_texts, cls=SequenceClassificationDataModule, **options):
        folder = tmp_path / files.__name__
        folder.mkdir(exist_ok=True)
        settings = {
            **files(folder),
            "tokenizer": str(shared),
            "cache_dir": str(tmp_path / "cache"),
            "max_length": 48,
            "batch_size": 4,
            "seed": 3,
        }
        data = cls(**settings | options)
        data.prepare_data()
        data.setup("fit")
        return data

    return of


def rows(loader, *names):
    """What stands under each example's number, whatever the order."""
    found = {}
    for batch in loader:
        for place, index in enumerate(batch["index"].tolist()):
            real = batch["attention_mask"][place].bool()
            ids = batch["input_ids"][place][real].tolist()
            found[index] = (ids, *(batch[name][place].tolist() for name in names))
    return found


def test_an_example_is_its_changed_text_encoded(make):
    plain, data = make(), make(transforms=DELETE)
    texts = [data.table("train").text("text", n) for n in range(plain.row_count())]
    loader = data.train_dataloader()
    for epoch in range(2):
        found = rows(loader, "labels")
        gold = plain.table("train").array("labels").tolist()
        assert len(found) == len(texts)
        for number, text in enumerate(texts):
            said = transform_text(RandomDeletion(0.4), text, example_rng(3, epoch, number))
            assert found[number] == (data.tokenizer(said)["input_ids"], gold[number])
    assert rows(plain.train_dataloader()) != rows(data.train_dataloader())


def test_epochs_differ_and_workers_do_not(make):
    alone, helped = (make(transforms=DELETE, num_workers=n).train_dataloader() for n in (0, 2))
    first, second = rows(alone), rows(alone)
    assert first != second
    assert (rows(helped), rows(helped)) == (first, second)


def test_validation_is_changed_only_if_it_is_named(make):
    plain = rows(make().val_dataloader())
    assert rows(make(transforms=DELETE).val_dataloader()) == plain
    data = make(transforms=DELETE, transform_options={"splits": ["val"]})
    assert rows(data.val_dataloader()) == rows(data.val_dataloader()) != plain
    assert rows(data.train_dataloader()) == rows(make().train_dataloader())


def test_no_strength_is_no_change_and_a_ramp_rises(make):
    plain = rows(make().train_dataloader())
    none = make(transforms=DELETE, transform_options={"strength": 0.0})
    assert rows(none.train_dataloader()) == plain
    ramp = make(transforms=DELETE, transform_options={"strength": {"start": 0.0, "stop": 1.0}})
    trainer = make_trainer(max_epochs=3, max_steps=-1)
    ramp.trainer = trainer
    epochs = []
    loader = ramp.train_dataloader()
    for epoch in range(3):
        batch = loader.collate(epoch, torch.arange(8))
        epochs.append(int(batch["attention_mask"].sum()))
    usual = sum(len(ids) for number, (ids,) in plain.items() if number < 8)
    assert epochs[0] == usual > epochs[1] > epochs[2]
    # Ten epochs of two batches: the second one is a ninth of the way.
    ramp.trainer = make_trainer(max_epochs=-1, max_steps=20, limit_train_batches=2)
    assert ramp.train_dataloader().collate.epochs == 10
    ramp.trainer = trainer
    trainer.fit_loop.max_epochs, trainer.fit_loop.epoch_loop.max_steps = -1, -1
    with pytest.raises(ValueError, match="give the trainer max_epochs"):
        ramp.train_dataloader()
    how = {"strength": {"start": 0.0, "stop": 1.0}, "splits": ["val"]}
    at_the_end = make(transforms=DELETE, transform_options=how)  # an evaluation has no course
    whole = make(transforms=DELETE, transform_options={"splits": ["val"]})
    assert rows(at_the_end.val_dataloader()) == rows(whole.val_dataloader())


def test_copies_train_beside_their_examples(make):
    plain, data = make(), make(transforms=DELETE, augmentations_per_example=2)
    before, after = (
        rows(plain.train_dataloader(), "labels"),
        rows(data.train_dataloader(), "labels"),
    )
    count = len(before)
    assert {number: after[number] for number in before} == before
    assert count < len(after) <= 3 * count
    sizes = [len(ids) for number, (ids, _) in sorted(after.items()) if number >= count]
    assert max(sizes) < max(len(ids) for ids, _ in before.values())
    assert rows(data.train_dataloader(), "labels") == after  # the same in every epoch
    again = make(transforms=DELETE, augmentations_per_example=2)
    assert rows(again.train_dataloader(), "labels") == after
    other = make(transforms=DELETE, augmentations_per_example=2, seed=4)
    assert rows(other.train_dataloader(), "labels") != after
    assert len(rows(data.val_dataloader())) == len(rows(plain.val_dataloader()))
    assert data.fixed_rows and not make(transforms=DELETE).fixed_rows
    # What a teacher says of the copies of one seed is not said of those of another.
    assert data.rows_fingerprint("train") == again.rows_fingerprint("train")
    assert data.rows_fingerprint("train") != other.rows_fingerprint("train")


def test_changed_validation_rows_have_no_numbers_to_be_kept_under(make):
    data = make(transforms=DELETE, transform_options={"splits": ["val"]})
    assert rows(data.every_row("train")) == rows(data.train_dataloader())
    with pytest.raises(ValueError, match=r"transforms change the rows of val .* out of splits"):
        data.every_row("val")


def test_a_run_does_not_go_on_with_other_copies(make):
    first = make(transforms=DELETE, augmentations_per_example=1)
    fitting = make_trainer()
    fitting.state.fn = TrainerFn.FITTING
    for options in ({"augmentations_per_example": 2}, {"transforms": "RandomSwap"}):
        other = make(**{"transforms": DELETE, "augmentations_per_example": 1, **options})
        other.trainer = fitting
        with pytest.raises(ValueError, match=r"cannot resume: .* augmentations_per_example was ch"):
            other.load_state_dict(first.state_dict())
    same = make(transforms=DELETE, augmentations_per_example=1)
    same.trainer = fitting
    same.load_state_dict(first.state_dict())
    drawn = make(transforms=DELETE)
    drawn.trainer = fitting
    with pytest.warns(UserWarning, match=r"transforms was changed from RandomDeletion\(rate=0.4\)"):
        drawn.load_state_dict(make(transforms=DELETE, transform_options=HALF).state_dict())


def test_copies_that_are_their_examples_are_left_out(make):
    for files, cls in (
        (task_files.labelled_texts, SequenceClassificationDataModule),
        (task_files.tagged_words, TokenClassificationDataModule),
        (task_files.questions, QuestionAnsweringDataModule),
    ):
        more = {"doc_stride": 8, "max_question_length": 10} if files is task_files.questions else {}
        plain = make(files, cls, **more)
        none = {"transforms": DELETE, "augmentations_per_example": 3, **more}
        data = make(files, cls, transform_options={"strength": 0.0}, **none)
        assert data.row_count() == plain.row_count() < make(files, cls, **none).row_count()


def test_a_seed_that_cannot_draw_is_told_before_the_training(make):
    for options in ({}, {"augmentations_per_example": 1}):
        with pytest.raises(ValueError, match="seed must be a whole number of 64 bits from 0 on"):
            make(transforms=DELETE, seed=-1, **options).train_dataloader()


def test_pairs_are_changed_on_both_sides(make):
    plain = make(task_files.scored_pairs, task="regression")
    data = make(task_files.scored_pairs, task="regression", transforms=["RandomSwap"])
    before, after = (rows(d.train_dataloader(), "labels") for d in (plain, data))
    assert before != after
    for number, (ids, label) in after.items():
        assert (sorted(ids), label) == (sorted(before[number][0]), before[number][1])
    batch = next(iter(data.train_dataloader()))
    assert batch["token_type_ids"].shape == batch["input_ids"].shape


def test_a_view_goes_beside_what_stays(make):
    plain = make()
    data = make(transforms=DELETE, transform_options={"view": True})
    both = zip(plain.train_dataloader(), data.train_dataloader(), strict=True)
    shorter = 0
    for before, batch in both:
        assert all(torch.equal(before[name], batch[name]) for name in before)
        shorter += int(before["attention_mask"].sum() - batch["view_attention_mask"].sum())
    assert shorter > 0
    assert data.fixed_rows
    model = tiny.MASKED["bert"] | named("fox", "moons", "trees")
    trainer = make_trainer(UDACallback(confidence=0.0), max_steps=2)
    trainer.fit(SequenceClassificationModule(model), data)
    assert trainer.callback_metrics["uda/divergence"] > 0


@pytest.mark.parametrize("label_pieces", ["first", "all"])
def test_tags_follow_their_words(make, label_pieces):
    words = TokenClassificationDataModule
    options = {"label_pieces": label_pieces}
    data = make(task_files.tagged_words, words, transforms=DELETE, **options)
    sentences = [
        [line.split() for line in block.splitlines()]
        for block in Path(data.files["train"]).read_text().strip().split("\n\n")
    ]
    found = rows(data.train_dataloader(), "labels")
    for number, (ids, labels) in found.items():
        both = zip(*sentences[number], strict=True)
        made = transform_tagged(RandomDeletion(0.4), *both, example_rng(3, 0, number))
        encoded = data.tokenizer(made.words, is_split_into_words=True)
        assert ids == encoded["input_ids"]
        assert made.labels is not None
        tags = [data.labels[label] for label in labels if label >= 0]
        if label_pieces == "first":
            assert tags == made.labels


def test_copies_of_other_schemes_are_of_bio(make, tmp_path):
    lines = "the O\nquick B-X\nfox E-X\nin O\nParis S-Y\n\n" * 6
    for split in ("train", "val"):
        (tmp_path / f"{split}.conll").write_text(lines)
    files = {f"{split}_file": str(tmp_path / f"{split}.conll") for split in ("train", "val")}
    data = make(
        task_files.tagged_words,
        TokenClassificationDataModule,
        transforms=DELETE,
        augmentations_per_example=1,
        **files,
    )
    table = data.table("train")
    assert data.labels == ["O", "B-X", "I-X", "B-Y", "I-Y"] and len(table) > 6
    for row in range(len(table)):
        labels = [data.labels[n] for n in table.ragged("word_labels")[row]]
        assert len(labels) == len(table.ragged("word_starts")[row])
        assert all(label in ("O", "B-X", "I-X", "B-Y") for label in labels)
    (tmp_path / "train.conll").write_text(lines + "wrong Q-X\n")
    with pytest.raises(ValueError, match="line 37"):
        make(
            task_files.tagged_words,
            TokenClassificationDataModule,
            transforms=DELETE,
            augmentations_per_example=1,
            **files,
        )


def test_tags_that_look_like_entities_stay_plain(make, tmp_path):
    for split in ("train", "val"):
        (tmp_path / f"{split}.conll").write_text("a I\nb I\nc O\nd V\n\ne S-X\nf I\ng I\n\n" * 5)
    files = {f"{split}_file": str(tmp_path / f"{split}.conll") for split in ("train", "val")}
    data = make(
        task_files.tagged_words,
        TokenClassificationDataModule,
        scheme="none",
        transforms=[{"class_path": "RandomDeletion", "init_args": {"rate": 0.5}}],
        **files,
    )
    seen = set()
    for epoch in range(4):
        labels = data.train_dataloader().collate(epoch, torch.arange(10))["labels"]
        seen |= {data.labels[label] for label in labels.flatten().tolist() if label >= 0}
    assert seen == {"I", "O", "V", "S-X"}


def test_packed_sentences_keep_their_numbers(make):
    words = TokenClassificationDataModule
    data = make(task_files.tagged_words, words, transforms=DELETE, batching="pack")
    module = TokenClassificationModule(
        tiny.MASKED["bert"] | named(*data.labels), learning_rate=1e-3
    )
    numbers = []
    step = module.step

    def watched(batch):
        assert "segment_index" in batch
        numbers.extend(n for n in batch["segment_index"].flatten().tolist() if n >= 0)
        return step(batch)

    module.step = watched
    make_trainer(max_epochs=1, max_steps=-1, limit_val_batches=0).fit(module, data)
    assert sorted(numbers) == list(range(data.row_count()))


class Doubling(Transform):
    """Says everything twice."""

    def __init__(self) -> None:
        """Take nothing."""

    def transform(self, words, labels, rng, protected, strength):
        edits = [Edit("substitute", 0, len(words), 0, 2 * len(words))]
        return Transformed([*words, *words], [*labels, *labels], edits)


def test_a_sentence_that_would_be_too_long_stays(make):
    words = TokenClassificationDataModule
    longest = int(
        make(task_files.tagged_words, words).table("train").ragged("input_ids").lengths.max()
    )
    data = make(task_files.tagged_words, words, transforms=Doubling(), max_length=longest)
    sizes = [len(ids) for (ids,) in rows(data.train_dataloader()).values()]
    plain = [
        len(ids)
        for (ids,) in rows(make(task_files.tagged_words, words).train_dataloader()).values()
    ]
    assert max(sizes) <= longest
    assert all(n in (p, 2 * p - 2) for n, p in zip(sizes, plain, strict=True))


def test_answers_stand_in_changed_contexts(make):
    options = {"doc_stride": 8, "max_question_length": 16}
    plain = make(task_files.questions, QuestionAnsweringDataModule, **options)
    options |= {"transforms": DELETE, "augmentations_per_example": 2}
    data = make(task_files.questions, QuestionAnsweringDataModule, **options)
    assert data.row_count() > plain.row_count()
    table = data.table("train")
    for row in range(len(table)):
        start, end = (int(table.array(f"{w}_positions")[row]) for w in ("start", "end"))
        answers = json.loads(table.text("answers", row))
        if start > 0:
            said = data.tokenizer.decode(table.ragged("input_ids")[row][start : end + 1])
            assert said.replace(" ", "").lower() in [a.replace(" ", "").lower() for a in answers]
    with pytest.raises(ValueError, match="give augmentations_per_example"):
        QuestionAnsweringDataModule(train_file="a.json", transforms=DELETE)


def test_objects_become_plain_data():
    data = SequenceClassificationDataModule(train_file="a.csv", transforms=[RandomDeletion(0.2)])
    assert data.hparams["transforms"] == [RandomDeletion(0.2).spec]
    assert data.augmentation.transform == RandomDeletion(0.2)
    inside = {"class_path": "Sometimes", "init_args": {"transform": RandomDeletion(0.2)}}
    data = SequenceClassificationDataModule(train_file="a.csv", transforms=inside)
    (kept,) = data.hparams["transforms"]
    assert kept["init_args"]["transform"] == RandomDeletion(0.2).spec
    assert data.augmentation.transform == Sometimes(RandomDeletion(0.2))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"augmentations_per_example": 2}, "there are none: give some"),
        ({"transform_options": {"strength": 0.5}}, "there are none: give some"),
        ({"transforms": DELETE, "augmentations_per_example": 0}, "augmentations_per_example must"),
        ({"transforms": DELETE, "transform_options": {"much": 1}}, "got 'much'"),
        ({"transforms": DELETE, "transform_options": {"strength": 2}}, r"lie in \[0, 1\], got 2"),
        ({"transforms": DELETE, "transform_options": {"strength": {"first": 0}}}, "got 'first'"),
        ({"transforms": DELETE, "transform_options": {"protect": {"name": True}}}, "name"),
        ({"transforms": DELETE, "transform_options": {"splits": "train"}}, "must be a list"),
        ({"transforms": DELETE, "transform_options": {"splits": ["dev"]}}, "train, val, test"),
        ({"transforms": DELETE, "transform_options": {"splits": 3}}, "must be a list"),
        ({"transforms": DELETE, "transform_options": {"splits": [["train"]]}}, "got .'train'."),
        ({"transforms": DELETE, "transform_options": ["view"]}, "must be a dictionary"),
        ({"transforms": DELETE, "transform_options": {"protect": None}}, "protect must be a dict"),
        ({"transforms": DELETE, "transform_options": {"strength": "0.5"}}, "must be a number"),
        ({"transforms": DELETE, "transform_options": {"strength": None}}, "must be a number"),
        ({"transforms": DELETE, "transform_options": {"strength": [0, 1]}}, "must be a number"),
        ({"transforms": DELETE, "transform_options": {"strength": True}}, "must be a number"),
        (
            {"transforms": DELETE, "transform_options": {"protect": {"words": [False, "film"]}}},
            "words must be a list of strings, got False; YAML reads no",
        ),
        ({"transforms": ["Deletion"]}, "there is no 'Deletion'"),
        (
            {
                "transforms": DELETE,
                "augmentations_per_example": 1,
                "transform_options": {"view": True},
            },
            "beside augmentations_per_example, got 'view'",
        ),
        (
            {
                "transforms": DELETE,
                "augmentations_per_example": 1,
                "transform_options": {"strength": {"start": 0.0}},
            },
            "copies are made before it",
        ),
    ],
)
def test_wrong_options_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        SequenceClassificationDataModule(train_file="a.csv", **options)


def test_a_view_of_tagged_words_is_refused():
    with pytest.raises(ValueError, match="got 'view'"):
        TokenClassificationDataModule(
            train_file="a.conll", transforms=DELETE, transform_options={"view": True}
        )
