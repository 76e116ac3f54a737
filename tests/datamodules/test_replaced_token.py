"""Batches for replaced-token detection, and texts to find replacements in."""

import pytest
import torch

from lmkit.datamodules.replaced_token import ReplacedTokenDataModule
from lmkit.tokenization import train_tokenizer
from tests.tiny import sentences

from .recorder import Predictor, make_trainer
from .small_data import ready


def chosen_tokens(data):
    """Of all training batches what stands at the chosen positions, and what was there."""
    batches = list(data.train_dataloader())
    where = [batch["labels"] >= 0 for batch in batches]
    now = torch.cat([batch["input_ids"][w] for batch, w in zip(batches, where, strict=True)])
    was = torch.cat([batch["labels"][w] for batch, w in zip(batches, where, strict=True)])
    return now, was


@pytest.mark.parametrize("share", [0.0, 0.85, 1.0])
def test_chosen_tokens_are_masked_or_kept_and_never_random(train, share):
    data = ready(
        ReplacedTokenDataModule, train_file=str(train), mask_rate=0.5, mask_replace=share, seed=1
    )
    now, was = chosen_tokens(data)
    masked = now == data.tokenizer.mask_token_id
    assert torch.equal(now[~masked], was[~masked])
    error = 4 * (share * (1 - share) / len(was)) ** 0.5
    assert len(was) > 200 and abs(masked.float().mean() - share) <= error


def test_special_tokens_and_padding_are_never_chosen(train):
    data = ready(ReplacedTokenDataModule, train_file=str(train), mask_rate=1.0)
    special = torch.tensor(data.tokenizer.all_special_ids)
    for batch in data.train_dataloader():
        assert not torch.isin(batch["labels"], special).any()
        assert not (batch["labels"][batch["segment_ids"] == 0] >= 0).any()


def test_every_training_batch_has_labels_of_one_shape(train):
    data = ready(ReplacedTokenDataModule, train_file=str(train), batch_size=2)
    shapes = {tuple(batch["label_positions"].shape) for batch in data.train_dataloader()}
    assert len(shapes) == 1


def test_evaluation_masks_are_the_same_whatever_the_training_settings(train):
    def val(**options):
        data = ready(ReplacedTokenDataModule, train_file=str(train), val_fraction=0.3, **options)
        return [batch["labels"].tolist() for batch in data.val_dataloader()]

    assert val() == val(seed=9, mask_rate=0.5, num_workers=2)


def test_texts_to_predict_on_need_no_mask_and_keep_their_order(tmp_path, train):
    lines = ["the quick fox", "a lazy dog sings in the old trees"]
    (tmp_path / "p.txt").write_text("\n\n".join(lines))
    data = ReplacedTokenDataModule(
        train_file=str(train), predict_file=str(tmp_path / "p.txt"), vocab_size=300, max_length=16
    )
    (batch,) = make_trainer(tmp_path).predict(Predictor(), data)
    assert batch["index"].tolist()[:2] == [0, 1]
    decoded = [
        data.tokenizer.decode(row[mask.bool()])
        for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    assert decoded[:2] == [f"[CLS] {line} [SEP]" for line in lines]


def test_long_texts_to_predict_on_are_cut_and_counted(tmp_path, train):
    (tmp_path / "p.txt").write_text("fox " * 50 + "\nfox\n")
    data = ready(
        ReplacedTokenDataModule, train_file=str(train), predict_file=str(tmp_path / "p.txt")
    )
    with pytest.warns(UserWarning, match="1 texts were cut to max_length=16 tokens"):
        (batch,) = data.predict_dataloader()
    assert batch["input_ids"].shape == (4, 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_replace": 1.2}, r"mask_replace must lie in \[0, 1\], got 1.2"),
        ({"mask_rate": 1.5}, r"mask_rate must lie in \[0, 1\], got 1.5"),
        ({"mask_rate": 0.0}, r"must be above 0, .* got 0.0 and 0.15"),
        ({"eval_mask_rate": 0.0}, r"must be above 0, .* got 0.15 and 0.0"),
    ],
)
def test_shares_out_of_their_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ReplacedTokenDataModule(**options)


def test_a_tokenizer_without_a_mask_is_refused(tmp_path, train):
    train_tokenizer(sentences(50), "bpe", 300, affixes=False).save_pretrained(tmp_path / "causal")
    with pytest.raises(ValueError, match=r"needs a mask token"):
        ready(ReplacedTokenDataModule, train_file=str(train), tokenizer=str(tmp_path / "causal"))
