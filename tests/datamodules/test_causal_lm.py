from lmkit.datamodules import CausalLMDataModule

from .recorder import Predictor, make_trainer
from .small_data import ready, targets


def test_every_token_is_a_target_once_an_epoch(train):
    data = ready(CausalLMDataModule, train_file=str(train))
    assert targets(data.train_dataloader()) == data.statistics["train/tokens"]
    assert targets(data.val_dataloader()) == data.statistics["val/tokens"]


def test_prompts_to_continue_are_padded_on_the_left(tmp_path, train):
    (tmp_path / "p.txt").write_text("the fox\nthe quick brown fox jumps over\n")
    data = CausalLMDataModule(
        train_file=str(train), predict_file=str(tmp_path / "p.txt"), vocab_size=300, max_length=16
    )
    (batch,) = make_trainer(tmp_path).predict(Predictor(), data)
    assert batch["attention_mask"][0].tolist() == sorted(batch["attention_mask"][0].tolist())
    assert data.tokenizer.decode(batch["input_ids"][0], skip_special_tokens=True) == "the fox"
