import pytest
import torch

from lmkit.datamodules import MaskedLMDataModule
from lmkit.tokenization import train_tokenizer
from tests.tiny import sentences

from .recorder import Predictor, make_trainer
from .small_data import ready


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_both_kinds_of_tokenizer_serve_the_masked_model(train, kind):
    data = ready(MaskedLMDataModule, train_file=str(train), tokenizer_kind=kind)
    batch = next(iter(data.train_dataloader()))
    ids = torch.where(batch["labels"] >= 0, batch["labels"], batch["input_ids"])
    real = batch["attention_mask"].bool()
    cls, sep = data.tokenizer.cls_token_id, data.tokenizer.sep_token_id
    assert (ids[:, 0] == cls).all()
    ends = real.sum(1) - 1
    assert (ids[torch.arange(len(ids)), ends] == sep).all()
    special = torch.tensor(data.tokenizer.all_special_ids)
    assert not torch.isin(batch["labels"], special).any()


def test_evaluation_masks_are_the_same_whatever_the_training_settings(train):
    def val(**options):
        data = ready(MaskedLMDataModule, train_file=str(train), val_fraction=0.3, **options)
        return [batch["labels"].tolist() for batch in data.val_dataloader()]

    assert val() == val(seed=9, mask_rate=0.5, num_workers=2)


def test_masked_texts_to_predict_on_keep_their_order(tmp_path, train):
    lines = ["the [MASK] fox", "a [MASK] dog sings in the old trees"]
    (tmp_path / "p.txt").write_text("\n\n".join(lines))
    data = MaskedLMDataModule(
        train_file=str(train), predict_file=str(tmp_path / "p.txt"), vocab_size=300, max_length=16
    )
    (batch,) = make_trainer(tmp_path).predict(Predictor(), data)
    assert batch["index"].tolist()[:2] == [0, 1]
    decoded = [
        data.tokenizer.decode(row[mask.bool()])
        for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    assert decoded[:2] == [f"[CLS] {line} [SEP]" for line in lines]
    assert batch["index"].tolist()[2:] == [-1] * 30


def test_long_texts_to_predict_on_are_cut_and_counted(tmp_path, train):
    (tmp_path / "p.txt").write_text("[MASK] " + "fox " * 50 + "\n")
    data = ready(MaskedLMDataModule, train_file=str(train), predict_file=str(tmp_path / "p.txt"))
    with pytest.warns(UserWarning, match="1 texts were cut to max_length=16 tokens"):
        (batch,) = data.predict_dataloader()
    assert batch["input_ids"].shape == (4, 16)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a [MASK]\nno mask\n", r"p\.txt, line 2: no mask token .*write \[MASK\]"),
        ("fox " * 50 + "[MASK]\n", r"p\.txt, line 1: its mask lies beyond the first 14 tokens"),
        ("\n\n", r"predict_file: there is no text"),
    ],
)
def test_texts_that_cannot_be_predicted_on_are_named(tmp_path, train, text, message):
    (tmp_path / "p.txt").write_text(text)
    data = ready(MaskedLMDataModule, train_file=str(train), predict_file=str(tmp_path / "p.txt"))
    with pytest.raises(ValueError, match=message):
        data.predict_dataloader()


def test_a_tokenizer_without_a_mask_is_refused(tmp_path, train):
    train_tokenizer(sentences(50), "bpe", 300, affixes=False).save_pretrained(tmp_path / "causal")
    with pytest.raises(ValueError, match=r"needs a mask token"):
        ready(MaskedLMDataModule, train_file=str(train), tokenizer=str(tmp_path / "causal"))
