"""Text, settings and caches that are too small, empty, out of range or damaged."""

import json

import pytest
from tokenizers.processors import TemplateProcessing

from lmkit.datamodules import (
    CausalLMDataModule,
    MaskedLMDataModule,
    SequenceClassificationDataModule,
    TokenClassificationDataModule,
)
from lmkit.tokenization import train_tokenizer
from tests.tiny import sentences, tokenizer_folder

from .small_data import both_objectives, ready


def ids_of(loader):
    return [batch["input_ids"].tolist() for batch in loader]


@pytest.mark.parametrize(
    ("batching", "index"), [("pack", [0] + [-1] * 31), ("chunk", [0] + [-1] * 31), ("bucket", None)]
)
def test_a_corpus_smaller_than_a_batch_is_filled_up(tmp_path, batching, index):
    path = tmp_path / "small.txt"
    path.write_text("one text\nanother text\n")
    data = ready(MaskedLMDataModule, train_file=str(path), batch_size=32, batching=batching)
    (batch,) = data.train_dataloader()
    assert index is None or batch["index"].tolist() == index
    filler = batch["index"] < 0
    assert filler.any() and not filler.all()
    assert (batch["labels"][filler] == -100).all()
    assert (batch["labels"] >= 0).sum() == data.statistics["train/rows"]  # one of a short row


@pytest.mark.parametrize("batching", ["pack", "bucket", "chunk"])
def test_blank_lines_and_a_text_without_tokens_are_passed_over(tmp_path, batching):
    """A control character is text, and no token of it is left."""
    path = tmp_path / "text.txt"
    path.write_text("\n\nthe fox\n\x01\n   \na lazy dog\n\n")
    own = train_tokenizer(sentences(50), "wordpiece", 120)
    own.save_pretrained(tmp_path / "own")
    options = {"batching": batching, "tokenizer": str(tmp_path / "own"), "val_fraction": 0}
    data = ready(MaskedLMDataModule, train_file=str(path), mask_rate=0.0, **options)
    assert data.statistics["train/documents"] == 3
    rows = [row for batch in ids_of(data.train_dataloader()) for row in batch]
    decoded = " ".join(own.batch_decode(rows, skip_special_tokens=True)).split()
    assert sorted(decoded) == ["a", "dog", "fox", "lazy", "the"]


@both_objectives
def test_text_without_any_token_is_refused(tmp_path, make):
    path = tmp_path / "text.txt"
    path.write_text("\x01\n\x02\n")
    own = tmp_path / "own"
    train_tokenizer(sentences(50), "wordpiece", 120).save_pretrained(own)
    with pytest.raises(ValueError, match=r"train: the tokenizer finds no token in .*text\.txt"):
        ready(make, train_file=str(path), tokenizer=str(own), val_fraction=0)


def test_a_row_that_special_tokens_fill_is_refused(tmp_path, train):
    own = train_tokenizer(sentences(50), "wordpiece", 120)
    marks = " ".join(["[CLS]"] * 7)
    backend = own.backend_tokenizer
    backend.post_processor = TemplateProcessing(
        single=f"{marks} $A [SEP]",
        special_tokens=[("[CLS]", own.cls_token_id), ("[SEP]", own.sep_token_id)],
    )
    own.save_pretrained(tmp_path / "own")
    options = {"train_file": str(train), "tokenizer": str(tmp_path / "own")}
    with pytest.raises(ValueError, match=r"max_length=8 leaves no room for text .*; raise it"):
        ready(MaskedLMDataModule, max_length=8, **options)
    data = ready(MaskedLMDataModule, max_length=9, **options)
    assert next(iter(data.train_dataloader()))["input_ids"].shape == (4, 9)


def test_a_damaged_cache_is_mended(tmp_path, train):
    """Tokens, tables and tokenizer: what a kill or a full disk may leave of them."""
    options = {"train_file": str(train), "cache_dir": str(tmp_path / "cache")}
    whole = ids_of(ready(MaskedLMDataModule, **options).train_dataloader())
    files = [path for path in sorted((tmp_path / "cache").rglob("*.bin")) if path.is_file()]
    assert {path.parent.parent.name for path in files} == {"tokens", "rows"}
    for path in files:
        path.write_bytes(path.read_bytes()[:-1])
        assert ids_of(ready(MaskedLMDataModule, **options).train_dataloader()) == whole


def test_a_cache_of_another_tokenizer_is_not_taken(tmp_path, train):
    """One of the same folder and size, in which two words have each other's ids."""
    train_tokenizer(sentences(50), "wordpiece", 120).save_pretrained(tmp_path / "own")
    options = {"tokenizer": str(tmp_path / "own"), "cache_dir": str(tmp_path / "cache")}
    options |= {"mask_rate": 0.0, "seed": 1, "train_file": str(train)}

    def texts():
        data = ready(MaskedLMDataModule, **options)
        rows = [row for batch in ids_of(data.train_dataloader()) for row in batch]
        return rows, data.tokenizer.batch_decode(rows)

    rows, before = texts()
    path = tmp_path / "own" / "tokenizer.json"
    state = json.loads(path.read_text())
    words = state["model"]["vocab"]
    words["the"], words["a"] = words["a"], words["the"]
    path.write_text(json.dumps(state))
    other_rows, after = texts()
    assert rows != other_rows and before == after


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 7}, "max_length must be at least 8, got 7"),
        ({"val_fraction": 1.0}, r"val_fraction must lie in \[0, 1\), got 1.0"),
        ({"batching": "group"}, "batching must be pack, bucket or chunk, got 'group'"),
        ({"eval_batching": "group"}, "eval_batching must be pack, bucket or chunk, got 'group'"),
        ({"masking": "letter"}, "masking must be one of token, whole_word, .*, got 'letter'"),
        ({"mask_count": "some"}, "mask_count must be one of exact, binomial, got 'some'"),
        ({"batch_size": 0}, "^batch_size must be at least 1"),
        ({"num_workers": -1}, "num_workers must be 0 or more, got -1"),
        ({"mask_rate": 1.5}, r"mask_rate must lie in \[0, 1\], got 1.5"),
        ({"random_from": "words"}, "random_from must be non_special or vocab, got 'words'"),
        ({"document": "page"}, "document must be one of"),
    ],
)
def test_settings_out_of_range_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        MaskedLMDataModule(**options)


def test_without_training_text_only_training_is_refused(tmp_path, train):
    own = tmp_path / "own"
    train_tokenizer(sentences(50), "bpe", 300, affixes=False).save_pretrained(own)
    data = ready(CausalLMDataModule, val_file=str(train), tokenizer=str(own))
    assert len(ids_of(data.val_dataloader())) > 0
    with pytest.raises(ValueError, match="no train text; pass train_file or source"):
        data.train_dataloader()
    with pytest.raises(ValueError, match="no tokenizer, and none can be trained"):
        ready(CausalLMDataModule, val_file=str(train))


@pytest.fixture
def unlabelled(tmp_path):
    """Make data whose rows without labels stand in a file of some name and content."""
    train = {
        SequenceClassificationDataModule: ("a.csv", "text,label\na fox,x\na dog,y\n"),
        TokenClassificationDataModule: ("a.conll", "a O\nfox B-X\n"),
    }

    def make(kind, name, content, **options):
        for file, text in (train[kind], (name, content)):
            if text is not None:
                (tmp_path / file).write_text(text)
        own = {"tokenizer": tokenizer_folder(tmp_path / "own"), "max_length": 16}
        files = {"train_file": train[kind][0], "unlabelled_file": name}
        data = kind(**files, **own, val_fraction=0, **options)
        data.setup()
        return data

    return make


TEXTS, TAGS = SequenceClassificationDataModule, TokenClassificationDataModule


@pytest.mark.parametrize(
    ("kind", "name", "content", "message"),
    [
        (TEXTS, "m.csv", None, r"unlabelled_file: no file or folder m\.csv"),
        (TAGS, "m.conll", None, r"unlabelled_file: no file or folder m\.conll"),
        (TEXTS, "m.csv", "", r"unlabelled_file: m\.csv is empty"),
        (TEXTS, "m.txt", "", r"unlabelled_file: there is no row in m\.txt"),
        (TAGS, "m.txt", "\n", r"unlabelled_file: there is no row in m\.txt"),
        (TEXTS, "m.csv", "text\n", r"unlabelled_file: there is no row in m\.csv"),
        (TEXTS, "m.csv", "a,b\nc d,e f\n", r"unlabelled_file: m\.csv: which column is the text"),
        (TEXTS, "m.csv", "text\na fox,x\n", r"unlabelled_file: m\.csv, line 2: 2 fields"),
        (TAGS, "m.jsonl", '{"body": "a"}', r"unlabelled_file: m\.jsonl, line 1: which column has"),
        (TEXTS, "m.jsonl", '{"text": "a"', r"unlabelled_file: m\.jsonl, line 1: not valid JSON"),
    ],
)
def test_a_bad_file_of_rows_without_labels_is_named_as_such(
    unlabelled, kind, name, content, message
):
    with pytest.raises(ValueError, match=f"^{message}"):
        unlabelled(kind, name, content)


@pytest.mark.parametrize("kind", [TEXTS, TAGS])
def test_bad_rows_without_labels_are_skipped_where_that_is_asked_for(unlabelled, kind):
    content = '{"text": "a fox"}\n{"text": 3}\n{"text": "a dog"}\n'
    data = unlabelled(kind, "m.jsonl", content, on_bad_row="skip")
    assert data.unlabelled_rows == 2
    with pytest.raises(ValueError, match=r"unlabelled_file: m\.jsonl, line 2"):
        unlabelled(kind, "m.jsonl", content)
