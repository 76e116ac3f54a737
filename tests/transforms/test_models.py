"""Words from a model: neighbours among its embeddings, proposals of its masked head."""

from __future__ import annotations

import pickle
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForMaskedLM

from lmkit.transforms import ContextualReplacement, EmbeddingNeighbours, Protection, transform_text
from lmkit.transforms.embedding_neighbours import WordVectors, nearest_words
from lmkit.transforms.model_digest import model_digest
from lmkit.transforms.stop_words import STOP_WORDS
from lmkit.transforms.whole_words import whole_words
from tests.tiny import MASKED, tokenizer

WORDS = ["many", "small", "birds", "sing", "in", "old", "trees", "near", "green", "rivers"]


@pytest.fixture(scope="module", params=["wordpiece", "bpe"])
def model(request, tmp_path_factory):
    """Write a random masked language model with its tokenizer."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    made = tokenizer(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    made.save_pretrained(folder)
    config = {**MASKED["bert"], "vocab_size": len(made), "pad_token_id": made.pad_token_id}
    kind = config.pop("model_type")
    AutoModelForMaskedLM.from_config(AutoConfig.for_model(kind, **config)).save_pretrained(folder)
    return str(folder)


def names_of(model: str):
    from lmkit.tokenization import load_tokenizer

    return whole_words(load_tokenizer(model))


def test_whole_words_are_one_token_in_a_text(model):
    from lmkit.tokenization import load_tokenizer

    made = load_tokenizer(model)
    found = whole_words(made)
    assert found and list(found.values()) == sorted(found.values())
    for word, number in found.items():
        ids = made(f"the {word}", add_special_tokens=False)["input_ids"]
        assert ids[-1] == number and word.isalpha()
        assert len(ids) == len(made("the", add_special_tokens=False)["input_ids"]) + 1
    assert not set(found.values()) & set(made.all_special_ids)
    # None is left out: what is one more token behind a space, and letters, is there.
    before = made("the", add_special_tokens=False)["input_ids"]
    singles = set()
    for number in range(len(made)):
        text = made.decode([number]).strip()
        if text.isalpha() and number not in made.all_special_ids:
            ids = made(f"the {text}", add_special_tokens=False)["input_ids"]
            if len(ids) == len(before) + 1:
                singles.add(text)
    assert singles == set(found)


def test_neighbours_are_the_nearest(model):
    transform = EmbeddingNeighbours(model, rate=1.0, top_k=3, least_cosine=0.0)
    network = AutoModelForMaskedLM.from_pretrained(model)
    table = network.get_input_embeddings().weight.detach().double().numpy()
    known = names_of(model)
    word = next(w for w in known if w not in STOP_WORDS and len(w) > 1)
    unit = table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)
    cosines = {w: unit[i] @ unit[known[word]] for w, i in known.items() if w != word}
    expected = sorted((w for w, c in cosines.items() if c >= 0), key=lambda w: -cosines[w])[:3]
    assert transform.candidates[word] == expected
    assert transform.candidates[word.capitalize()] == [w.capitalize() for w in expected]
    assert transform.candidates["zzzz"] == [] == transform.candidates["the"]
    rng = np.random.default_rng(0)
    seen = {transform([word], None, rng).words[0] for _ in range(100)}
    assert seen == set(expected)
    strict = EmbeddingNeighbours(model, least_cosine=1.0)
    assert strict.candidates[word] == []


def test_nearest_words_of_a_table():
    rows = np.array([[1, 0], [1, 0], [0.8, 0.6], [0, 1]], dtype=np.float32)
    words = ["cat", "Cat", "dog", "sun"]
    vectors = WordVectors(words, {w: i for i, w in enumerate(words)}, rows)
    assert [w for w, _ in nearest_words(vectors, "cat", 5, -1.0)] == ["dog", "sun"]
    assert [w for w, _ in nearest_words(vectors, "cat", 1, -1.0)] == ["dog"]
    assert nearest_words(vectors, "cat", 5, 0.9) == []


def test_proposals_are_the_likeliest_whole_words(model):
    transform = ContextualReplacement(model, top_k=4)
    places = [1, 5]
    proposed = transform.propose(WORDS, places)
    from lmkit.tokenization import load_tokenizer

    made = load_tokenizer(model)
    network = AutoModelForMaskedLM.from_pretrained(model).eval()
    row = [made.mask_token if i in places else word for i, word in enumerate(WORDS)]
    # As the model read texts, with spaces.
    encoded = made(" ".join(row), return_tensors="pt")
    masks = (encoded["input_ids"][0] == made.mask_token_id).nonzero().flatten().tolist()
    with torch.no_grad():
        chances = network(**encoded).logits[0].softmax(-1)
    known = {w: i for w, i in names_of(model).items() if w.lower() not in STOP_WORDS}
    for place, token, found in zip(places, masks, proposed, strict=True):
        allowed = {w: float(chances[token, i]) for w, i in known.items() if w != WORDS[place]}
        best = sorted(allowed, key=lambda w: -allowed[w])[:4]
        assert [w for w, _ in found] == best
        assert [c for _, c in found] == pytest.approx([allowed[w] for w in best], rel=1e-5)


def test_masks_that_the_text_has_already_are_told_from_hidden_words(model):
    from lmkit.tokenization import load_tokenizer

    mask = load_tokenizer(model).mask_token
    row = [mask, *WORDS[1:4], mask, *WORDS[5:]]
    transform = ContextualReplacement(model, top_k=4)
    alone = [transform.propose([mask, *row[1:]], [place]) for place in (0, 4)]
    # Hiding what is hidden already changes nothing that the model sees.
    assert transform.propose(row, [4, 0]) == [*alone[1], *alone[0]]
    assert all(found for (found,) in alone)


def test_a_model_without_whole_words_is_refused(tmp_path):
    from transformers import AutoModel, ByT5Tokenizer

    ByT5Tokenizer().save_pretrained(tmp_path)
    config = AutoConfig.for_model(
        "bert",
        vocab_size=400,
        **{key: value for key, value in MASKED["bert"].items() if key != "model_type"},
    )
    AutoModel.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no whole words"):
        EmbeddingNeighbours(str(tmp_path))(["a", "word"], None, np.random.default_rng(0))


def test_replacements(model):
    transform = ContextualReplacement(model, alpha=0.3, top_k=5)
    tags = ["O", "B-X", "I-X", *["O"] * 7]
    seen = set()
    for seed in range(10):
        made = transform(WORDS, tags, np.random.default_rng(seed), [False] * 9 + [True])
        again = pickle.loads(pickle.dumps(transform))
        flags = [False] * 9 + [True]
        assert again(WORDS, tags, np.random.default_rng(seed), flags) == made
        assert made.labels == tags and made.words[9] == "rivers"
        assert 1 <= len(made.edits) <= 2  # floor(0.3 * 9)
        for edit in made.edits:
            new = made.words[edit.new_start]
            assert new.lower() != WORDS[edit.start] and new.lower() in names_of(model)
            assert WORDS[edit.start] not in STOP_WORDS
        seen.add(tuple(made.words))
    assert len(seen) > 5


def test_a_low_temperature_takes_the_likeliest(model):
    cold = ContextualReplacement(model, alpha=0.1, temperature=1e-3)
    for seed in range(5):
        made = cold(WORDS, None, np.random.default_rng(seed))
        (edit,) = made.edits
        ((best, _), *_), *_ = cold.propose(WORDS, [edit.start])
        assert made.words[edit.new_start] == best


def test_texts_and_limits(model):
    transform = ContextualReplacement(model, alpha=0.5)
    rng = np.random.default_rng(0)
    assert transform_text(transform, "", rng) == ""
    assert transform_text(transform, "12 . the", rng, None) == "12 . the"
    assert transform_text(transform, "Birds sing.", rng, None, 0.0) == "Birds sing."
    made = transform_text(transform, "Birds  sing (not) now.", rng, Protection())
    assert "(not) now." in made and "  " in made
    # Longer than the model can read: what lies behind is left alone.
    long = WORDS * 40
    proposed = transform.propose(long, [0, len(long) - 1])
    assert proposed[0] and not proposed[1]
    assert len(transform(long, None, rng).words) == len(long)


def test_fingerprints_tell_models_apart(model, tmp_path):
    before = model_digest(model)
    shutil.copytree(model, tmp_path / "copy")
    copy = str(tmp_path / "copy")
    assert model_digest(copy) == before
    weights = tmp_path / "copy" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert model_digest(copy) != before
    first = EmbeddingNeighbours(model).sources()
    assert first != EmbeddingNeighbours(copy).sources()
    assert model_digest("some/name") != model_digest("other/name")


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="top_k must be a whole number, at least 1"):
        EmbeddingNeighbours("m", top_k=0)
    with pytest.raises(ValueError, match="model must be a folder or a hub name"):
        ContextualReplacement(None)
    with pytest.raises(ValueError, match="temperature must be above 0"):
        ContextualReplacement("m", temperature=0)
    with pytest.raises(ValueError, match="does not exist"):
        EmbeddingNeighbours(str(tmp_path / "none"), 1.0)(["a"], None, np.random.default_rng(0))
    tokenizer().save_pretrained(tmp_path / "bare")
    bare = ContextualReplacement(str(tmp_path / "bare"), 1.0)
    with pytest.raises(ValueError, match=r"model: .* cannot be loaded as a masked language model"):
        bare(["birds"], None, np.random.default_rng(0))


def test_an_encoder_without_a_head_proposes_nothing(model, tmp_path):
    network = AutoModelForMaskedLM.from_pretrained(model)
    network.base_model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    change = ContextualReplacement(str(tmp_path), alpha=1.0)
    with pytest.raises(ValueError, match="without the head of a masked language model"):
        change(WORDS, None, np.random.default_rng(0))
