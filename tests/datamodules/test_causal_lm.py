import pytest
import torch

from lmkit.datamodules import CausalLMDataModule

from .recorder import Predictor, make_trainer
from .small_data import ready, targets


@pytest.mark.parametrize("training", [True, False])
def test_every_token_of_a_chunk_but_its_first_is_a_target_once_an_epoch(train, training):
    data = ready(CausalLMDataModule, train_file=str(train), val_fraction=0.3)
    split = "train" if training else "val"
    loader = data.train_dataloader() if training else data.val_dataloader()
    counted = data.statistics[f"{split}/tokens"] - data.statistics[f"{split}/rows"]
    assert targets(loader) == counted > 0


@pytest.mark.parametrize("batching", ["pack", "bucket"])
@pytest.mark.parametrize("max_length", [16, 64])
def test_every_text_apart_is_predicted_to_its_end(train, batching, max_length):
    """All tokens of a text but the first, and what ends it, of each piece of a long one too."""
    options = {"batching": batching, "eval_batching": batching, "max_length": max_length}
    data = ready(CausalLMDataModule, train_file=str(train), val_fraction=0.3, **options)
    for split, loader in (("train", data.train_dataloader()), ("val", data.val_dataloader())):
        ends = data.statistics[f"{split}/documents"]
        assert targets(loader) == data.statistics[f"{split}/tokens"] - ends
        assert (data.statistics[f"{split}/cut_documents"] > 0) == (max_length == 16)


def test_a_packed_text_begins_without_a_target_and_ends_with_its_separator(train):
    data = ready(CausalLMDataModule, train_file=str(train), batching="pack", max_length=48)
    texts = set(train.read_text().splitlines())
    seen = 0
    for batch in data.train_dataloader():
        for ids, labels, segments, positions in zip(
            *(batch[n] for n in ("input_ids", "labels", "segment_ids", "position_ids")), strict=True
        ):
            for number in range(1, int(segments.max()) + 1):
                here = segments == number
                text, target = ids[here], labels[here]
                assert positions[here].tolist() == list(range(len(text)))
                assert target[0] == -100 and torch.equal(target[1:], text[1:])
                assert text[-1] == data.tokenizer.eos_token_id
                seen += data.tokenizer.decode(text[:-1]) in texts
    cut = data.statistics["train/cut_documents"]
    assert seen == data.statistics["train/documents"] - cut > 40


def test_prompts_to_continue_are_padded_on_the_left(tmp_path, train):
    (tmp_path / "p.txt").write_text("the fox\nthe quick brown fox jumps over\n")
    data = CausalLMDataModule(
        train_file=str(train), predict_file=str(tmp_path / "p.txt"), vocab_size=300, max_length=16
    )
    (batch,) = make_trainer(tmp_path).predict(Predictor(), data)
    assert batch["attention_mask"][0].tolist() == sorted(batch["attention_mask"][0].tolist())
    assert data.tokenizer.decode(batch["input_ids"][0], skip_special_tokens=True) == "the fox"
