"""Whole words, spans and pairs of sentences, from text to batch."""

from typing import Any

import pytest
import torch

from lmkit.datamodules import MaskedLMDataModule
from lmkit.tokenization import word_encoder
from tests import tiny


def make(folder, **how: Any) -> MaskedLMDataModule:
    if not (folder / "text.txt").exists():
        texts = tiny.sentences(120)
        parts = [" ".join(texts[3 * i : 3 * i + 3]) for i in range(40)]
        # Words that the small vocabulary has to take apart, so that there is something to tell.
        (folder / "text.txt").write_text(
            "\n".join(f"{part} Numberstars shipwinds" for part in parts)
        )
    kind = how.pop("kind", "wordpiece")
    settings = {"max_length": 48, "batch_size": 8, "val_fraction": 0.2, "seed": 2, **how}
    data = MaskedLMDataModule(
        train_file=str(folder / "text.txt"),
        tokenizer=tiny.tokenizer_folder(folder / kind, kind),
        cache_dir=str(folder / "cache"),
        **settings,
    )
    data.prepare_data()
    data.setup()
    return data


def whole_words(data: MaskedLMDataModule, ids: list[int], chosen: list[bool]) -> bool:
    """Whether no word of the text is chosen in part, by decoding and encoding it anew."""
    tokenizer = data.tokenizer
    assert tokenizer is not None
    special = set(tokenizer.all_special_ids)
    inner = [(i, c) for i, c in zip(ids, chosen, strict=True) if i not in special]
    text = str(tokenizer.decode([i for i, _ in inner], clean_up_tokenization_spaces=False))
    (encoded,) = word_encoder(tokenizer)([text])
    assert encoded.ids == [i for i, _ in inner]
    numbers = encoded.starts_word.cumsum().tolist()
    picked = {n for n, (_, c) in zip(numbers, inner, strict=True) if c}
    return all(c == (n in picked) for n, (_, c) in zip(numbers, inner, strict=True))


@pytest.mark.parametrize("masking", ["whole_word", "span", "n_gram"])
@pytest.mark.parametrize("batching", ["bucket", "chunk", "pack"])
@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_words_are_masked_whole(tmp_path, masking, batching, kind):
    data = make(tmp_path, masking=masking, batching=batching, kind=kind, max_length=256)
    assert data.tokenizer is not None
    seen = parts = 0
    for batch in data.train_dataloader():
        labels = batch["labels"]
        original = torch.where(labels == -100, batch["input_ids"], labels)
        for ids, target, mask in zip(original, labels, batch["attention_mask"], strict=True):
            real = mask.bool()
            if batching == "bucket":  # one whole text a row, which can be encoded anew
                assert whole_words(data, ids[real].tolist(), (target[real] != -100).tolist())
            assert not torch.isin(target, torch.tensor(data.tokenizer.all_special_ids)).any()
            seen += int((target != -100).sum())
            parts += int(real.sum())
        named = torch.zeros_like(labels, dtype=torch.bool)
        named.scatter_(1, batch["label_positions"], True)
        assert named[labels != -100].all()
    assert 0.08 < seen / parts <= 0.16


@pytest.mark.parametrize("objective", ["next_sentence", "sentence_order"])
def test_pairs_are_the_same_for_any_number_of_workers(tmp_path, objective):
    alone, helped = (
        list(make(tmp_path, sentence_objective=objective, num_workers=workers).train_dataloader())
        for workers in (0, 2)
    )
    assert len(alone) == len(helped)
    for first, second in zip(alone, helped, strict=True):
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
    assert {"token_type_ids", "next_sentence_label", "labels", "index"} <= set(alone[0])
    assert "segment_ids" not in alone[0]


def test_pairs_do_not_change_with_the_seed_but_masks_do(tmp_path):
    first, second = (
        make(tmp_path, sentence_objective="sentence_order", seed=seed) for seed in (1, 2)
    )
    rows = torch.arange(6)
    one, two = (data.collator(data._rows["train"], True)(0, rows) for data in (first, second))
    assert torch.equal(one["next_sentence_label"], two["next_sentence_label"])
    assert torch.equal(one["attention_mask"], two["attention_mask"])
    assert not torch.equal(one["labels"], two["labels"])


def test_a_text_of_one_document_has_no_next_sentence(tmp_path):
    make(tmp_path, document="file", val_fraction=0, sentence_objective="sentence_order")
    with pytest.raises(ValueError, match=r"text has one document; cut it .* or use sentence_order"):
        make(tmp_path, document="file", val_fraction=0, sentence_objective="next_sentence")


def test_an_unknown_choice_is_refused(tmp_path):
    with pytest.raises(ValueError, match="sentence_objective must be one of None, next_sentence"):
        MaskedLMDataModule(sentence_objective="nsp")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="masking must be one of token, whole_word"):
        MaskedLMDataModule(masking="words")  # type: ignore[arg-type]
