import json

import datasets
import pytest
import torch
from lightning.pytorch import Trainer

from lmkit.datamodules import CausalLMDataModule, MaskedLMDataModule
from lmkit.tokenization import tokenizer_digest, train_tokenizer
from tests.tiny import sentences, write_text

from .recorder import Recorder, make_trainer
from .small_data import both_objectives, ready


def shapes(batch):
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())
    return {name: tuple(tensor.shape) for name, tensor in batch.items()}


def texts_of(loader):
    return [batch["input_ids"].tolist() for batch in loader]


@both_objectives
@pytest.mark.parametrize("batching", ["pack", "bucket", "chunk"])
def test_a_batch_has_the_contracts_tensors(make, batching, train):
    data = ready(make, train_file=str(train), batching=batching, eval_batching=batching)
    masked, packed = make is MaskedLMDataModule, batching == "pack"
    for training, loader in ((True, data.train_dataloader()), (False, data.val_dataloader())):
        for batch in loader:
            rows, width = batch["input_ids"].shape
            names = ["input_ids", "attention_mask", "labels"]
            names += ["segment_ids", "position_ids"] if packed else []
            expected = dict.fromkeys(names, (rows, width)) | {"index": (rows,)}
            if masked and training:
                expected["label_positions"] = (rows, max(1, round(0.15 * width)))
            assert shapes(batch) == expected
            assert rows * width == 4 * 16 if batching != "bucket" else rows * width <= 4 * 16


def test_training_packs_and_evaluation_buckets_by_default(train):
    data = ready(MaskedLMDataModule, train_file=str(train), val_fraction=0.5)
    assert shapes(next(iter(data.train_dataloader())))["input_ids"] == (4, 16)
    widths = [shapes(batch)["input_ids"][1] for batch in data.val_dataloader()]
    assert set(widths) == {8, 16} and widths == sorted(widths)
    assert all("segment_ids" not in batch for batch in data.val_dataloader())


@pytest.mark.parametrize(
    "change",
    [
        {"document": "file", "val_fraction": 0},
        {"vocab_size": 100},
        {"max_length": 24},
        {"batching": "chunk"},
        {"mask_rate": 0.3},
        {"val_fraction": 0.5},
        {"seed": 3},
    ],
)
def test_the_fingerprint_follows_every_setting(train, change):
    options = {"train_file": str(train)}
    assert (
        ready(MaskedLMDataModule, **options).fingerprint
        != ready(MaskedLMDataModule, **options, **change).fingerprint
    )


def test_set_up_twice_is_set_up_once(train, monkeypatch):
    data = ready(MaskedLMDataModule, train_file=str(train))
    tokenizer = data.tokenizer
    monkeypatch.setattr(data, "_build", lambda: 1 / 0)
    for stage in ("fit", "validate", "test", "predict", None):
        data.setup(stage)
    assert data.tokenizer is tokenizer


def test_hyperparameters_are_plain_data_and_rebuild_the_module(train):
    data = MaskedLMDataModule(train_file=[str(train)], mask_rate=0.3)
    plain = dict(data.hparams)
    assert json.loads(json.dumps(plain)) == plain
    assert MaskedLMDataModule(**plain).hparams == data.hparams
    rows = datasets.Dataset.from_dict({"text": ["a"]})
    assert "source" not in MaskedLMDataModule(source=rows).hparams


def test_a_checkpoint_with_a_datasets_object_loads_as_weights_only(tmp_path):
    rows = datasets.Dataset.from_dict({"text": sentences(40)})
    data = MaskedLMDataModule(source=rows, vocab_size=300, max_length=16, batch_size=4)
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.fit(Recorder(), data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    state = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert state["datamodule_hyper_parameters"]["max_length"] == 16
    assert state["MaskedLMDataModule"]["fingerprint"] == data.fingerprint


def test_the_models_own_tokenizer_is_taken(tmp_path, train):
    own = train_tokenizer(sentences(50), "wordpiece", 120)
    own.save_pretrained(tmp_path / "model")

    class Named(Recorder):
        def __init__(self, model):
            super().__init__()
            self.save_hyperparameters()

    data = MaskedLMDataModule(train_file=str(train), max_length=16)
    make_trainer(tmp_path, max_steps=1).fit(Named(str(tmp_path / "model")), data)
    assert tokenizer_digest(data.tokenizer) == tokenizer_digest(own)
    module = Named({"model_type": "bert"})
    module.tokenizer = own
    data = MaskedLMDataModule(train_file=str(train), max_length=16)
    make_trainer(tmp_path, max_steps=1).fit(module, data)
    assert data.tokenizer is own


def test_another_tokenizer_can_be_taken_later(train):
    data = ready(MaskedLMDataModule, train_file=str(train))
    own = train_tokenizer(sentences(50), "wordpiece", 120)
    before = data.fingerprint
    data.use_tokenizer(own)
    data.setup()
    assert data.tokenizer is own and data.fingerprint != before
    assert int(next(iter(data.train_dataloader()))["input_ids"].max()) < len(own)


def test_the_seed_is_that_of_seed_everything(train, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert MaskedLMDataModule().seed == 7
    assert MaskedLMDataModule(seed=2).seed == 2


def test_testing_falls_back_on_validation_and_says_so(tmp_path, train, caplog):
    data = ready(CausalLMDataModule, train_file=str(train))
    assert texts_of(data.test_dataloader()) == texts_of(data.val_dataloader())
    assert "there is no test text: testing on the validation text" in caplog.text
    test = write_text(tmp_path / "test.txt", 5, seed=2)
    data = ready(CausalLMDataModule, train_file=str(train), test_file=str(test))
    assert texts_of(data.test_dataloader()) != texts_of(data.val_dataloader())
    assert data.statistics["test/documents"] == 5


def test_without_any_source_there_is_the_embedded_corpus():
    data = ready(MaskedLMDataModule, vocab_size=1000, max_length=64)
    assert "embedded corpus" in data.statistics["source"]
    assert data.statistics["train/tokens"] > 150_000
    assert {"val/rows", "test/rows"} <= set(data.statistics)


class RankRecorder(Recorder):
    """Writes what each rank saw to a file: with forked ranks, attributes do not come back."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def on_train_end(self):
        path = self.folder / f"rank{self.global_rank}.json"
        path.write_text(json.dumps([self.seen, self.validated]))


@pytest.mark.parametrize(
    ("num_workers", "batching"), [(0, "pack"), (1, "pack"), (0, "bucket"), (0, "chunk")]
)
def test_two_ranks_see_what_one_sees_once(tmp_path, train, num_workers, batching):
    options = {
        "train_file": str(train),
        "vocab_size": 300,
        "max_length": 16,
        "val_fraction": 0.3,
        "num_workers": num_workers,
        "batching": batching,
    }
    one = Recorder()
    make_trainer(tmp_path, max_epochs=2, num_sanity_val_steps=0).fit(
        one, MaskedLMDataModule(batch_size=4, **options)
    )
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp_fork",
        max_epochs=2,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(RankRecorder(tmp_path), MaskedLMDataModule(batch_size=2, **options))
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    for part, alone in enumerate((one.seen, one.validated)):
        joined = [
            [sorted(a[0] + b[0]), a[1] + b[1]]
            for a, b in zip(ranks[0][part], ranks[1][part], strict=True)
        ]
        # The same rows at each step, and the same masks: the ids have the same sum.
        assert joined == [[sorted(rows), total] for rows, total in alone]


def test_real_wikitext_is_read_whole(data_folder, tmp_path):
    folder = data_folder / "wikitext-2"
    data = ready(
        MaskedLMDataModule,
        train_file=str(folder / "valid.txt"),
        test_file=str(folder / "test.txt"),
        vocab_size=2000,
        max_length=128,
    )
    lines = [line for line in (folder / "valid.txt").read_text().splitlines() if line.strip()]
    counted = data.statistics["train/documents"] + data.statistics["val/documents"]
    assert counted == len(lines)
    assert data.statistics["test/tokens"] > 200_000
