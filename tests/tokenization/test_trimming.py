"""A trimmed tokenizer cuts texts of its tokens as before, and can still read any other."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from lmkit.tokenization import text_encoder, tokenizer_from_files, tokenizer_to_files
from lmkit.tokenization.trimming import TrimmedTokenizer, count_tokens, trim_tokenizer
from tests.tokenization.kinds import MAKERS, STRANGE, fuzz, make, texts

CORPUS = [*texts(40, seed=0)[:25], STRANGE]


def trimmed(name: str, min_count: int = 1, corpus: list[str] = CORPUS) -> TrimmedTokenizer:
    tokenizer = make(name)
    return trim_tokenizer(tokenizer, count_tokens(tokenizer, corpus), min_count)


def pairs(name: str, made: TrimmedTokenizer, some: list[str]) -> list[tuple[list[int], list[int]]]:
    """The old ids of texts, and the new ones under their old numbers."""
    old, new = text_encoder(make(name))(some), text_encoder(made.tokenizer)(some)
    return [(a, [made.kept[i] for i in b]) for a, b in zip(old, new, strict=True)]


@pytest.mark.parametrize("name", MAKERS)
def test_the_corpus_has_the_tokens_that_it_had(name: str) -> None:
    made = trimmed(name)
    assert len(made.kept) < len(make(name)) and made.kept == sorted(set(made.kept))
    assert all(before == after for before, after in pairs(name, made, CORPUS))


@pytest.mark.parametrize("min_count", [1, 3, 20])
@pytest.mark.parametrize("name", MAKERS)
def test_a_text_of_kept_tokens_is_cut_as_before(name: str, min_count: int) -> None:
    made = trimmed(name, min_count)
    kept = set(made.kept)
    both = pairs(name, made, fuzz())
    of_kept = [(before, after) for before, after in both if kept >= set(before)]
    assert 50 < len(of_kept) < len(both)  # there are some of either kind
    assert all(before == after for before, after in of_kept)


@pytest.mark.parametrize("name", MAKERS)
def test_nothing_becomes_unknown_and_every_text_reads_back_the_same(name: str) -> None:
    made, old = trimmed(name, min_count=20), make(name)
    for (before, after), text in zip(pairs(name, made, fuzz()), fuzz(), strict=True):
        unknown = old.unk_token_id
        assert after.count(unknown) <= before.count(unknown)
        assert old.decode(after) == old.decode(before), text


@pytest.mark.parametrize("name", MAKERS)
def test_tokens_keep_their_names_roles_and_surroundings(name: str) -> None:
    made, old = trimmed(name), make(name)
    new = made.tokenizer
    assert type(new) is type(old)
    assert sorted(new.get_vocab().values()) == list(range(len(made.kept)))
    names = old.convert_ids_to_tokens(made.kept)
    assert new.convert_ids_to_tokens(list(range(len(new)))) == names
    assert new.special_tokens_map == old.special_tokens_map
    for given in ((CORPUS[0],), (CORPUS[0], CORPUS[1])):
        whole, before = new(*given), old(*given)
        assert [made.kept[i] for i in whole["input_ids"]] == before["input_ids"]
        assert whole.get("token_type_ids") == before.get("token_type_ids")
    padded = new(CORPUS[:2], padding=True) if new.pad_token else None
    if padded is not None:
        assert {row[-1] for row in padded["input_ids"]} & {new.pad_token_id}


@pytest.mark.parametrize("name", ["wordpiece", "bpe", "t5", "llama"])
def test_the_files_of_a_trimmed_tokenizer_give_it_back_and_it_can_be_trimmed_again(
    name: str,
) -> None:
    first = trimmed(name)
    again = tokenizer_from_files(tokenizer_to_files(first.tokenizer))
    assert again.get_vocab() == first.tokenizer.get_vocab()
    assert text_encoder(again)(fuzz()) == text_encoder(first.tokenizer)(fuzz())
    second = trim_tokenizer(again, count_tokens(again, CORPUS[:5]))
    once = trimmed(name, corpus=CORPUS[:5])
    assert len(second.kept) <= len(first.kept)
    assert second.tokenizer.get_vocab() == once.tokenizer.get_vocab()
    assert [first.kept[i] for i in second.kept] == once.kept


def test_the_parts_of_a_merge_stay_with_all_merges_that_make_them() -> None:
    made = trimmed("bpe", min_count=20)
    model = json.loads(made.tokenizer.backend_tokenizer.to_str())["model"]
    old = json.loads(make("bpe").backend_tokenizer.to_str())["model"]
    kept = set(model["vocab"])
    assert {token for pair in model["merges"] for token in pair} <= kept
    wanted = [pair for pair in old["merges"] if "".join(pair) in kept]
    assert model["merges"] == wanted  # in their old order
    made_by = {"".join(pair) for pair in model["merges"]}
    assert all(
        len(token) == 1 or token in made_by or token in "<s></s><pad><unk><mask>" for token in kept
    )


def test_a_token_that_is_rare_and_a_part_of_a_frequent_one_is_kept() -> None:
    merges = [("a", "b"), ("ab", "c"), ("c", "c"), ("b", "a")]
    tokens = ["a", "b", "c", "ab", "abc", "cc", "ba"]
    tokenizer = plain(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    made = trim_tokenizer(tokenizer, count_tokens(tokenizer, ["abc abc"]))
    assert made.tokenizer.get_vocab() == {"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4}
    assert made.tokenizer.tokenize("abcc ba") == ["abc", "c", "b", "a"]


def test_two_ways_to_one_token_both_stay() -> None:
    # "abc" is made of "ab" and "c" in one word, and of "a" and "bc" in another.
    merges = [("b", "c"), ("a", "bc"), ("a", "b"), ("ab", "c")]
    tokens = ["a", "b", "c", "bc", "abc", "ab"]
    tokenizer = plain(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    made = trim_tokenizer(tokenizer, count_tokens(tokenizer, ["abc"]))
    assert set(made.tokenizer.get_vocab()) == set(tokens)


def test_what_the_old_vocabulary_could_not_spell_is_kept_whole() -> None:
    words = ["[UNK]", "a", "b", "##a", "##b", "ab", "##ab", "xy", "ax", "##b!"]
    tokenizer = plain(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.unk_token = "[UNK]"
    made = trim_tokenizer(tokenizer, count_tokens(tokenizer, ["a"]))
    assert set(made.tokenizer.get_vocab()) == set(words) - {"ab", "##ab"}
    assert made.tokenizer.tokenize("xy abab") == ["xy", "a", "##b", "##a", "##b"]


def unigram(scores: dict[str, float]) -> PreTrainedTokenizerFast:
    tokenizer = plain(models.Unigram([("<unk>", 0.0), *scores.items()], 0, False))
    tokenizer.unk_token = "<unk>"
    return tokenizer


def test_the_least_score_stays_for_the_unknown_is_measured_by_it() -> None:
    # "q" alone is unknown, and costs 10 more than the least score. Six pieces and "bq" (-27) are
    # worth more than "xxxxxxb" and the unknown at a least score of -40 (-51), and less at -9 (-20).
    scores = {"x": -3.0, "b": -3.0, "bq": -9.0, "xxxxxxb": -1.0, "zzz": -40.0, "z": -3.0}
    tokenizer, corpus = unigram(scores), ["xxxxxxbq", "xxxxxxb"]
    made = trim_tokenizer(tokenizer, count_tokens(tokenizer, corpus))
    assert "zzz" in made.tokenizer.get_vocab()
    for text in corpus:
        assert made.tokenizer.tokenize(text) == tokenizer.tokenize(text)
    assert tokenizer.tokenize(corpus[0]) == [*"xxxxxx", "bq"]
    model = json.loads(made.tokenizer.backend_tokenizer.to_str())["model"]
    assert min(score for _, score in model["vocab"]) == -40.0


def test_a_piece_with_a_character_that_is_none_by_itself_stays() -> None:
    tokenizer = unigram({"a": -2.0, "b": -2.0, "aq": -3.0, "bb": -3.0, "ba": -9.0})
    made = trim_tokenizer(tokenizer, count_tokens(tokenizer, ["a"]))
    assert set(made.tokenizer.get_vocab()) == {"<unk>", "a", "b", "aq", "ba"}


def test_the_number_of_the_unknown_piece_follows() -> None:
    pieces = [("zz", -1.0), ("a", -2.0), ("b", -2.0), ("ab", -3.0), ("<unk>", -4.0)]
    tokenizer = plain(models.Unigram(pieces, 4, False))
    made = trim_tokenizer(tokenizer, count_tokens(tokenizer, ["a"]))
    assert made.kept == [0, 1, 2, 4]  # "zz" has a character that no other piece has
    assert made.tokenizer.tokenize("a?") == ["a", "?"]
    assert made.tokenizer("a?")["input_ids"] == [1, 3]


def test_counts_are_those_of_a_plain_loop() -> None:
    tokenizer, some = make("gpt2"), fuzz(2500)
    expected = np.zeros(len(tokenizer), np.int64)
    for text in some:
        for number in tokenizer(text, add_special_tokens=False)["input_ids"]:
            expected[number] += 1
    assert np.array_equal(count_tokens(tokenizer, iter(some)), expected)
    assert not count_tokens(tokenizer, []).any() and not count_tokens(tokenizer, [""]).any()


def test_a_token_is_kept_from_its_count_on_and_not_below() -> None:
    tokenizer = make("wordpiece")
    counts = count_tokens(tokenizer, CORPUS)
    kept = set(trim_tokenizer(tokenizer, counts, 4).kept)
    for token, number in tokenizer.get_vocab().items():
        long = len(token.removeprefix("##")) > 1 and not token.startswith("[")
        if long:
            assert (number in kept) == (counts[number] >= 4)


def test_ids_that_are_asked_for_stay() -> None:
    tokenizer = make("gpt2")
    none = np.zeros(len(tokenizer), np.int64)
    rare = max(set(tokenizer.get_vocab().values()) - set(trim_tokenizer(tokenizer, none).kept))
    assert rare in trim_tokenizer(tokenizer, none, keep=[rare]).kept


def test_added_tokens_stay_and_are_found_as_before() -> None:
    tokenizer = tokenizer_from_files(tokenizer_to_files(make("bert")))
    tokenizer.add_tokens(["[drug]", "covid"])
    made = trim_tokenizer(tokenizer, count_tokens(tokenizer, ["nothing"]))
    assert made.tokenizer.tokenize("[drug] covid") == ["[drug]", "covid"]
    assert made.kept[-2:] == tokenizer.convert_tokens_to_ids(["[drug]", "covid"])


SURROUNDINGS = {
    "template": lambda ids: processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, ids[name]) for name in ("[CLS]", "[SEP]")]
    ),
    "bert": lambda ids: processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"])),
    "roberta": lambda ids: processors.RobertaProcessing(
        ("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"])
    ),
    "sequence": lambda ids: processors.Sequence(
        [processors.ByteLevel(), SURROUNDINGS["template"](ids)]
    ),
}


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_special_tokens_behind_words_that_go_are_put_around_a_text(name: str) -> None:
    words = ["zebra", "a", "##a", "yak", "[UNK]", "xylem", "[CLS]", "yak2", "[SEP]", "[PAD]", "b"]
    words += [f"{'' if first else '##'}{c}" for c in "zebrykxlm2" for first in (True, False)]
    ids = {word: number for number, word in enumerate(dict.fromkeys(words))}
    backend = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = SURROUNDINGS[name](ids)
    backend.enable_padding(pad_id=ids["[PAD]"], pad_token="[PAD]")
    roles = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", **roles)
    small, kept = trim_tokenizer(tokenizer, count_tokens(tokenizer, ["a", "yak"]))
    # A plain program that reads the file pads by what it says.
    bare = Tokenizer.from_str(small.backend_tokenizer.to_str())
    assert bare.padding["pad_id"] == small.pad_token_id != ids["[PAD]"]
    assert not {"zebra", "xylem", "yak2"} & set(small.get_vocab())
    assert small.convert_ids_to_tokens(small("a")["input_ids"]) == ["[CLS]", "a", "[SEP]"]
    assert [kept[i] for i in small("yak a")["input_ids"]] == tokenizer("yak a")["input_ids"]
    rows = small(["a", "yak a"], padding=True)["input_ids"]
    assert small.convert_ids_to_tokens(rows[0])[-1] == "[PAD]"


def test_sentinels_stay_where_they_are_plain_words_too() -> None:
    tokenizer = unigram({"a": -1.0, "▁<extra_id_0>": -20.0, "<0x0A>": -9.0, "aa": -2.0})
    none = np.zeros(len(tokenizer), np.int64)
    names = set(trim_tokenizer(tokenizer, none).tokenizer.get_vocab())
    assert names >= {"▁<extra_id_0>", "<0x0A>"} and "aa" not in names


def test_slow_and_unknown_kinds_are_refused() -> None:
    class Slow:
        backend_tokenizer = None

    with pytest.raises(ValueError, match=r"Slow is a slow tokenizer.*tokenizer.json"):
        trim_tokenizer(Slow(), np.zeros(3, np.int64))  # type: ignore[arg-type]
    words = plain(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    with pytest.raises(ValueError, match=r"of the kind WordLevel.*WordPiece, BPE, Unigram"):
        trim_tokenizer(words, np.zeros(2, np.int64))


@pytest.mark.parametrize("min_count", [0, -1, 1.5, True, "2"])
def test_a_count_that_is_none_is_refused(min_count: Any) -> None:
    with pytest.raises(ValueError, match="min_count must be a whole number of at least 1"):
        trim_tokenizer(make("bert"), np.zeros(9, np.int64), min_count)


def test_unknown_ids_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no token for: \[99999\]"):
        trim_tokenizer(make("bert"), np.zeros(9, np.int64), keep=[99999])


def test_a_class_with_ids_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from lmkit.tokenization import trimming

    other = make("gpt2")
    monkeypatch.setattr(trimming, "tokenizer_from_files", lambda files: other)
    with pytest.raises(ValueError, match="builds another vocabulary from the trimmed files"):
        trimmed("gpt2")


def plain(model: Any) -> PreTrainedTokenizerFast:
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend)
