"""Words of texts, their pieces, and windows of them."""

import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from lmkit.tokenization.word_pieces import PiecedWords, join_words, piece_encoder, split_words
from lmkit.tokenization.word_windows import WordLayout, cut_windows
from tests import tiny

WORDS = ["the", "quick", "Foxes", "x-y", "[MASK]", "numberstars", "\x00", "a", "\u200d", "dog."]


def test_pieces_are_those_of_transformers() -> None:
    tokenizer = tiny.tokenizer()
    (made,) = piece_encoder(tokenizer)([WORDS])
    theirs = tokenizer(WORDS, is_split_into_words=True, add_special_tokens=False)
    assert made.ids.tolist() == theirs["input_ids"]
    owners = theirs.word_ids()
    firsts = [owners.index(word) if word in owners else -1 for word in range(len(WORDS))]
    assert made.starts.tolist() == firsts
    assert made.starts[6] == -1


def test_byte_level_pieces_are_those_of_the_words_in_a_text() -> None:
    tokenizer = tiny.tokenizer("bpe")
    words = tiny.sentences(1)[0].split()
    (made,) = piece_encoder(tokenizer)([words])
    in_text = tokenizer(" " + " ".join(words), add_special_tokens=False)["input_ids"]
    assert made.ids.tolist() == in_text
    # The tokenizer itself is left as it was.
    assert tokenizer("the", add_special_tokens=False)["input_ids"] != in_text[:1]


def test_a_slow_tokenizer_gives_the_same_pieces() -> None:
    class Slow:
        def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
            return {"input_ids": tiny.tokenizer()(text, add_special_tokens=False)["input_ids"]}

    (fast,) = piece_encoder(tiny.tokenizer())([WORDS])
    (slow,) = piece_encoder(Slow())([WORDS])  # type: ignore[arg-type]
    assert fast.ids.tolist() == slow.ids.tolist() and fast.starts.tolist() == slow.starts.tolist()


def test_a_sentence_without_words_or_pieces_has_none() -> None:
    empty, nothing = piece_encoder(tiny.tokenizer())([[], ["\x00", "\x01"]])
    assert (len(empty.ids), len(empty.starts)) == (0, 0)
    assert (len(nothing.ids), nothing.starts.tolist()) == (0, [-1, -1])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't stop, e.g. now!", ["Don", "'", "t", "stop", ",", "e", ".", "g", ".", "now", "!"]),
        ("Zoe\u0308 sang", ["Zoe\u0308", "sang"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("東京に行く", list("東京に行く")),
        ("a\xa0b\tc\n", ["a", "b", "c"]),
        ("snake_case 3.5", ["snake_case", "3", ".", "5"]),
        ("   ", []),
    ],
)
def test_words_of_a_text(text: str, words: list[str]) -> None:
    assert [text[start:end] for start, end in split_words(text)] == words


def test_joined_words_are_found_again() -> None:
    text, places = join_words(["a", "New York", ""])
    assert [text[start:end] for start, end in places] == ["a", "New York", ""]


def drawn(rng: random.Random, room: int) -> PiecedWords:
    """Words of different numbers of pieces, some of none."""
    sizes = [rng.choice([0, 1, 1, 1, 2, 3, room]) for _ in range(rng.randint(0, 40))]
    starts = np.cumsum(sizes) - sizes
    starts[np.array(sizes, int) == 0] = -1
    return PiecedWords(np.arange(sum(sizes)) + 10, starts.astype(np.int64))


def test_windows_are_whole_words_and_own_each_once() -> None:
    rng = random.Random(0)
    several = 0
    for _ in range(500):
        room = rng.randint(3, 12)
        words = drawn(rng, room)
        total = len(words.ids)
        windows = cut_windows(words.starts, total, room)
        several += len(windows) > 2
        edges = {*words.starts.tolist(), 0, total}
        assert (windows[0].own_first, windows[-1].own_last) == (0, total)
        for window in windows:
            assert 0 <= window.last - window.first <= room
            assert window.first <= window.own_first <= window.own_last <= window.last
            assert set(window) <= edges
        for before, after in pairwise(windows):
            assert before.own_last == after.own_first
            assert before.first < after.first <= before.last < after.last
    assert several > 100


def test_words_have_company_on_both_sides() -> None:
    windows = cut_windows(np.arange(100), 100, 16)
    for before, after in pairwise(windows):
        assert before.last - before.own_last == after.own_first - after.first == 2


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_each_word_stands_where_its_position_says(kind: str) -> None:
    layout = WordLayout.of(tiny.tokenizer(kind), 12)
    rng = random.Random(1)
    sentences = [drawn(rng, layout.room) for _ in range(40)]
    laid = layout.lay(sentences)
    assert laid.input_ids.ndim == 3 and laid.input_ids.shape[-1] <= 12
    for row, words in enumerate(sentences):
        flat = laid.input_ids[row].ravel()
        for word, start in enumerate(words.starts):
            place = laid.positions[row, word]
            assert (flat[place] == words.ids[start]) if start >= 0 else place == -1
        assert (laid.positions[row, len(words.starts) :] == -1).all()
    short = layout.lay([w for w in sentences if len(w.ids) <= layout.room])
    assert short.input_ids.ndim == 2
    assert layout.lay([sentences[0]._replace(ids=np.empty(0, np.int64))]).attention_mask.any()


def test_what_no_sentence_has_is_masked() -> None:
    layout = WordLayout.of(tiny.tokenizer(), 8)
    words = [PiecedWords(np.arange(n) + 10, np.arange(n)) for n in (20, 3)]
    laid = layout.lay(words)
    assert laid.attention_mask[1].sum() == 3 + 2 and not laid.attention_mask[1, 1:].any()
    assert laid.attention_mask[0].sum(1).min() > 2


def test_a_word_longer_than_a_row_is_cut_and_no_other() -> None:
    layout = WordLayout.of(tiny.tokenizer(), 8)  # six tokens that are not special
    words = PiecedWords(np.arange(14), np.array([0, -1, 2, 12]))
    limited, is_cut = layout.limited(words)
    assert is_cut and limited.starts.tolist() == [0, -1, 2, 8]
    assert limited.ids.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 12, 13]
    assert layout.limited(limited)[1] is False
    with pytest.raises(ValueError, match="max_length is 2, which the 2 special tokens"):
        WordLayout.of(tiny.tokenizer(), 2)


def test_windows_of_a_row_see_only_themselves() -> None:
    layout = WordLayout.of(tiny.tokenizer(), 8)
    network = BertModel(BertConfig(**{**tiny.MASKED["bert"], "vocab_size": 99})).eval()
    laid = layout.lay([PiecedWords(np.arange(20) + 10, np.arange(20))])
    ids = torch.from_numpy(laid.input_ids)
    with torch.no_grad():
        together = network(ids.flatten(0, 1), torch.from_numpy(laid.attention_mask).flatten(0, 1))
        alone = network(ids[0, :1])
    assert torch.allclose(together[0][0], alone[0][0], atol=1e-6)
