"""Networks whose units were removed leave as plain folders where they can, or with a structure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

import lmkit
from lmkit.modules import CausalLMModule, LMModule, MaskedLMModule, Seq2SeqModule
from lmkit.surgery.structure_folder import STRUCTURE
from lmkit.surgery.structured_pruning import RemoveUnits, removal
from lmkit.surgery.units import find_units
from tests import tiny
from tests.surgery.pruned import same, some

LLAMA = {**tiny.CAUSAL["llama"], "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}
BERT = {**tiny.MASKED["bert"], "num_attention_heads": 4, "num_hidden_layers": 3}


def make(cls: type[LMModule], config: dict[str, Any], vocabulary: str = "wordpiece") -> LMModule:
    torch.manual_seed(0)
    module = cls(model=dict(config))
    module.tokenizer = tiny.tokenizer(vocabulary)
    module.configure_model()
    return module


def bert() -> LMModule:
    return make(MaskedLMModule, BERT)


def logits(module: Any) -> torch.Tensor:
    network = getattr(module, "network", module).eval()
    ids = torch.randint(5, 99, (2, 9), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    more = {"decoder_input_ids": ids} if network.config.is_encoder_decoder else {}
    with torch.no_grad():
        scores: torch.Tensor = network(input_ids=ids, attention_mask=mask, **more).logits
    return scores


def test_uniform_widths_layers_and_hidden_size_make_a_plain_folder(tmp_path: Path) -> None:
    module = bert()
    units = find_units(module.network)
    surgery = removal(module.network, same(units, 2, 12), layers=[0, 2], hidden=list(range(8, 16)))
    module.operate(surgery)
    folder = lmkit.export(module, tmp_path / "out", plain=True)
    config = json.loads((folder / "config.json").read_text())
    said = [config[f"num_{word}"] for word in ("hidden_layers", "attention_heads")]
    assert [*said, config["hidden_size"], config["intermediate_size"]] == [2, 2, 8, 12]
    plain = AutoModelForMaskedLM.from_pretrained(folder)
    torch.testing.assert_close(logits(plain), logits(module), rtol=0, atol=0)
    again = lmkit.load(folder)
    assert again.ledger == [] and torch.equal(logits(again), logits(module))


def test_heads_of_llama_make_a_plain_folder(tmp_path: Path) -> None:
    module = make(CausalLMModule, LLAMA, "bpe")
    module.operate(removal(module.network, same(find_units(module.network), 1, 12)))
    folder = lmkit.export(module, tmp_path / "out", plain=True)
    plain = AutoModelForCausalLM.from_pretrained(folder)
    assert (plain.config.num_attention_heads, plain.config.num_key_value_heads) == (2, 1)
    torch.testing.assert_close(logits(plain), logits(module), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("remove", "why"),
    [
        ({"bert.encoder.layer.1.output.dense": [0, 3]}, "layers have 2 or 32 neurons"),
        ({"bert.encoder.layer.1.attention.output.dense": [0]}, "layers have 1 or 4 heads"),
        ("heads", "2 heads of 4 and a hidden size of 16 do not go together.*needs 8"),
        ("hidden", "4 heads of 4 and a hidden size of 12 do not go together.*needs 16"),
    ],
)
def test_what_no_config_can_say_is_no_plain_folder(remove: Any, why: str, tmp_path: Path) -> None:
    module = bert()
    units = find_units(module.network)
    hidden = list(range(12)) if remove == "hidden" else None
    kept = same(units, 2, 32) if remove == "heads" else {} if hidden else remove
    module.operate(RemoveUnits(kept, hidden=hidden))
    with pytest.raises(ValueError, match=rf"cannot express this structure.*RemoveUnits.*{why}"):
        lmkit.export(module, tmp_path / "plain", plain=True)
    assert not (tmp_path / "plain").exists()
    folder = lmkit.export(module, tmp_path / "out")
    assert (folder / STRUCTURE).is_file()
    with pytest.raises(OSError, match="no file named"):
        AutoModelForMaskedLM.from_pretrained(folder)
    again = lmkit.load(folder)
    assert torch.equal(logits(again), logits(module)) and again.ledger == module.ledger


@pytest.mark.parametrize(
    ("cls", "config", "vocabulary"),
    [
        (MaskedLMModule, tiny.MASKED["modernbert"], "wordpiece"),
        (MaskedLMModule, tiny.MASKED["distilbert"], "wordpiece"),
        (CausalLMModule, tiny.CAUSAL["gpt2"], "bpe"),
        (CausalLMModule, LLAMA, "bpe"),
        (Seq2SeqModule, tiny.SEQ2SEQ["t5"], "bpe"),
    ],
)
def test_each_architecture_comes_back_from_its_folder(
    cls: type[LMModule], config: dict[str, Any], vocabulary: str, tmp_path: Path
) -> None:
    module = make(cls, config, vocabulary)
    # The config says fewer layers, and what is said of before stands in the structure.
    module.operate(removal(module.network, some(find_units(module.network)), layers=[0]))
    module.operate(RemoveUnits({find_units(module.network, ("heads",))[0].name: [0]}))
    folder = lmkit.export(module, tmp_path / "out")
    again = lmkit.load(folder)
    assert torch.equal(logits(again), logits(module))


def test_layers_that_went_are_in_the_structure_as_before_and_in_the_config_as_now(
    tmp_path: Path,
) -> None:
    module = bert()
    kept = {"bert.encoder.layer.2.output.dense": [3, 9]}
    module.operate(RemoveUnits(kept, layers=[0, 2]))
    folder = lmkit.export(module, tmp_path / "out")
    assert json.loads((folder / "config.json").read_text())["num_hidden_layers"] == 2
    said = json.loads((folder / STRUCTURE).read_text())
    assert said["before"]["changed"]["num_hidden_layers"] == 3
    # Drawn anew, it is a whole network of the depth that the config says.
    scratch = MaskedLMModule(str(folder), pretrained=False)
    scratch.configure_model()
    assert scratch.ledger == [] and len(scratch.network.bert.encoder.layer) == 2
    assert all(units.count in (4, 32) for units in find_units(scratch.network))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cls", "config"), [(MaskedLMModule, BERT), (CausalLMModule, LLAMA)], ids=["bert", "llama"]
)
def test_onnx_computes_a_pruned_network(
    cls: type[LMModule], config: dict[str, Any], tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    module = make(cls, config, "wordpiece" if cls is MaskedLMModule else "bpe")
    module.operate(RemoveUnits(some(find_units(module.network))))
    folder = lmkit.export(module, tmp_path / "out", format="onnx")
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    ids = torch.randint(5, 99, (3, 11))
    feed = {"input_ids": ids.numpy(), "attention_mask": torch.ones_like(ids).numpy()}
    with torch.no_grad():
        wanted = module.network.eval()(ids).logits
    assert torch.allclose(torch.from_numpy(session.run(["logits"], feed)[0]), wanted, atol=1e-4)
