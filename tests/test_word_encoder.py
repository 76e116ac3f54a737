"""Where words begin, for tokenizers of every kind."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lmkit.tokenization import pair_affixes, text_encoder, word_encoder
from tests import tiny

TEXT = "the quick brown Foxes jumps over [MASK] a lazy dog.\nnumberstars"


def unigram(cut: bool) -> PreTrainedTokenizerFast:
    """A SentencePiece-like tokenizer; without a cut it looks the whole text up at once."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=80, show_progress=False, unk_token="<unk>", special_tokens=["<unk>"]
    )
    backend.train_from_iterator(tiny.sentences(200), trainer)
    if not cut:
        backend.pre_tokenizer = None
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


def words(tokenizer, text: str) -> list[str]:
    """The text of each word."""
    (encoded,) = word_encoder(tokenizer)([text])
    found = []
    start = 0
    for first, end in zip(encoded.starts_word, encoded.ends.tolist(), strict=True):
        if first:
            found.append("")
        found[-1] += text[start:end]
        start = max(start, end)
    return [word.strip() for word in found if word.strip()]


def test_wordpiece_words_are_not_only_what_has_no_hashes() -> None:
    expected = ["the", "quick", "brown", "Foxes", "jumps", "over", "[MASK]", "a", "lazy", "dog"]
    assert words(tiny.tokenizer(), TEXT) == [*expected, ".", "numberstars"]


def test_byte_level_words_begin_at_spaces_and_punctuation() -> None:
    expected = ["the", "quick", "brown", "Foxes", "jumps", "over", "[", "MASK", "]", "a", "lazy"]
    assert words(tiny.tokenizer("bpe"), TEXT) == [*expected, "dog", ".", "numberstars"]


@pytest.mark.parametrize("cut", [True, False])
def test_sentencepiece_words_begin_at_spaces_even_if_nothing_cuts_the_text(cut: bool) -> None:
    text = "the quick brown birds sing"
    assert words(unigram(cut), text) == text.split()


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_the_tokens_are_those_of_the_plain_encoder(kind: str) -> None:
    texts = [TEXT, "", " ", *tiny.sentences(20)]
    encoded = word_encoder(tiny.tokenizer(kind))(texts)
    assert [row.ids for row in encoded] == text_encoder(tiny.tokenizer(kind))(texts)
    for row in encoded:
        assert len(row.ids) == len(row.starts_word) == len(row.ends)
        assert row.starts_word[:1].all()


def test_a_tokenizer_without_words_is_refused() -> None:
    class Slow:
        name_or_path = "somewhere"

    with pytest.raises(ValueError, match=r"somewhere is a Slow; take a fast one, or mask single"):
        word_encoder(Slow())  # type: ignore[arg-type]


def test_pairs_are_joined_as_the_tokenizer_joins_them() -> None:
    bert, roberta = pair_affixes(tiny.tokenizer()), pair_affixes(tiny.tokenizer("bpe"))
    assert bert == ([2], [3], [3], ([0], 0, [0], 1, [1]))
    assert roberta == ([0], [2, 2], [2], ([0], 0, [0, 0], 0, [0]))
    with pytest.raises(ValueError, match="puts no separator between the two texts of a pair"):
        pair_affixes(unigram(cut=True))
