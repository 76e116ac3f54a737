"""Networks with adapters are exported merged, as ONNX, or as the adapter alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

import lmkit
from lmkit.adapters import add_adapter, list_adapters, use_adapters
from lmkit.cli import main
from lmkit.surgery.adapter import Adapter
from lmkit.surgery.adapter_fusion import AdapterFusion
from lmkit.surgery.ia3 import IA3
from lmkit.surgery.lora import VARIANTS, LoRA
from lmkit.surgery.prefix_tuning import PrefixTuning
from lmkit.surgery.prompt_tuning import PromptTuning
from lmkit.surgery.selection import Selection
from tests import tiny
from tests.adapter_modules import base, make, said, save, train
from tests.surgery.adapted import inputs
from tests.surgery.test_folding import TARGETS

peft = pytest.importorskip("peft")

PLAIN: dict[str, Any] = {
    "bert": AutoModelForSequenceClassification,
    "roberta": AutoModelForSequenceClassification,
    "modernbert": AutoModelForSequenceClassification,
    "tagging": AutoModelForTokenClassification,
    "gpt2": AutoModelForCausalLM,
    "llama": AutoModelForCausalLM,
    "t5": AutoModelForSeq2SeqLM,
}


def surgery(kind: str, name: str) -> Any:
    attention, last = TARGETS[name]
    if kind == "ia3":
        return IA3("mine", attention, last)
    if kind == "prefix":
        return PrefixTuning("mine", length=3, projection=True)
    return LoRA("mine", attention, 3, 5, 0.1, kind)


OWN = {
    "houlsby": [Adapter("mine", size=4, targets=["[01].output.dense"])],
    "compacter": [Adapter("mine", "compacter", 4, targets=["[01].output.dense"])],
    "prompt": [PromptTuning("mine", length=3, encoder="lstm")],
    "several": [LoRA("mine", ["query"]), PromptTuning("mine", length=2)],
}


@pytest.mark.parametrize("kind", ["lora", "ia3", "pissa"])
@pytest.mark.parametrize("name", TARGETS)
def test_plain_transformers_loads_what_was_merged(name: str, kind: str, tmp_path: Path) -> None:
    module = make(tmp_path, surgery(kind, name), name=name)
    ledger, keys = module.ledger, [*module.network.state_dict()]
    folder = lmkit.export(module, tmp_path / "out", merge=True)
    assert module.ledger == ledger and [*module.network.state_dict()] == keys
    expected = said(module.network)
    network, loading = PLAIN[name].from_pretrained(folder, output_loading_info=True)
    assert not any(loading[word] for word in ("missing_keys", "unexpected_keys"))
    assert (said(network) - expected).abs().max() < 1e-5
    module.tokenizer = tiny.tokenizer()
    lmkit.export(module, tmp_path / "out", merge=True, overwrite=True)
    loaded = lmkit.load(tmp_path / "out")
    assert type(loaded) is type(module) and loaded.ledger == []
    assert (said(loaded.network) - expected).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind in ("lora", "ia3") for name in TARGETS]
    + [(variant, name) for variant in VARIANTS if variant != "lora" for name in ("bert", "gpt2")]
    + [("prefix", name) for name in ("bert", "roberta", "gpt2", "llama")],
)
def test_plain_peft_loads_an_adapter_and_computes_the_same(
    kind: str, name: str, tmp_path: Path
) -> None:
    module = make(tmp_path, surgery(kind, name), name=name)
    folder = lmkit.export(module, tmp_path / "out", adapter=True)
    torch.manual_seed(9)  # a head of another start
    network = PLAIN[name].from_pretrained(base(tmp_path, name))
    theirs = peft.PeftModel.from_pretrained(network, folder).eval()
    expected = said(module.network)
    with torch.no_grad():
        found = theirs(**inputs(module.network))[0]
    assert (found - expected).abs().max() < 1e-5
    assert theirs.peft_config["default"].base_model_name_or_path == str(base(tmp_path, name))
    other = make(tmp_path, name=name)
    add_adapter(other, folder, "again", head=name not in ("gpt2", "llama", "t5"))
    assert (said(other.network) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("kind", OWN)
def test_what_peft_has_not_is_read_back_by_lmkit(kind: str, tmp_path: Path) -> None:
    module = make(tmp_path, *OWN[kind])
    folder = lmkit.export(module, tmp_path / "out", adapter="mine")
    assert not (folder / "adapter_config.json").exists()
    other = make(tmp_path)
    add_adapter(other, folder, "again", head=True)
    assert (said(other.network) - said(module.network)).abs().max() < 1e-6
    again = lmkit.export(other, tmp_path / "again", adapter=True)
    third = make(tmp_path)
    add_adapter(third, again, "third", head=True)
    assert (said(third.network) - said(module.network)).abs().max() < 1e-6


def test_an_adapter_is_chosen_by_its_name_or_as_the_active_one(tmp_path: Path) -> None:
    specs = [LoRA(word, ["query"], rank) for word, rank in (("a", 2), ("b", 4))]
    module = make(tmp_path, *specs, PrefixTuning("c", length=2))
    with pytest.raises(ValueError, match="adapters a, b, c: name the one"):
        lmkit.export(module, tmp_path / "out", adapter=True)
    with pytest.raises(ValueError, match="no adapter 'd'; there are a, b, c"):
        lmkit.export(module, tmp_path / "out", adapter="d")
    assert not (tmp_path / "out").exists()
    use_adapters(module, {"b": 0.5})
    for adapter, rank in ((True, 4), ("a", 2)):
        folder = lmkit.export(module, tmp_path / "out", adapter=adapter, overwrite=True)
        assert peft.PeftConfig.from_pretrained(str(folder)).r == rank
    prefix = lmkit.export(module, tmp_path / "prefix", adapter="c")
    assert peft.PeftConfig.from_pretrained(str(prefix)).num_virtual_tokens == 2


def test_adapters_are_not_exported_unasked(tmp_path: Path) -> None:
    module = make(tmp_path, LoRA("a", ["query"]), Adapter("b", targets=["output.dense"]))
    with pytest.raises(ValueError, match=r"adapters b, a .*merge=True \(--merge\).*--adapter"):
        lmkit.export(module, tmp_path / "out")
    with pytest.raises(ValueError, match=r"'b' is a bottleneck adapter.*use only a"):
        lmkit.export(module, tmp_path / "out", merge=True)
    for wrong in ({"merge": True}, {"format": "onnx"}):
        with pytest.raises(ValueError, match="adapter writes one adapter alone"):
            lmkit.export(module, tmp_path / "out", adapter=True, **wrong)
    with pytest.raises(ValueError, match="no adapters to merge"):
        lmkit.export(make(tmp_path), tmp_path / "out", merge=True)
    with pytest.raises(ValueError, match="there is no adapter"):
        lmkit.export(make(tmp_path), tmp_path / "out", adapter=True)
    assert not (tmp_path / "out").exists()


def test_a_base_that_was_trained_as_well_does_not_fit_into_an_adapter(tmp_path: Path) -> None:
    module = make(tmp_path, LoRA("a", ["query"]), Selection(biases=True))
    with pytest.raises(ValueError, match=r"weights of the base were trained.*merge=True"):
        lmkit.export(module, tmp_path / "out", adapter=True)
    fused = make(tmp_path, Adapter("a", targets=["output.dense"]), AdapterFusion(["a"]))
    fused.network.requires_grad_(False)
    lmkit.export(fused, tmp_path / "out", adapter="a")
    with pytest.raises(ValueError, match="no adapter 'fusion'; there are a"):
        lmkit.export(fused, tmp_path / "other", adapter="fusion")


def test_a_base_that_was_trained_before_is_not_the_one_that_a_folder_names(tmp_path: Path) -> None:
    module = make(tmp_path)
    train(module)
    again = lmkit.load(save(module, tmp_path / "tuned.ckpt"))
    for tuned in (module, again):
        tuned.operate(LoRA("a", ["query"]))
        with pytest.raises(
            ValueError,
            match=r"of 39 frozen weights are not those of the base '.*bert-0' any more, such as "
            r"bert\..*merge=True",
        ):
            lmkit.export(tuned, tmp_path / "out", adapter=True)
        assert not (tmp_path / "out").exists()
    merged = lmkit.export(module, tmp_path / "merged", merge=True)
    network = AutoModelForSequenceClassification.from_pretrained(merged)
    assert (said(network) - said(module.network)).abs().max() < 1e-5
    # In half precision the base is still the base.
    halved = make(tmp_path, LoRA("a", ["query"]))
    halved.network.bfloat16()
    lmkit.export(halved, tmp_path / "half", adapter=True)


def test_the_folder_of_an_adapter_is_no_model_and_says_how_it_becomes_one(tmp_path: Path) -> None:
    for number, (spec, name) in enumerate(
        [
            (LoRA("a", ["query"]), "bert"),
            (PromptTuning("a", length=2), "bert"),
            (LoRA("a", ["c_attn"]), "gpt2"),
        ]
    ):
        trained = make(tmp_path, spec, name=name)
        folder = lmkit.export(trained, tmp_path / str(number), adapter=True)
        with pytest.raises(ValueError, match="holds an adapter and no base: ") as refused:
            lmkit.load(folder)
        known: dict[str, Any] = {"lmkit": lmkit}
        exec(str(refused.value).partition("no base: ")[2], known)
        assert (said(known["module"].network) - said(trained.network)).abs().max() < 1e-6


def test_the_folder_of_plain_peft_says_what_it_knows(tmp_path: Path) -> None:
    config = peft.LoraConfig(base_model_name_or_path="some/base", modules_to_save=["classifier"])
    config.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"modules\.<Task>Module\('some/base'\).*'a name', head=True"
    ):
        lmkit.load(tmp_path)


def test_the_command_merges_and_writes_adapters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = make(tmp_path, LoRA("a", ["query"]), LoRA("b", ["value"]))
    use_adapters(module, {"a": 1, "b": 0.5})
    path = save(module, tmp_path / "run.ckpt")
    command = ["export", "--ckpt", str(path), "--output"]
    assert main([*command, "plain"]) == 1
    assert "(--merge)" in capsys.readouterr().err
    assert main([*command, "both", "--merge", "--adapter"]) == 2
    assert main([*command, "merged", "--merge"]) == 0
    network = AutoModelForSequenceClassification.from_pretrained("merged")
    assert (said(network) - said(module.network)).abs().max() < 1e-5
    assert main([*command, "one", "--adapter"]) == 1
    assert "name the one that is meant" in capsys.readouterr().err
    assert main([*command, "one", "--adapter", "b"]) == 0
    other = make(tmp_path)
    add_adapter(other, "one", "b", head=True)
    use_adapters(module, {"b": 1})
    assert list_adapters(other) == {"b": 1.0}
    assert (said(other.network) - said(module.network)).abs().max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("merge", [True, False], ids=["merged", "beside"])
@pytest.mark.parametrize(
    ("name", "specs"),
    [
        ("bert", [surgery("lora", "bert"), IA3("b", ["query"], ["output.dense"])]),
        ("bert", [surgery("dora", "bert")]),
        ("gpt2", [surgery("adalora", "gpt2")]),
        ("bert", OWN["houlsby"]),
        ("bert", OWN["prompt"]),
        ("bert", [surgery("prefix", "bert")]),
    ],
)
def test_onnx_holds_the_adapters(name: str, specs: list[Any], merge: bool, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    module = make(tmp_path, *specs, name=name)
    if merge and not isinstance(specs[0], LoRA):
        with pytest.raises(ValueError, match="can be merged"):
            lmkit.export(module, tmp_path / "out", "onnx", merge=True)
        return
    folder = lmkit.export(module, tmp_path / "out", "onnx", merge=merge)
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    feed = inputs(module.network)
    names = {put.name for put in session.get_inputs()}
    if "token_type_ids" in names:
        feed["token_type_ids"] = torch.zeros_like(feed["input_ids"])
    (found,) = session.run(None, {key: tensor.numpy() for key, tensor in feed.items()})
    real = feed["attention_mask"].bool() if name == "gpt2" else slice(None)
    gap = (torch.from_numpy(found) - said(module.network))[real].abs().max()
    assert gap < 1e-4
