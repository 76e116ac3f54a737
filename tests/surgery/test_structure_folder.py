"""A structure that no config can say is written with its surgeries, and read back whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from lmkit.surgery import to_spec
from lmkit.surgery.low_rank import LowRank, low_rank_layers
from lmkit.surgery.selection import Selection
from lmkit.surgery.structure_folder import (
    STRUCTURE,
    WEIGHTS,
    has_structure,
    load_structure,
    read_structure,
    saved_surgeries,
    structural_specs,
    write_structure,
)
from tests.surgery.adapted import build, logits
from tests.tiny import Residual

SURGERIES = [Selection(biases=True), LowRank({"ffn_input": 3}), LowRank({"query": 2})]


def changed(name: str = "bert") -> tuple[PreTrainedModel, list[dict[str, Any]]]:
    network = build(name)
    surgeries = SURGERIES if name == "bert" else [LowRank({"all": 2})]
    for surgery in surgeries:
        surgery(network)
    specs = [to_spec(surgery) for surgery in surgeries]
    return network, structural_specs(network, specs)


def written(folder: Path, name: str = "bert") -> PreTrainedModel:
    network, specs = changed(name)
    write_structure(network, folder, specs)
    return network


def test_only_what_changes_a_shape_is_structure() -> None:
    assert changed()[1] == [to_spec(surgery) for surgery in SURGERIES[1:]]
    plain = build("bert")
    assert structural_specs(plain, []) == []
    SURGERIES[0](plain)
    assert structural_specs(plain, [to_spec(SURGERIES[0])]) == []


def test_what_surgeries_of_lmkit_do_not_make_is_refused() -> None:
    network = build("bert")
    Residual()(network)
    with pytest.raises(ValueError, match=r"cannot express this structure.*tests\.tiny\.Residual"):
        structural_specs(network, [to_spec(Residual())])
    with pytest.raises(ValueError, match=r"changed by \[\]"):
        structural_specs(changed()[0], [])


@pytest.mark.parametrize("name", ["bert", "masked", "gpt2", "t5", "bart"])
def test_it_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    network = written(tmp_path, name)
    assert has_structure(str(tmp_path)) and has_structure(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.architectures == [type(network).__name__]

    class Auto:
        @staticmethod
        def from_config(config: Any, dtype: Any) -> Any:
            torch.manual_seed(9)
            return type(network)(config)

    loaded, gaps = load_structure(Auto, config, tmp_path)
    assert not gaps.missing and not gaps.other
    state = network.state_dict()
    assert all(torch.equal(t, state[n]) for n, t in loaded.state_dict().items())
    assert set(low_rank_layers(loaded)) == set(low_rank_layers(network))
    with torch.no_grad():
        assert torch.equal(logits(loaded.eval()), logits(network.eval()))


def test_of_tied_weights_one_is_stored(tmp_path: Path) -> None:
    network = written(tmp_path, "gpt2")
    stored = load_file(tmp_path / WEIGHTS)
    assert len(stored) == len(network.state_dict()) - 1
    assert not {"transformer.wte.weight", "lm_head.weight"} <= set(stored)


def test_plain_transformers_loads_no_part_of_it(tmp_path: Path) -> None:
    written(tmp_path)
    with pytest.raises(OSError, match="no file named"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path)


def test_another_head_finds_the_encoder_and_says_what_is_missing(tmp_path: Path) -> None:
    network = written(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    masked, gaps = load_structure(AutoModelForMaskedLM, config, tmp_path)
    assert gaps.missing and all(name.startswith("cls.") for name in gaps.missing)
    body = {n: t for n, t in network.state_dict().items() if n.startswith("bert.encoder.")}
    assert all(torch.equal(masked.state_dict()[n], t) for n, t in body.items())
    config.num_labels = 5
    tagger, gaps = load_structure(AutoModelForTokenClassification, config, tmp_path, any_head=True)
    assert gaps.other == {"classifier.weight", "classifier.bias"}
    with pytest.raises(ValueError, match=r"not of the structure.*classifier"):
        load_structure(AutoModelForTokenClassification, config, tmp_path)
    assert len(low_rank_layers(tagger)) == 4


def test_a_pooler_that_the_folder_lacks_is_missing_and_no_fault(tmp_path: Path) -> None:
    network = build("masked")
    LowRank({"query": 2})(network)
    write_structure(network, tmp_path, [to_spec(LowRank({"query": 2}))])
    config = AutoConfig.from_pretrained(tmp_path)
    _, gaps = load_structure(AutoModelForSequenceClassification, config, tmp_path)
    missing = {name.rpartition(".")[0] for name in gaps.missing}
    assert missing == {"bert.pooler.dense", "classifier"}


def test_a_damaged_folder_is_refused(tmp_path: Path) -> None:
    written(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    said = json.loads((tmp_path / STRUCTURE).read_text())

    def load() -> Any:
        return load_structure(AutoModelForSequenceClassification, config, tmp_path)

    # Other ranks, fewer layers, more layers than the weights are of.
    for ranks in ({"ffn_input": 4}, {"output.dense": 3}):
        other = {**said, "surgeries": [to_spec(LowRank(ranks))]}
        (tmp_path / STRUCTURE).write_text(json.dumps(other))
        with pytest.raises(ValueError, match=r"not of the structure that structure\.json"):
            load()
    for text in ("{", "[]", '{"surgeries": [{}]}', "{}"):
        (tmp_path / STRUCTURE).write_text(text)
        with pytest.raises(ValueError, match="lists no surgeries"):
            read_structure(tmp_path)
    foreign = {"class_path": "os.system", "init_args": {"command": "true"}}
    (tmp_path / STRUCTURE).write_text(json.dumps({"surgeries": [foreign]}))
    with pytest.raises(ValueError, match=r"os\.system.*not to be had"):
        load()
    (tmp_path / STRUCTURE).write_text(json.dumps(said))
    whole = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cut short or no file of weights"):
        load()
    (tmp_path / WEIGHTS).write_bytes(whole)
    state = load_file(tmp_path / WEIGHTS)
    state.pop("bert.encoder.layer.0.intermediate.dense.up")
    save_file(state, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=r"e\.g\. of bert\.encoder\.layer\.0\.intermediate\.dense"):
        load()
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(ValueError, match=r"no network\.safetensors"):
        load()


def test_what_is_no_such_folder_has_no_surgeries(tmp_path: Path) -> None:
    assert saved_surgeries("bert-base-uncased", True) == []
    assert saved_surgeries({"model_type": "bert"}, True) == []
    assert not has_structure(tmp_path)
    written(tmp_path)
    assert len(saved_surgeries(str(tmp_path), True)) == 2
    assert saved_surgeries(str(tmp_path), False) == []
