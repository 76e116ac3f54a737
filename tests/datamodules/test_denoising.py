"""Rows of text whose spans the encoder-decoder is to write."""

import pytest
import torch

from lmkit.datamodules import DenoisingDataModule
from lmkit.datamodules.data_facts import compare_facts
from lmkit.datamodules.denoising import SpanCorruptionCollator
from lmkit.tokenization import load_tokenizer, require_sentinels, train_tokenizer
from tests.tiny import sentences

from .recorder import Predictor, make_trainer
from .small_data import ready


def denoising(train, **options):
    return ready(DenoisingDataModule, train_file=str(train), **options)


def restored(data, batch):
    """Put the spans back into the inputs of each row."""
    sentinels = require_sentinels(data.tokenizer)
    texts = []
    for ids, mask, labels in zip(
        batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True
    ):
        spans = {}
        for token in labels[labels >= 0][:-1].tolist():
            if token in sentinels:
                spans[token] = []
            else:
                spans[list(spans)[-1]].append(token)
        inputs = ids[mask.bool()][:-1].tolist()
        texts.append([t for token in inputs for t in spans.get(token, [token])])
    return texts


def test_batches_have_the_exact_lengths_and_end_with_the_end(train):
    data = denoising(train, max_length=64)
    assert (data.raw_length, data.target_length) == (70, 14)
    batch = next(iter(data.train_dataloader()))
    assert batch["input_ids"].shape == (4, 64) and batch["labels"].shape == (4, 14)
    full = batch["labels"][:, -1] != -100
    assert full.sum() >= 3 and (batch["labels"][full, -1] == data.tokenizer.eos_token_id).all()
    assert (batch["input_ids"][full, -1] == data.tokenizer.eos_token_id).all()
    assert batch["attention_mask"][full].all()
    columns = batch["labels"].gather(1, batch["label_positions"])
    assert torch.equal(columns, batch["labels"])


def test_an_epoch_holds_every_token_once(train):
    data = denoising(train)
    tokens = []
    for batch in data.train_dataloader():
        rows = zip(batch["index"].tolist(), restored(data, batch), strict=True)
        tokens += [(row, text) for row, text in rows if row >= 0]
    stream = [token for _, text in sorted(tokens) for token in text]
    assert stream == data._stores["train"].ids.tolist()


def test_filler_rows_have_no_label_and_attend_to_one_position(train):
    data = denoising(train, batch_size=7)
    *_, last = data.val_dataloader()
    filler = last["index"] < 0
    assert filler.any() and (last["labels"][filler] == -100).all()
    assert (last["attention_mask"][filler].sum(1) == 1).all()


def test_a_last_row_of_one_token_has_no_label(train):
    data = denoising(train)
    rows = data._rows["train"]
    count = len(rows)

    class LastIsOne:
        def gather(self, which):
            made = rows.gather(which)
            made.segment_ids[which == count - 1, 1:] = 0
            return made

    collate = SpanCorruptionCollator(LastIsOne(), sentinels=[9], eos_id=2, pad_id=1, seed=0)
    batch = collate(0, torch.tensor([0, count - 1]))
    assert (batch["labels"][0] >= 0).all() and (batch["labels"][1] == -100).all()
    assert batch["attention_mask"][1].sum() == 2


def test_spans_are_new_each_epoch_and_a_function_of_the_row(train):
    data = denoising(train)
    collate = data.collator(data._rows["train"], training=True)
    rows = torch.tensor([3, 0, 5, 1])
    first, again, next_epoch = collate(0, rows), collate(0, rows.flip(0)), collate(1, rows)
    assert torch.equal(first["labels"], again["labels"].flip(0))
    assert not torch.equal(first["labels"], next_epoch["labels"])
    other = denoising(train, seed=9)
    theirs = other.collator(other._rows["train"], training=True)(0, rows)
    assert not torch.equal(first["labels"], theirs["labels"])


def test_evaluation_spans_are_the_same_whatever_seed_and_workers(train):
    def val(**options):
        data = denoising(train, val_fraction=0.3, **options)
        return [batch["labels"].tolist() for batch in data.val_dataloader()]

    assert val() == val(seed=9, num_workers=2)


def test_a_trained_tokenizer_has_enough_sentinels_and_t5s_layout(train):
    data = denoising(train)
    tokenizer = data.tokenizer
    assert len(require_sentinels(tokenizer)) == data.trained_sentinels() == 30
    assert require_sentinels(tokenizer)[0] == len(tokenizer) - 1
    assert tokenizer.decode(tokenizer("the fox").input_ids) == "the fox</s>"
    assert denoising(train, vocab_size=8192).trained_sentinels() == 100


def test_documents_are_parted_by_what_does_not_end_the_target(train):
    data = denoising(train)
    bos, eos = data.tokenizer.bos_token_id, data.tokenizer.eos_token_id
    for batch in data.train_dataloader():
        assert ((batch["labels"] == eos).sum(1) == (batch["labels"] >= 0).any(1)).all()
    assert bos in data._stores["train"].ids and eos not in data._stores["train"].ids


def test_texts_with_gaps_keep_their_order(tmp_path, train):
    lines = ["the <extra_id_0> fox", "a <extra_id_0> dog <extra_id_1> in the trees"]
    (tmp_path / "p.txt").write_text("\n\n".join(lines))
    data = DenoisingDataModule(
        train_file=str(train), predict_file=str(tmp_path / "p.txt"), vocab_size=300, max_length=32
    )
    (batch,) = make_trainer(tmp_path).predict(Predictor(), data)
    assert batch["index"].tolist()[:2] == [0, 1] and set(batch["index"].tolist()[2:]) == {-1}
    decoded = [
        data.tokenizer.decode(row[mask.bool()])
        for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    assert decoded[0] == "the<extra_id_0> fox</s>"
    assert decoded[1] == "a<extra_id_0> dog<extra_id_1> in the trees</s>"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a <extra_id_0>\nno gap\n", r"p\.txt, line 2: .* have none; write <extra_id_0>"),
        ("a <extra_id_1>\n", r"line 1: .*in this order, and have \['<extra_id_1>'\]"),
        ("a <extra_id_0> b <extra_id_0>\n", r"line 1: .*in this order"),
        ("fox " * 50 + "<extra_id_0>\n", r"line 1: the first 15 tokens .* have none"),
        ("\n\n", r"predict_file: there is no text"),
    ],
)
def test_texts_that_cannot_be_predicted_on_are_named(tmp_path, train, text, message):
    (tmp_path / "p.txt").write_text(text)
    data = denoising(train, predict_file=str(tmp_path / "p.txt"))
    with pytest.raises(ValueError, match=message):
        data.predict_dataloader()


def test_long_texts_to_predict_on_are_cut_and_counted(tmp_path, train):
    (tmp_path / "p.txt").write_text("a <extra_id_0> " + "fox " * 50 + "\n")
    data = denoising(train, predict_file=str(tmp_path / "p.txt"))
    with pytest.warns(UserWarning, match="1 texts were cut to max_length=16 tokens"):
        (batch,) = data.predict_dataloader()
    assert batch["input_ids"].shape == (4, 16)


@pytest.mark.parametrize(
    ("sentinels", "message"),
    [
        (0, r"needs 7 sentinel tokens, <extra_id_0> to <extra_id_6>, .*has none.*Choose"),
        (3, r"needs 7 sentinel tokens.* has 3\. Choose .* or lower max_length"),
    ],
)
def test_a_tokenizer_with_too_few_sentinels_is_refused(tmp_path, train, sentinels, message):
    folder = str(tmp_path / "tokenizer")
    options = {"sentinels": sentinels, "affixes": False}
    train_tokenizer(sentences(50), "bpe", 300, **options).save_pretrained(folder)
    assert len(load_tokenizer(folder)) <= 300
    with pytest.raises(ValueError, match=message):
        denoising(train, tokenizer=folder, max_length=128)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise_density": 0.0}, r"noise_density must lie in \(0, 1\), got 0.0"),
        ({"noise_density": 1.0}, r"noise_density must lie in \(0, 1\), got 1.0"),
        ({"mean_span": 0.5}, "mean_span must be at least 1, got 0.5"),
        ({"max_length": 7}, "max_length must be at least 8, got 7"),
    ],
)
def test_settings_outside_their_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DenoisingDataModule(**options)


def test_a_resumed_run_must_have_the_same_stretches(train):
    before, now = (denoising(train, mean_span=mean).state_dict()["facts"] for mean in (3.0, 1.0))
    with pytest.raises(ValueError, match=r"cannot resume: .*raw_length was changed from 17 to 15"):
        compare_facts(before, now)


def test_the_shortest_texts_make_a_row(tmp_path):
    (tmp_path / "t.txt").write_text("a\nb\n")
    data = denoising(tmp_path / "t.txt", val_fraction=0.0)
    (batch,) = data.train_dataloader()
    assert data.statistics["train/tokens"] == 4 and int((batch["labels"] >= 0).sum()) == 3
