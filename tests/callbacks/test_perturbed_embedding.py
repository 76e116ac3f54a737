"""Which tokens may move, how texts are numbered, where embeddings are, hooks that come and go."""

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from transformers import AutoConfig, AutoModelForSeq2SeqLM, BertConfig, BertModel

from lmkit.callbacks.perturbed_embedding import (
    PerturbedEmbedding,
    embedding_layers,
    special_ids,
    tokens_of,
)
from lmkit.surgery import NothingMatchedError
from tests import tiny
from tests.callbacks.fitted import BY_NAME
from tests.callbacks.hand_loops import Plain, rows
from tests.several_tasks import make_data, make_module

SPECIAL = torch.tensor([0, 2, 3])


def batch():
    ids = torch.tensor([[2, 7, 8, 3, 0], [2, 9, 3, 0, 0], [2, 7, 7, 7, 3]])
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    return {"input_ids": ids, "attention_mask": mask, "index": torch.tensor([4, 9, -1])}


def packed():
    return {
        "input_ids": torch.tensor([[2, 7, 8, 3, 2, 9, 3, 0], [2, 5, 3, 0, 0, 0, 0, 0]]),
        "attention_mask": torch.tensor([[1] * 7 + [0], [1] * 3 + [0] * 5]),
        "segment_ids": torch.tensor([[1, 1, 1, 1, 2, 2, 2, 0], [1, 1, 1, 0, 0, 0, 0, 0]]),
        "position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0], [0, 1, 2, 0, 0, 0, 0, 0]]),
        "segment_index": torch.tensor([[4, 9], [6, -1]]),
        "index": torch.tensor([4, 6]),
    }


def test_padding_special_tokens_and_fillers_are_not_free():
    made = tokens_of((b := batch())["input_ids"], b, SPECIAL)
    assert made.free.squeeze(-1).tolist() == [
        [False, True, True, False, False],
        [False, True, False, False, False],
        [False] * 5,
    ]
    assert made.segments is None


def test_padding_is_known_by_the_mask_where_it_has_an_ordinary_id():
    b = batch()
    b["input_ids"][b["attention_mask"] == 0] = 7
    made = tokens_of(b["input_ids"], b, SPECIAL)
    assert made.free.squeeze(-1)[:2].sum(1).tolist() == [2, 1]


def test_ids_that_are_not_the_batchs_own_are_known_by_themselves_alone():
    b = batch()
    # The inputs of a decoder, of the same shape: the mask is not theirs.
    other = torch.tensor([[0, 7, 8, 9, 7]] * 3)
    assert tokens_of(other, b, SPECIAL).free.squeeze(-1).sum(1).tolist() == [4, 4, 4]
    assert tokens_of(other, None, SPECIAL).free.squeeze(-1).sum(1).tolist() == [4, 4, 4]


def test_of_a_choice_each_answer_is_a_row_of_its_own():
    b = {n: t.unsqueeze(1).repeat(1, 2, *[1] * (t.dim() - 1)) for n, t in batch().items()}
    b["index"] = torch.tensor([4, 9, -1])
    made = tokens_of(b["input_ids"].flatten(0, 1), b, SPECIAL)
    assert made.free.shape == (6, 5, 1) and made.free[:4].sum((1, 2)).tolist() == [2, 2, 1, 1]
    assert len(made.text[:, 0].unique()) == 6


def test_texts_that_share_a_row_have_numbers_and_places_of_their_own():
    b, alone = packed(), batch()
    made = tokens_of(b["input_ids"], b, SPECIAL)
    single = tokens_of(alone["input_ids"], alone, SPECIAL)
    # The examples 4 and 9 have in any batch the keys that they have here.
    assert torch.equal(made.keys(7)[0, :4], single.keys(7)[0, :4])
    assert torch.equal(made.keys(7)[0, 4:7], single.keys(7)[1, :3])
    assert torch.equal(made.text_keys(7)[0, 4:7], single.text_keys(7)[1, :3])
    assert made.segments is b["segment_ids"]


def test_rows_of_a_corpus_that_are_packed_once_have_keys_by_row_and_place():
    b = packed()
    del b["segment_index"]
    made = tokens_of(b["input_ids"], b, SPECIAL)
    assert len(made.keys(7).flatten().unique()) == 16
    assert len(made.text_keys(7)[0, :7].unique()) == 2


def test_without_an_index_texts_are_numbered_from_an_offset():
    b = batch()
    del b["index"]
    first, second = (tokens_of(b["input_ids"], b, SPECIAL, offset) for offset in (0, 1000))
    assert len(first.text[:, 0].unique()) == 3
    assert not set(first.text.flatten().tolist()) & set(second.text.flatten().tolist())


def test_special_ids_are_the_tokenizers_or_the_configs():
    module = Plain()
    assert special_ids(module, None, [7]) == [0, 2, 3, 7]
    module.tokenizer = tiny.tokenizer()
    assert special_ids(module, None, None) == sorted(tiny.tokenizer().all_special_ids)

    class Data:
        tokenizer = tiny.tokenizer()

    assert special_ids(Plain(), Data(), None) == sorted(tiny.tokenizer().all_special_ids)
    # One of another library does not say which are special.
    module.tokenizer = tiny.tokenizer().backend_tokenizer
    assert special_ids(module, None, None) == [0, 2, 3]


def tokens_seen(module, batch, ids):
    """What a technique is told of a call of the module's embedding layer."""
    embedding, seen = PerturbedEmbedding(module), []
    embedding.attach()

    def look(number, tokens, embedded):
        seen.append(tokens)
        return embedded

    with embedding.moved(look, batch):
        embedding.layers[0](ids)
    embedding.detach()
    return seen[0]


@pytest.mark.parametrize(
    "entries",
    [
        {"segment_ids": torch.zeros(2, 4, dtype=torch.long)},  # of BERT's first code: types
        {"attention_mask": torch.tensor([[0.0, 0, 0, -1e4], [0.0] * 4])},
        {"attention_mask": torch.tensor([[1.0, 1, 1, 0], [1.0] * 4])},
        {"attention_mask": torch.ones(2, 4, 4)},
        {"index": ["a", "b"]},
    ],
    ids=["segments", "added mask", "float mask", "square mask", "names"],
)
def test_entries_of_other_modules_are_not_taken_for_ours(entries):
    ids = torch.tensor([[2, 7, 3, 0], [2, 8, 9, 3]])
    mask = {"attention_mask": (ids > 0).long()}
    usual = tokens_seen(Plain(), {"input_ids": ids, **mask}, ids)
    assert usual.free.squeeze(-1).tolist() == [
        [False, True, False, False],
        [False, True, True, False],
    ]
    other = tokens_seen(Plain(), {"input_ids": ids, **mask, **entries}, ids)
    for one, two in zip(usual, other, strict=True):
        assert (one is None and two is None) or torch.equal(one, two)


def test_of_a_batch_of_several_tasks_the_part_that_is_read_is_described(tmp_path):
    module = make_module("topic", "ner")
    data = make_data(tmp_path, "topic", "ner", batches="all")
    data.prepare_data()
    data.setup("fit")
    module.tokenizer = data.tokenizer
    module.configure_model()
    batch = next(iter(data.train_dataloader()))
    for name in ("topic", "ner"):
        own = {k.removeprefix(f"{name}/"): v for k, v in batch.items() if k.startswith(name)}
        expected = tokens_of(own["input_ids"], own, torch.tensor(data.tokenizer.all_special_ids))
        embedding, seen = PerturbedEmbedding(module, data), []
        embedding.attach()
        embedding._entered()
        with embedding.moved(lambda n, tokens, e, seen=seen: seen.append(tokens) or e, batch):
            embedding.layers[0](own["input_ids"])
        embedding.detach()
        for one, two in zip(seen[0], expected, strict=True):
            assert (one is None and two is None) or torch.equal(one, two)


class Towers(LightningModule):
    """Two encoders."""

    def __init__(self):
        super().__init__()
        small = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
        config = BertConfig(vocab_size=40, num_hidden_layers=1, **small)
        self.queries, self.texts = BertModel(config), BertModel(config)


def test_the_layers_of_all_networks_are_found():
    towers = Towers()
    assert embedding_layers(towers) == [
        towers.queries.embeddings.word_embeddings,
        towers.texts.embeddings.word_embeddings,
    ]
    assert embedding_layers(towers, "texts.*.word_embeddings") == [
        towers.texts.embeddings.word_embeddings
    ]


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_of_an_encoder_decoder_both_sides_are_found(kind):
    sizes = {
        "t5": tiny.SEQ2SEQ["t5"],
        "bart": {
            "d_model": 16,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
        },
    }[kind]
    settings = {k: v for k, v in sizes.items() if k != "model_type"}
    config = AutoConfig.for_model(kind, vocab_size=50, decoder_start_token_id=0, **settings)
    network = AutoModelForSeq2SeqLM.from_config(config)

    class Holds(LightningModule):
        def __init__(self):
            super().__init__()
            self.network = network

    found = embedding_layers(Holds())
    assert network.get_encoder().get_input_embeddings() in found
    assert network.get_decoder().get_input_embeddings() in found


def test_what_is_not_found_is_told():
    class Two(LightningModule):
        def __init__(self):
            super().__init__()
            self.words, self.places = nn.Embedding(4, 2), nn.Embedding(4, 2)

    with pytest.raises(NothingMatchedError, match="it has words, places; set embedding"):
        embedding_layers(Two())
    with pytest.raises(NothingMatchedError, match=r"it has no nn\.Embedding"):
        embedding_layers(LightningModule())


def test_layers_are_changed_inside_the_block_alone():
    module = Plain(0.0)
    perturbed = PerturbedEmbedding(module)
    first = {n: t.unsqueeze(0) for n, t in rows()[0].items()}
    ids, table = first["input_ids"], module.model.bert.embeddings.word_embeddings
    plain = table(ids)
    perturbed.attach()
    numbers = []

    def double(number, tokens, embedded):
        numbers.append(number)
        return 2 * embedded

    assert torch.equal(table(ids), plain)
    with perturbed.moved(double, first):
        assert torch.equal(table(ids), 2 * plain) and torch.equal(table(ids), 2 * plain)
        with torch.no_grad():
            assert torch.equal(table(ids), plain)
    assert numbers == [0, 1] and perturbed.calls == 2 and torch.equal(table(ids), plain)
    perturbed.detach()
    assert not table._forward_hooks


def test_what_reads_no_ids_is_told():
    module = Plain()
    perturbed = PerturbedEmbedding(module, name="classifier")
    perturbed.attach()
    with (
        perturbed.moved(lambda n, t, e: e, None),
        pytest.raises(TypeError, match=r"Linear reads torch\.float32 and no ids"),
    ):
        module.model.classifier(torch.zeros(1, 16))


def test_of_a_module_of_lmkit_calls_outside_of_its_network_are_left_alone():
    module = BY_NAME["sequence_classification"].make_module(config={"vocab_size": 40})
    module.configure_model()
    perturbed = PerturbedEmbedding(module)
    perturbed.attach()
    calls = []

    def note(number, tokens, embedded):
        calls.append(number)
        return embedded

    ids = torch.tensor([[2, 7, 3]])
    with perturbed.moved(note, None):
        module.network.get_input_embeddings()(ids)
        assert not calls
        module.network(input_ids=ids)
        with pytest.raises(IndexError):
            module.network(input_ids=torch.tensor([[99]]))  # the gate closes behind it
        module.network.get_input_embeddings()(ids)
    assert calls == [0]
