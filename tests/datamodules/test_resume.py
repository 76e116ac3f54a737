"""A fit interrupted at any step and resumed sees the batches of the uninterrupted one."""

import math

import pytest
import torch

from lmkit.datamodules import MaskedLMDataModule
from tests.tiny import write_text

from .recorder import Recorder, SaveInHook, make_trainer, save_often

ROWS_PER_BATCH = 3


@pytest.fixture
def texts(tmp_path):
    return write_text(tmp_path / "train.txt", 24), write_text(tmp_path / "val.txt", 6, seed=1)


def make_data(texts, **options):
    train, val = texts
    return MaskedLMDataModule(
        train_file=str(train),
        val_file=str(val),
        vocab_size=200,
        max_length=16,
        batch_size=ROWS_PER_BATCH,
        seed=5,
        **options,
    )


CASES = {
    "plain": ({}, {}),
    "workers": ({"num_workers": 2}, {}),
    "limit": ({}, {"limit_train_batches": 3}),
    "limit_share": ({}, {"limit_train_batches": 0.5}),
    "no_val": ({}, {"limit_val_batches": 0}),
    "val_in_mid_epoch": ({}, {"val_check_interval": 2}),
    "accumulate": ({}, {"accumulate_grad_batches": 2}),
    "steps_only": ({}, {"max_epochs": -1}),
}
# The plan of the batches has nothing to do with who saves: one saver for each of these.
PLANS = {
    "bucket": ({"batching": "bucket"}, {}),
    "chunk": ({"batching": "chunk"}, {}),
    "bucket_workers": ({"batching": "bucket", "num_workers": 2}, {"limit_val_batches": 0}),
    "bucket_accumulate": ({"batching": "bucket"}, {"accumulate_grad_batches": 2}),
}


@pytest.mark.parametrize(
    ("case", "saver"),
    [(case, saver) for case in CASES for saver in ("checkpoint_callback", "own_hook")]
    + [(case, "own_hook") for case in PLANS],
)
def test_resumed_at_any_step_equals_uninterrupted(tmp_path, texts, case, saver):
    data_options, options = {**CASES, **PLANS}[case]
    data = make_data(texts, **data_options)
    data.setup()
    epoch = len(data.train_dataloader())
    assert epoch > 4
    limit = options.get("limit_train_batches", epoch)
    epoch = limit if isinstance(limit, int) else int(epoch * limit)
    window = options.get("accumulate_grad_batches", 1)
    steps = 2 * math.ceil(epoch / window) + math.ceil(epoch / 2 / window)
    options = {"max_steps": steps, "num_sanity_val_steps": 1, **options}
    folder = tmp_path / "checkpoints"
    own = saver == "own_hook"
    whole = Recorder()
    make_trainer(tmp_path, SaveInHook(folder) if own else save_often(folder), **options).fit(
        whole, make_data(texts, **data_options)
    )
    assert 2 * epoch < len(whole.seen) < 3 * epoch
    checkpoints = sorted(folder.iterdir())
    assert len(checkpoints) == (len(whole.seen) if own else steps)
    if "num_workers" in data_options:
        checkpoints = checkpoints[2::epoch] + checkpoints[epoch - 1 : epoch + 1]
    elif case in PLANS:
        checkpoints = checkpoints[::2]
    for path in checkpoints:
        state = torch.load(path, weights_only=True)
        done = state["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"]
        part = Recorder()
        make_trainer(tmp_path, **options).fit(
            part, make_data(texts, **data_options), ckpt_path=path, weights_only=True
        )
        assert part.seen == whole.seen[done:], path.name


def test_resumed_batches_have_the_same_tensors(tmp_path, texts):
    """Not only the same rows: packing, masks and labels too."""

    class Keeper(Recorder):
        def training_step(self, batch, batch_idx):
            self.seen.append({name: tensor.tolist() for name, tensor in batch.items()})
            return self.weight * 1.0

    whole, part, folder = Keeper(), Keeper(), tmp_path / "checkpoints"
    make_trainer(tmp_path, SaveInHook(folder), max_steps=12).fit(whole, make_data(texts))
    make_trainer(tmp_path, max_steps=12).fit(
        part, make_data(texts), ckpt_path=folder / "003.ckpt", weights_only=True
    )
    assert {"label_positions", "segment_ids", "position_ids"} < set(whole.seen[0])
    assert part.seen == whole.seen[3:]


def test_resumed_at_an_epochs_end_begins_the_next_epoch(tmp_path, texts):
    straight = Recorder()
    make_trainer(tmp_path, max_epochs=3).fit(straight, make_data(texts))
    first = Recorder()
    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(first, make_data(texts))
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    second = Recorder()
    make_trainer(tmp_path, max_epochs=3).fit(
        second, make_data(texts), ckpt_path=tmp_path / "end.ckpt", weights_only=True
    )
    assert first.seen + second.seen == straight.seen


def test_a_second_fit_of_the_same_trainer_goes_on(tmp_path, texts):
    straight = Recorder()
    make_trainer(tmp_path, max_epochs=2).fit(straight, make_data(texts))
    module, data = Recorder(), make_data(texts)
    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(module, data)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, data)
    assert module.seen == straight.seen


def test_reloading_the_loader_each_epoch_changes_nothing(tmp_path, texts):
    straight, reloaded = Recorder(), Recorder()
    make_trainer(tmp_path, max_epochs=2).fit(straight, make_data(texts))
    make_trainer(tmp_path, max_epochs=2, reload_dataloaders_every_n_epochs=1).fit(
        reloaded, make_data(texts)
    )
    assert reloaded.seen == straight.seen


def test_overfitting_repeats_the_same_rows(tmp_path, texts):
    module = Recorder()
    make_trainer(tmp_path, max_epochs=2, overfit_batches=2).fit(module, make_data(texts))
    rows = [rows for rows, _ in module.seen]
    assert rows[:2] == rows[2:]


def test_validation_is_the_same_each_time(tmp_path, texts):
    module = Recorder()
    make_trainer(tmp_path, max_epochs=2, num_sanity_val_steps=0).fit(module, make_data(texts))
    half = len(module.validated) // 2
    assert half and module.validated[:half] == module.validated[half:]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"max_length": 24}, "max_length was changed from 16 to 24"),
        ({"vocab_size": 150}, "the tokenizer was changed"),
        ({"batching": "chunk"}, "batching was changed from pack to chunk"),
        ({"seed": 6}, "seed was changed from 5 to 6"),
    ],
)
def test_resuming_with_other_data_is_refused(tmp_path, texts, change, named):
    trainer = make_trainer(tmp_path, max_steps=2)
    trainer.fit(Recorder(), make_data(texts))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    data = make_data(texts)
    for name, value in change.items():
        setattr(data, name, value)
    with pytest.raises(ValueError, match=named):
        make_trainer(tmp_path, max_steps=4).fit(
            Recorder(), data, ckpt_path=tmp_path / "a.ckpt", weights_only=True
        )


def test_resuming_after_the_text_changed_is_refused(tmp_path, texts):
    trainer = make_trainer(tmp_path, max_steps=2)
    trainer.fit(Recorder(), make_data(texts))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    write_text(texts[0], 24, seed=9)
    with pytest.raises(ValueError, match=r"cannot resume.*the train text was changed"):
        make_trainer(tmp_path, max_steps=4).fit(
            Recorder(), make_data(texts), ckpt_path=tmp_path / "a.ckpt", weights_only=True
        )


def test_evaluating_a_checkpoint_on_other_data_is_allowed(tmp_path, texts):
    trainer = make_trainer(tmp_path, max_steps=2)
    trainer.fit(Recorder(), make_data(texts))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    other = write_text(tmp_path / "other.txt", 20, seed=3)
    data = make_data((texts[0], other))
    make_trainer(tmp_path).validate(
        Recorder(), data, ckpt_path=tmp_path / "a.ckpt", weights_only=True, verbose=False
    )
