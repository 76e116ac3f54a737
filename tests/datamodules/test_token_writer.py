import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lmkit.datamodules import text_rows, token_writer
from lmkit.datamodules.text_rows import Text
from lmkit.datamodules.token_store import TokenStore
from lmkit.datamodules.token_writer import write_stores

from .small_store import SEPARATOR, documents, encode, encode_words, write


def test_documents_are_laid_end_to_end(tmp_path):
    store = write(documents("ab", "", "cde"), tmp_path)
    assert store.ids.tolist() == [97, 98, 3, 3, 99, 100, 101, 3]
    assert store.offsets.tolist() == [0, 3, 4]
    assert (store.documents, store.tokens, store.text_bytes) == (3, 8, 5)


def test_batches_of_any_size_give_the_same_store(tmp_path, monkeypatch):
    texts = documents(*[f"text {number}" for number in range(50)])
    whole = write(texts, tmp_path / "a")
    monkeypatch.setattr(text_rows, "_DOCUMENTS", 7)
    parts = write(texts, tmp_path / "b")
    assert parts.ids.tolist() == whole.ids.tolist()
    assert parts.offsets.tolist() == whole.offsets.tolist()


def test_pieces_of_a_document_stay_together(tmp_path):
    texts = [Text("ab", "f", 1, ends=False), Text("c", "f", 2), *documents("d")]
    route = {"ab": "val", "c": "train", "d": "train"}
    stores = write_stores(
        texts,
        {"train": tmp_path / "t", "val": tmp_path / "v"},
        encode=encode,
        separator=SEPARATOR,
        vocab_size=300,
        route=lambda text: route[text.text],
    )
    assert stores["val"].ids.tolist() == [97, 98, 99, SEPARATOR]
    assert stores["val"].offsets.tolist() == [0]
    assert stores["train"].ids.tolist() == [100, SEPARATOR]


FILES = ["tokens.bin", "offsets.bin", "words.bin", "sentences.bin", "meta.json"]
WHOLE = {"encode": encode_words, "words": True, "sentences": True}


@pytest.mark.parametrize("file", FILES)
def test_a_damaged_store_counts_as_absent_and_is_written_anew(tmp_path, file):
    expected = write(documents("abc"), tmp_path, **WHOLE).ids.tolist()
    path = tmp_path / "key" / file
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FileNotFoundError, match="no whole token store"):
        TokenStore(tmp_path / "key")
    assert write(documents("abc"), tmp_path, **WHOLE).ids.tolist() == expected


def test_a_store_knows_where_words_and_sentences_begin(tmp_path, monkeypatch):
    monkeypatch.setattr(text_rows, "_DOCUMENTS", 2)
    texts = documents("One two. Three", "", "four", "a b c", "Five! Six. no 7") * 3
    store = write(texts, tmp_path, **WHOLE)
    words, sentences = [], []
    for text in texts:
        sentences += [len(words) + at for at, _ in enumerate(text.text) if at in SENTENCES[text[0]]]
        words += [at == 0 or text.text[at - 1] == " " for at in range(len(text.text))] + [True]
    assert store.has_words and store.tokens == len(words)
    assert store.starts_word(np.arange(store.tokens)).tolist() == words
    square = np.array([[0, 4], [5, 8]])
    assert store.starts_word(square).tolist() == [[True, True], [False, False]]
    assert store.sentences.tolist() == sentences and store.sentence_count == len(sentences)
    plain = write(texts, tmp_path / "plain")
    assert plain.ids.tolist() == store.ids.tolist()
    assert plain.disk_bytes == store.disk_bytes - -(-len(words) // 8) - 8 * len(sentences)


SENTENCES = {"One two. Three": {0, 9}, "": set(), "four": {0}, "a b c": {0}}
SENTENCES["Five! Six. no 7"] = {0, 6}


def test_a_piece_of_a_document_begins_a_sentence_and_a_word(tmp_path):
    store = write([Text("ab\n", "f", 1, ends=False), Text("c", "f", 2)], tmp_path, **WHOLE)
    assert store.documents == 1 and store.sentences.tolist() == [0, 3]
    assert store.starts_word(np.arange(5)).tolist() == [True, False, False, True, True]


def test_a_store_without_words_says_so(tmp_path):
    store = write(documents("abc"), tmp_path)
    with pytest.raises(ValueError, match="has no words; write it with words=True"):
        store.starts_word(np.array([0]))
    with pytest.raises(ValueError, match="has no sentences; write it with sentences=True"):
        store.sentences.tolist()
    with pytest.raises(TypeError, match="encode must return EncodedText"):
        write(documents("abc"), tmp_path / "words", words=True)


def test_who_comes_second_takes_the_first_ones_store(tmp_path):
    def slow():
        yield from documents("ab")
        write(documents("ab"), tmp_path)  # another process finishes meanwhile
        yield from documents("c")

    assert write(slow(), tmp_path).tokens == 3
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_an_error_leaves_nothing_behind(tmp_path):
    def broken():
        yield from documents("ab")
        raise ValueError("line 2")

    with pytest.raises(ValueError, match="line 2"):
        write(broken(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_says_what_to_do_and_leaves_nothing(tmp_path, monkeypatch):
    def full(self):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(token_writer._Writer, "flush", full)
    with pytest.raises(OSError, match=r"No space left.*make room.*cache_dir") as error:
        write(documents("ab"), tmp_path)
    assert error.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


KILLED = """
import os, signal, sys
from pathlib import Path
from lmkit.datamodules.text_rows import Text
from lmkit.datamodules.token_writer import write_stores


def texts():
    for number in range(5000):
        yield Text("word", "f", number)
    os.kill(os.getpid(), signal.SIGKILL)

write_stores(texts(), {"train": Path(sys.argv[1]) / "key"},
             encode=lambda texts: [[1, 2]] * len(texts), separator=3, vocab_size=10)
"""


def run(script, *arguments):
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )


def test_killed_in_the_middle_no_broken_store_is_seen(tmp_path):
    assert run(KILLED, tmp_path).returncode == -9
    assert not (tmp_path / "key").exists()
    assert len(list(tmp_path.iterdir())) == 1  # what it had begun
    assert write(documents("ab"), tmp_path).tokens == 3
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


MEMORY = """
import json, resource, sys
import torch
torch.set_num_threads(1)
from lmkit.datamodules import MaskedLMDataModule
data = MaskedLMDataModule(train_file=sys.argv[1], cache_dir=sys.argv[2], vocab_size=1000)
data.prepare_data()
data.setup()
for batch in data.train_dataloader():
    pass
print(json.dumps([resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
                  data.statistics["train/tokens"]]))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(tmp_path):
    rng = np.random.default_rng(0)
    words = [f"w{number:x}" for number in range(4000)]
    figures = []
    for size in (30_000, 300_000):
        path = tmp_path / f"{size}.txt"
        with path.open("w") as stream:
            for _ in range(size // 1000):
                rows = rng.choice(words, (1000, 12)).tolist()
                stream.writelines(" ".join(row) + "\n" for row in rows)
        done = run(MEMORY, path, tmp_path / "cache")
        assert done.returncode == 0, done.stderr
        figures.append(json.loads(done.stdout.splitlines()[-1]))
    (small, few), (large, many) = figures
    assert many > 9 * few
    # 2 % when it was written; holding the texts or the ids in memory would make it 20 %.
    assert large < 1.05 * small, f"{small} KiB grew to {large} KiB"
