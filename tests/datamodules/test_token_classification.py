"""Tagged words as batches: read, converted, aligned with pieces, in windows where they are long."""

import json
import os
from pathlib import Path

import datasets
import pytest
import torch

from lmkit.datamodules.token_classification import TokenClassificationDataModule
from lmkit.modules import TokenClassificationModule
from tests import tiny
from tests.cases import make_trainer

DATA = Path(os.environ.get("LMKIT_DATA", Path(__file__).parents[3] / "shared" / "data"))
SENTENCE = "the O\nquick B-PER\nnumberstars I-PER\njumps O\nover B-LOC\n\n"


@pytest.fixture
def ready(tmp_path):
    tiny.tokenizer_folder(tmp_path / "tokenizer")

    def make(text=None, name="train.conll", setup=True, **options):
        if text is not None:
            path = tmp_path / name
            path.write_text(text if isinstance(text, str) else "\n".join(map(json.dumps, text)))
            options = {"train_file": str(path), **options}
        data = TokenClassificationDataModule(
            **{
                "tokenizer": str(tmp_path / "tokenizer"),
                "cache_dir": str(tmp_path / "cache"),
                "val_fraction": 0,
                "max_length": 16,
                "batch_size": 4,
                "seed": 1,
                **options,
            }
        )
        if setup:
            data.prepare_data()
            data.setup("fit")
        return data

    return make


def labelled_pieces(data, loader=None):
    """Each labelled piece and its tag, row by row."""
    rows = []
    for batch in loader or data.train_dataloader():
        ids, labels = (batch[n].flatten(0, -2) for n in ("input_ids", "labels"))
        for row, tags in zip(ids, labels, strict=True):
            tokens = data.tokenizer.convert_ids_to_tokens(row[tags >= 0].tolist())
            names = [data.labels[t] for t in tags[tags >= 0].tolist()]
            if names:
                rows.append(list(zip(tokens, names, strict=True)))
    return rows


def gold(data, split="val"):
    """The tags of each sentence, by words."""
    loader = {"val": data.val_dataloader, "test": data.test_dataloader}[split]()
    found = {}
    for batch in loader:
        for number, labels in zip(batch["index"].tolist(), batch["word_labels"], strict=True):
            if number >= 0:
                found[number] = [data.labels[n] for n in labels[labels >= 0].tolist()]
    return [found[number] for number in sorted(found)]


def test_the_first_piece_of_a_word_has_its_label(ready):
    data = ready(SENTENCE)
    assert data.labels == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
    (row,) = labelled_pieces(data)
    assert row == [
        ("the", "O"),
        ("quick", "B-PER"),
        ("numbers", "I-PER"),
        ("jumps", "O"),
        ("over", "B-LOC"),
    ]


def test_all_pieces_of_a_word_have_its_entity(ready):
    text = "moonships B-PER\nnumberstars I-PER\njumpsover O\n"

    def by_word(data):
        (row,) = labelled_pieces(data)
        words = [[]]
        for token, tag in row:
            words += [] if token.startswith("##") else [[]]
            words[-1].append(tag)
        assert min(map(len, words[1:])) > 1
        return [(tags[0], set(tags[1:])) for tags in words[1:]]

    expected = [("B-PER", {"I-PER"}), ("I-PER", {"I-PER"}), ("O", {"O"})]
    assert by_word(ready(text, label_pieces="all")) == expected
    data = ready(text.replace("B-PER", "X").replace("I-PER", "Y"), label_pieces="all")
    assert by_word(data) == [("X", {"X"}), ("Y", {"Y"}), ("O", {"O"})]


def test_evaluation_labels_first_pieces_alone(ready, tmp_path):
    (tmp_path / "val.conll").write_text(SENTENCE)
    data = ready(SENTENCE, val_file=str(tmp_path / "val.conll"), label_pieces="all")
    (row,) = labelled_pieces(data, data.val_dataloader())
    assert [token for token, _ in row] == ["the", "quick", "numbers", "jumps", "over"]
    (batch,) = data.val_dataloader()
    words = batch["word_labels"] >= 0
    first = batch["labels"].gather(1, batch["word_positions"].clamp(min=0))
    assert torch.equal(first[words], batch["word_labels"][words])


def test_a_word_the_tokenizer_drops_has_a_label_and_no_piece(ready, tmp_path):
    (tmp_path / "val.conll").write_text("the O\n\x01\tO\nfox B-PER\n".replace("\t", " "))
    data = ready(SENTENCE, val_file=str(tmp_path / "val.conll"))
    batch = next(iter(data.val_dataloader()))
    row = int(batch["index"].argmax())
    assert batch["word_positions"][row].tolist() == [1, -1, 2]
    assert gold(data) == [["O", "O", "B-PER"]]


@pytest.mark.parametrize(
    "tags",
    [
        ["B-PER", "I-PER", "B-PER", "O", "B-LOC"],
        ["I-PER", "I-PER", "B-PER", "O", "I-LOC"],
        ["B-PER", "E-PER", "S-PER", "O", "S-LOC"],
        ["B-PER", "L-PER", "U-PER", "O", "U-LOC"],
    ],
)
@pytest.mark.parametrize("scheme", ["auto", "given"])
def test_every_scheme_becomes_bio(ready, tmp_path, tags, scheme):
    text = "".join(f"fox {tag}\n" for tag in tags)
    (tmp_path / "val.conll").write_text(text)
    known = "iobes" if any(tag[0] in "ESLU" for tag in tags) else "iob1"
    how = {"scheme": known} if scheme == "given" else {}
    data = ready(text, val_file=str(tmp_path / "val.conll"), **how)
    assert data.labels == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
    assert gold(data) == [["B-PER", "I-PER", "B-PER", "O", "B-LOC"]]


def test_parts_of_speech_stay_as_they_are(ready, tmp_path):
    text = "the DET\nfox NOUN\n\njumps VERB\n"
    (tmp_path / "val.conll").write_text(text)
    data = ready(text, val_file=str(tmp_path / "val.conll"))
    assert data.labels == ["DET", "NOUN", "VERB"]
    assert gold(data) == [["DET", "NOUN"], ["VERB"]]
    assert data.network_settings()["id2label"] == {0: "DET", 1: "NOUN", 2: "VERB"}
    entities = SENTENCE.replace("B-LOC", "I-LOC")
    assert ready(entities, scheme="none").labels == ["B-PER", "I-LOC", "I-PER", "O"]


LONG = "".join(f"{w} {'B-PER' if i % 3 else 'I-PER'}\n" for i, w in enumerate(["numberstars"] * 30))


@pytest.mark.parametrize("pieces", ["first", "all"])
def test_no_word_of_a_long_sentence_is_lost_in_training_nor_counted_twice(ready, pieces):
    data = ready(LONG + "\n" + SENTENCE, label_pieces=pieces)
    rows = labelled_pieces(data)
    assert all(batch["input_ids"].shape[1] <= 16 for batch in data.train_dataloader())
    assert len(rows) > 4
    first = [tag for row in rows for token, tag in row if token == "numbers"]
    assert len(first) == 31 and first.count("B-PER") == 21
    assert data.statistics["train/examples"] == 2


def test_no_word_of_a_long_sentence_is_lost_in_evaluation(ready, tmp_path):
    (tmp_path / "val.conll").write_text(LONG + "\n" + SENTENCE)
    data = ready(SENTENCE, val_file=str(tmp_path / "val.conll"))
    assert [len(tags) for tags in gold(data)] == [30, 5]
    (batch,) = data.val_dataloader()
    assert batch["input_ids"].ndim == 3 and batch["input_ids"].shape[2] <= 16
    assert (batch["labels"] >= 0).sum() == 35
    # Tensors of a batch can be cut to its first sentences.
    assert {len(tensor) for tensor in batch.values()} == {4}


def test_a_word_longer_than_a_row_is_cut_and_counted(ready):
    data = ready(f"{'moons' * 15} B-PER\nfox O\n")
    assert data.statistics["train/truncated"] == 1
    assert [tag for _, tag in labelled_pieces(data)[0]] == ["B-PER"]
    assert sum(len(row) for row in labelled_pieces(data)) == 2


def test_rows_of_lists_are_read(ready, tmp_path):
    rows = [{"id": 1, "tokens": ["the", "fox"], "ner_tags": ["O", "B-PER"]}]
    assert ready(rows, "a.jsonl").labels == ["O", "B-PER", "I-PER"]
    rows = [{"w": ["the", "fox"], "t": [0, 2], "tokens": "x"}]
    how = {"word_column": "w", "tag_column": "t"}
    assert ready(rows, "b.jsonl", tag_names=["O", "B-X", "B-PER"], **how).labels == [
        "O",
        "B-PER",
        "I-PER",
    ]
    assert ready(rows, "c.jsonl", **how).labels == ["0", "2"]


@pytest.mark.parametrize(
    "spans",
    [
        [{"start": 4, "end": 13, "label": "PER"}, {"start": 20, "end": 24, "label": "LOC"}],
        [[4, 13, "PER"], [20, 24, "LOC"]],
        {"start": [4, 20], "end": [13, 24], "type": ["PER", "LOC"]},
    ],
)
def test_spans_of_characters_become_tags(ready, tmp_path, spans):
    row = {"text": "the quick fox jumps over.", "entities": spans}
    (tmp_path / "val.jsonl").write_text(json.dumps(row) + '\n{"text": "a", "entities": []}\n')
    data = ready([row], "a.jsonl", val_file=str(tmp_path / "val.jsonl"))
    assert gold(data) == [["O", "B-PER", "I-PER", "O", "B-LOC", "O"], ["O"]]


@pytest.mark.parametrize(
    ("span", "message"),
    [
        ([4, 8, "PER"], r"the span 4 to 8 of 'PER', 'quic', cuts the word 'quick' \(4 to 9\)"),
        ([4, 99, "PER"], r"the span 4 to 99 of 'PER' is none of a text of 13 characters"),
        ([9, 4, "PER"], r"the span 9 to 4"),
        ([3, 4, "PER"], r"holds no word"),
        ([4, 9], r"a span is \{'start': 0, .*, got \[4, 9\]"),
        ({"start": "4", "end": 9, "label": "PER"}, r"a span is"),
    ],
)
def test_a_span_that_is_none_names_file_and_line(ready, span, message):
    rows = [{"text": "a fox", "spans": []}, {"text": "the quick fox", "spans": [span]}]
    with pytest.raises(ValueError, match=rf"a\.jsonl, line 2: .*{message}"):
        ready(rows, "a.jsonl")
    rows[0]["spans"] = [[2, 5, "PER"]]
    data = ready(rows, "b.jsonl", on_bad_row="skip")
    assert data.statistics["train/examples"] == 1


def test_spans_that_overlap_are_refused(ready):
    row = {"text": "the quick fox", "spans": [[0, 9, "A"], [4, 13, "B"]]}
    with pytest.raises(ValueError, match=r"line 1: the spans of 'A' and 'B' overlap at 'quick'"):
        ready([row], "a.jsonl")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "2 words and 1 tags"),
        ({"tokens": ["a", ""], "tags": ["O", "O"]}, "must be a text or a list of words"),
        ({"tokens": ["a", "b"], "tags": ["O", None]}, "the tag of 'b' is missing"),
        ({"tokens": ["a"], "tags": "O"}, "the tags must be a list"),
        ({"tokens": ["a"], "gold": ["O"]}, "which column has the tags .* Pass tag_column"),
        ({"body": ["a"], "tags": ["O"]}, "which column has the words .* Pass word_column"),
        ({"text": "a", "tags": ["O"]}, "which column has the spans .* Pass tag_column"),
    ],
)
def test_a_row_that_is_none_names_file_and_line(ready, row, message):
    rows = [{"tokens": ["fox"], "tags": ["B-PER"]}, row]
    with pytest.raises(ValueError, match=rf"a\.jsonl, line 2: .*{message}"):
        ready(rows, "a.jsonl")
    assert ready(rows, "a.jsonl", on_bad_row="skip").statistics["train/examples"] == 1


def test_a_tag_that_training_never_saw_names_its_line(ready, tmp_path):
    (tmp_path / "val.conll").write_text("the O\nfox B-ORG\n")
    with pytest.raises(
        ValueError, match=r"val\.conll, line 2: unknown label 'B-ORG' .*'B-LOC', 'I-LOC'"
    ):
        ready(SENTENCE, val_file=str(tmp_path / "val.conll"))


def test_a_misspelt_tag_names_its_line(ready):
    with pytest.raises(ValueError, match=r"line 7: 'BPER' is no tag of an entity.*scheme='none'"):
        ready(SENTENCE + "fox BPER\n")
    with pytest.raises(ValueError, match=r"line 7: the tag 'S-PER' is none of scheme='bio'"):
        ready(SENTENCE + "fox S-PER\n", scheme="bio")
    data = ready(SENTENCE + "fox BPER\n", on_bad_row="skip")
    assert data.statistics["train/examples"] == 1


def test_arguments_out_of_range_are_refused(ready):
    with pytest.raises(ValueError, match=r"scheme must be one of auto, bio, .* got 'iob2'"):
        ready(setup=False, scheme="iob2")
    with pytest.raises(ValueError, match="label_pieces must be one of first, all"):
        ready(setup=False, label_pieces="last")


def test_a_data_set_brings_its_names(ready):
    names = datasets.ClassLabel(names=["O", "B-PER", "I-PER"])
    features = datasets.Features(
        {"tokens": datasets.List(datasets.Value("string")), "ner_tags": datasets.List(names)}
    )
    rows = {"tokens": [["the", "fox"], ["a"]], "ner_tags": [[0, 1], [0]]}
    data = ready(source=datasets.Dataset.from_dict(rows, features=features))
    assert data.labels == ["O", "B-PER", "I-PER"]
    assert sorted(map(len, labelled_pieces(data))) == [1, 2]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ask.txt", "the fox, a dog\n\na fox\n"),
        ("ask.conll", "the\nfox\n,\na\ndog\n\na\nfox\n"),
        ("ask.conll", "the X\nfox X\n, X\na X\ndog X\n\na X\nfox X\n"),
        ("ask.jsonl", '{"text": "the fox, a dog"}\n{"text": "a fox"}\n'),
        ("ask.jsonl", '{"tokens": ["the", "fox", ",", "a", "dog"]}\n{"tokens": ["a", "fox"]}\n'),
    ],
)
def test_words_to_predict_on_need_no_tags(ready, tmp_path, name, text):
    (tmp_path / name).write_text(text)
    data = ready(SENTENCE, predict_file=str(tmp_path / name))
    (batch,) = data.predict_dataloader()
    assert "labels" not in batch
    for row, words in enumerate([["the", "fox", ",", "a", "dog"], ["a", "fox"]]):
        asked = data.inputs(row)["text"]
        places = [(s, e) for s, e in batch["word_places"][row].tolist() if s >= 0]
        assert [asked[start:end] for start, end in places] == words
    assert (batch["word_places"][2:] == -1).all() and batch["index"].tolist() == [0, 1, -1, -1]


MORE = [
    ("more.txt", "the fox. a numberstars\n\na fox\n"),
    ("more.conll", "the X\nfox X\n. X\na X\nnumberstars X\n\na X\nfox X\n"),
    ("more.jsonl", '{"text": "the fox. a numberstars", "spans": 3}\n{"tokens": ["a", "fox"]}\n'),
]


@pytest.mark.parametrize(("name", "text"), MORE)
@pytest.mark.parametrize("pieces", ["first", "all"])
def test_sentences_without_tags_stand_behind_the_others_and_change_none(
    ready, tmp_path, name, text, pieces
):
    (tmp_path / name).write_text(text)
    sentences = SENTENCE * 3 + LONG
    plain = ready(sentences, label_pieces=pieces)
    data = ready(sentences, unlabelled_file=str(tmp_path / name), label_pieces=pieces)
    assert data.labels == plain.labels and data.unlabelled_rows == 2
    assert data.statistics["train/examples"] == 6 and data.statistics["train/unlabelled"] == 2
    before, after = plain.table("train"), data.table("train")
    count = len(before)
    assert len(after) == count + 2 and count > 4  # the windows of the long one
    for row in range(count):
        for column in ("input_ids", "labels"):
            assert after.ragged(column)[row].tolist() == before.ragged(column)[row].tolist()
    for row, words in enumerate(("the fox. a numberstars", "a fox"), count):
        assert data.tokenizer.decode(after.ragged("input_ids")[row][1:-1]) == words
        assert (after.ragged("labels")[row] == -100).all()
    assert labelled_pieces(data) and sorted(labelled_pieces(data)) == sorted(labelled_pieces(plain))


def test_long_sentences_without_tags_are_cut_into_windows(ready, tmp_path):
    (tmp_path / "more.txt").write_text("numberstars " * 30)
    data = ready(SENTENCE, unlabelled_file=str(tmp_path / "more.txt"))
    lengths = data.table("train").ragged("input_ids").lengths
    assert data.unlabelled_rows == 1 and len(lengths) > 4 and lengths.max() <= 16
    rows = [data.table("train").ragged("labels")[row] for row in range(1, len(lengths))]
    assert all((labels == -100).all() for labels in rows)


def test_sentences_without_tags_alone_are_tagged_as_the_network_names_them(ready, tmp_path):
    (tmp_path / "more.txt").write_text("the fox\n")
    options = {"unlabelled_file": str(tmp_path / "more.txt"), "setup": False}
    for scheme in ("auto", "bio", "none"):
        with pytest.raises(ValueError, match="unlabelled_file alone does not tell which classes"):
            ready(scheme=scheme, **options).setup()
    names = {"id2label": {0: "O", 1: "I-X", 2: "B-X"}}
    data = ready(**options)
    module = TokenClassificationModule(tiny.MASKED["bert"] | names)
    with pytest.warns(UserWarning, match="1 training examples have no label"):
        make_trainer(max_steps=1).fit(module, data)
    assert data.labels == ["O", "I-X", "B-X"]
    assert all((batch["labels"] == -100).all() for batch in data.train_dataloader())


@pytest.mark.skipif(not DATA.is_dir(), reason=f"there are no data sets at {DATA}")
def test_wnut17_keeps_its_entities(ready):
    folder = DATA / "wnut17"
    data = ready(
        train_file=str(folder / "wnut17train.conll"),
        val_file=str(folder / "emerging.dev.conll"),
        test_file=str(folder / "emerging.test.annotated"),
        batch_size=64,
    )
    assert len(data.labels) == 13 and data.statistics["train/examples"] == 3394
    for split, sentences, words, entities in (
        ("val", 1009, 15733, 836),
        ("test", 1287, 23394, 1079),
    ):
        found = gold(data, split)
        assert len(found) == sentences and sum(map(len, found)) == words
        assert sum(tag.startswith("B-") for tags in found for tag in tags) == entities


@pytest.mark.skipif(not DATA.is_dir(), reason=f"there are no data sets at {DATA}")
def test_english_ewt_keeps_its_words(ready):
    name = "en_ewt-ud-{}.conllu.gz"
    folder = DATA / "ud-english-ewt"
    data = ready(
        train_file=str(folder / name.format("test")),
        val_file=str(folder / name.format("dev")),
        batch_size=64,
    )
    assert len(data.labels) == 17
    found = gold(data)
    assert len(found) == 2001 and sum(map(len, found)) == 25147
