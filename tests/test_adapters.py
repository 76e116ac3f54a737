"""Several adapters stand on one base: added, switched, weighed and merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

import lmkit
from lmkit.adapters import (
    add_adapter,
    fold_adapters,
    list_adapters,
    merge_adapters,
    unfold_adapters,
    use_adapters,
    write_adapter,
)
from lmkit.modules import LMModule, SequenceClassificationModule, TokenClassificationModule
from lmkit.surgery.adapter import Adapter
from lmkit.surgery.adapter_fusion import AdapterFusion
from lmkit.surgery.ia3 import IA3
from lmkit.surgery.lora import VARIANTS, LoRA
from lmkit.surgery.prefix_tuning import PrefixTuning
from lmkit.surgery.prompt_tuning import PromptTuning
from lmkit.surgery.selection import Selection
from tests.adapter_modules import base, make, said, save
from tests.surgery.test_folding import TARGETS

peft = pytest.importorskip("peft")

LORA = LoRA("mine", ["query", "value"], rank=3, alpha=5, dropout=0.1)
KINDS: dict[str, Any] = {
    **{v: LoRA("mine", ["query", "value"], 3, 5, 0.1, v) for v in VARIANTS},
    "ia3": IA3("mine", ["query"], ["output.dense"]),
    "houlsby": Adapter("mine", size=4, targets=["output.dense"]),
    "compacter": Adapter("mine", "compacter", 4, targets=["[01].output.dense"]),
    "prompt": PromptTuning("mine", length=3, encoder="mlp"),
    "prefix": PrefixTuning("mine", length=3, projection=True),
}


@pytest.mark.parametrize("small", [False, True], ids=["whole", "small"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_computes_the_same_on_the_base_of_another_module(
    kind: str, small: bool, tmp_path: Path
) -> None:
    trained = make(tmp_path, KINDS[kind])
    path = save(trained, tmp_path / "a.ckpt", small)
    module = make(tmp_path)
    own = {n: p.clone() for n, p in module.network.named_parameters() if "classifier" not in n}
    add_adapter(module, path, "here", head=True)
    assert list_adapters(module) == {"here": 1.0} and not module.network.training
    assert (said(module.network) - said(trained.network)).abs().max() < 1e-6
    use_adapters(module, {})
    plain = said(module.network)
    state = module.network.state_dict()
    assert all(torch.equal(state[n], p) for n, p in own.items() if n in state)
    if kind in ("pissa", "olora", "prompt", "prefix", "lora"):
        use_adapters(trained, {})
        assert (plain - said(trained.network)).abs().max() < 1e-5


@pytest.mark.parametrize("name", TARGETS)
def test_adapters_of_all_architectures_are_added(name: str, tmp_path: Path) -> None:
    for word, seed in (("a", "lora"), ("b", "dora")):
        trained = make(tmp_path, LoRA("x", TARGETS[name][0], 2, variant=seed), name=name)
        save(trained, tmp_path / f"{word}.ckpt", trainable_only=word == "a")
        expected = said(trained.network)
        module = make(tmp_path, name=name)
        add_adapter(module, tmp_path / f"{word}.ckpt", word, head=name not in "gpt2 llama t5")
        assert (said(module.network) - expected).abs().max() < 1e-5


def two(folder: Path, name: str = "bert") -> LMModule:
    """Make a module with two adapters of two checkpoints."""
    for word, rank in (("a", 2), ("b", 4)):
        spec = LoRA("default", TARGETS[name][0], rank)
        save(make(folder, spec, name=name), folder / f"{word}.ckpt")
    module = make(folder, name=name)
    for word in "ab":
        add_adapter(module, folder / f"{word}.ckpt", word)
    return module


def test_adding_changes_nothing_while_another_is_active(tmp_path: Path) -> None:
    module = two(tmp_path)
    assert list_adapters(module) == {"a": 1.0, "b": 0.0}
    only = make(tmp_path)
    add_adapter(only, tmp_path / "a.ckpt", "a")
    assert torch.equal(said(only.network), said(module.network))


def test_plain_peft_weighs_two_adapters_to_the_same(tmp_path: Path) -> None:
    module = two(tmp_path, "gpt2")
    use_adapters(module, {"a": 0.7, "b": 0.3})
    for word in "ab":
        write_adapter(module, tmp_path / word, word)
    theirs = peft.PeftModel.from_pretrained(plain(tmp_path, "gpt2"), tmp_path / "a", "a")
    theirs.load_adapter(tmp_path / "b", "b")
    theirs.add_weighted_adapter(["a", "b"], [0.7, 0.3], "both", combination_type="cat")
    theirs.set_adapter("both")
    assert (said(theirs) - said(module.network)).abs().max() < 1e-5


@pytest.mark.parametrize("weights", [{}, {"b": 1.0}, {"a": 0.7, "b": 0.3}])
def test_a_checkpoint_knows_what_was_active(weights: dict[str, float], tmp_path: Path) -> None:
    module = two(tmp_path)
    use_adapters(module, weights)
    loaded = lmkit.load(save(module, tmp_path / "both.ckpt"))
    assert list_adapters(loaded) == {"a": 0.0, "b": 0.0} | weights
    assert torch.equal(said(loaded.network), said(module.network))


@pytest.mark.parametrize("form", ["whole", "small", "folder"])
def test_an_adapter_of_another_base_is_refused_and_nothing_changes(
    form: str, tmp_path: Path
) -> None:
    trained = make(tmp_path, LORA, seed=4)
    source = tmp_path / form
    if form == "folder":
        write_adapter(trained, source)
    else:
        save(trained, source, form == "small")
    module = make(tmp_path)
    with pytest.raises(ValueError, match=r"trained on (another|the) base .*bert-4"):
        add_adapter(module, source, "x")
    assert module.ledger == [] and list_adapters(module) == {}


def test_a_base_that_was_trained_on_is_another_base(tmp_path: Path) -> None:
    path = save(make(tmp_path, LORA), tmp_path / "a.ckpt")
    module = make(tmp_path)
    torch.nn.init.normal_(module.network.bert.encoder.layer[1].output.dense.weight)
    with pytest.raises(ValueError, match=r"1 weights differ, such as bert\.encoder\.layer\.1"):
        add_adapter(module, path, "x")
    path = save(make(tmp_path, LORA, Selection(norms=True)), tmp_path / "b.ckpt")
    with pytest.raises(ValueError, match=r"weights differ, such as bert\.embeddings\.LayerNorm"):
        add_adapter(make(tmp_path), path, "x")


def test_an_adapter_of_another_task_comes_without_its_head(tmp_path: Path) -> None:
    path = save(make(tmp_path, LORA), tmp_path / "a.ckpt")
    tagger = TokenClassificationModule(model=str(base(tmp_path)))
    add_adapter(tagger, path, "x")
    assert list_adapters(tagger) == {"x": 1.0}
    use_adapters(tagger, {})
    tagger.network.classifier = torch.nn.Linear(16, 5)
    with pytest.raises(ValueError, match="is for other classes"):
        add_adapter(tagger, path, "y", head=True)


def test_a_head_brings_its_classes(tmp_path: Path) -> None:
    trained = make(tmp_path, LORA)
    trained.network.config.id2label = {0: "bad", 1: "good"}
    path = save(trained, tmp_path / "a.ckpt")
    for head, names in ((False, ["LABEL_0", "LABEL_1"]), (True, ["bad", "good"])):
        module = make(tmp_path)
        before = module.network.classifier.weight.clone()
        add_adapter(module, path, "x", head=head)
        assert [*module.network.config.id2label.values()] == names
        assert torch.equal(module.network.classifier.weight, before) != head
    causal = save(make(tmp_path, LoRA("x", ["c_attn"]), name="gpt2"), tmp_path / "c.ckpt")
    with pytest.raises(ValueError, match="no head for a GPT2LMHeadModel"):
        add_adapter(make(tmp_path, name="gpt2"), causal, "x", head=True)


def test_one_of_several_is_named(tmp_path: Path) -> None:
    module = two(tmp_path)
    use_adapters(module, {"a": 1, "b": 1})
    path = save(module, tmp_path / "both.ckpt")
    other = make(tmp_path)
    with pytest.raises(ValueError, match=r"both\.ckpt: there are the adapters a, b: name the one"):
        add_adapter(other, path, "x")
    with pytest.raises(ValueError, match="no adapter 'c'; there are a, b"):
        add_adapter(other, path, "x", adapter="c")
    add_adapter(other, path, "x", adapter="b")
    with pytest.raises(ValueError, match="an adapter 'x' already"):
        add_adapter(other, path, "x", adapter="a")
    use_adapters(module, {"b": 0.5})
    path = save(module, tmp_path / "one.ckpt")
    add_adapter(other, path, "y")
    use_adapters(other, {"x": 1})
    before = said(other.network)
    use_adapters(other, {"y": 1})
    assert torch.equal(said(other.network), before)


def test_what_is_no_adapter_is_refused(tmp_path: Path) -> None:
    path = save(make(tmp_path), tmp_path / "plain.ckpt")
    module = make(tmp_path)
    with pytest.raises(ValueError, match=r"plain\.ckpt: there is no adapter"):
        add_adapter(module, path, "x")
    with pytest.raises(ValueError, match=r"holds no adapter: no adapter_config\.json"):
        add_adapter(module, base(tmp_path), "x")
    with pytest.raises(ValueError, match="a word without a dot"):
        add_adapter(module, path, "x.y")


def test_an_adapter_of_another_architecture_is_refused(tmp_path: Path) -> None:
    path = save(make(tmp_path, LORA), tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"for a layer bert\.encoder.*has none"):
        add_adapter(make(tmp_path, name="roberta"), path, "x")
    config = peft.LoraConfig(target_modules={"query"})
    for width, other in ((32, "inputs"), (16, "outputs")):
        key = "base_model.model.bert.encoder.layer.0.attention.self.query.lora_"
        tensors = {f"{key}A.weight": torch.zeros(8, width), f"{key}B.weight": torch.zeros(32, 8)}
        config.save_pretrained(tmp_path / "wide")
        save_file(tensors, tmp_path / "wide" / "adapter_model.safetensors")
        module = make(tmp_path)
        with pytest.raises(ValueError, match=rf"of 32 {other}.*16 inputs and 16 outputs"):
            add_adapter(module, tmp_path / "wide", "x")
        assert module.ledger == []


def test_a_merged_module_is_one_of_the_plain_architecture(tmp_path: Path) -> None:
    module = two(tmp_path)
    use_adapters(module, {"a": 0.7, "b": 0.3})
    before = said(module.network)
    merge_adapters(module)
    assert (said(module.network) - before).abs().max() < 1e-5
    assert module.ledger == [] and list_adapters(module) == {}
    assert all(p.requires_grad for p in module.parameters())
    for small in (False, True):
        loaded = lmkit.load(save(module, tmp_path / "merged.ckpt", small))
        assert torch.equal(said(loaded.network), said(module.network))
    # It is another base by now, and a further adapter may have a name of before.
    with pytest.raises(ValueError, match="trained on another base"):
        add_adapter(module, tmp_path / "a.ckpt", "a")
    module.operate(LoRA("a", ["query"]))
    assert list_adapters(module) == {"a": 1.0}


def test_a_folded_module_writes_no_checkpoint_and_takes_no_adapter(tmp_path: Path) -> None:
    module = two(tmp_path)
    before = said(module.network)
    fold_adapters(module)
    assert (said(module.network) - before).abs().max() < 1e-5
    for attempt in (
        lambda: save(module, tmp_path / "x.ckpt"),
        lambda: add_adapter(module, tmp_path / "a.ckpt", "c"),
        lambda: use_adapters(module, {}),
        lambda: write_adapter(module, tmp_path / "x", "a"),
    ):
        with pytest.raises(ValueError, match="unfold"):
            attempt()
    unfold_adapters(module)
    assert torch.equal(said(lmkit.load(save(module, tmp_path / "x.ckpt")).network), before)


def test_dora_is_not_put_where_a_part_of_the_base_is_missing(tmp_path: Path) -> None:
    save(make(tmp_path, KINDS["dora"]), tmp_path / "dora.ckpt")
    module = make(tmp_path, LoRA("first", ["query", "value"], 3, variant="pissa"))
    with pytest.raises(ValueError, match="has taken a part out of the base"):
        add_adapter(module, tmp_path / "dora.ckpt", "x")
    save(make(tmp_path, KINDS["pissa"]), tmp_path / "pissa.ckpt")
    add_adapter(module, tmp_path / "pissa.ckpt", "second")
    use_adapters(module, {"second": 1})
    alone = make(tmp_path)
    add_adapter(alone, tmp_path / "pissa.ckpt", "second")
    alone.network.classifier.load_state_dict(module.network.classifier.state_dict())
    assert (said(module.network) - said(alone.network)).abs().max() < 1e-5


def plain(folder: Path, name: str) -> PreTrainedModel:
    torch.manual_seed(8)
    cls = AutoModelForCausalLM if name == "gpt2" else AutoModelForSequenceClassification
    return cls.from_pretrained(base(folder, name))


CONFIGS: dict[str, Any] = {
    "lora": peft.LoraConfig(r=3, lora_alpha=7),
    "rslora": peft.LoraConfig(r=3, use_rslora=True, lora_dropout=0.1),
    "dora": peft.LoraConfig(r=3, use_dora=True),
    "adalora": peft.AdaLoraConfig(init_r=3, target_r=2, total_step=10),
    "ia3": peft.IA3Config(),
    "prefix": peft.PrefixTuningConfig(num_virtual_tokens=3),
}


@pytest.mark.parametrize("name", ["bert", "gpt2"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_folder_of_plain_peft_is_taken_over(kind: str, name: str, tmp_path: Path) -> None:
    config = CONFIGS[kind]
    config = type(config)(**{k: v for k, v in config.to_dict().items() if k != "peft_version"})
    config.task_type = "CAUSAL_LM" if name == "gpt2" else "SEQ_CLS"
    if kind == "ia3":
        config.target_modules, config.feedforward_modules = {
            "bert": ({"key", "value", "output.dense"}, {"output.dense"}),
            "gpt2": ({"c_attn", "mlp.c_proj"}, {"mlp.c_proj"}),
        }[name]
    elif kind != "prefix":
        config.target_modules = set(TARGETS[name][0])
    theirs = peft.get_peft_model(plain(tmp_path, name), config)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn(parameter.shape)
    theirs.save_pretrained(tmp_path / "peft")
    module = make(tmp_path, name=name)
    add_adapter(module, tmp_path / "peft", "x", head=name == "bert")
    theirs.eval()
    expected = said(theirs if kind == "prefix" else theirs.base_model.model)
    assert (said(module.network) - expected).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (peft.LoraConfig(init_lora_weights="pissa"), "its start 'pissa' changes the base"),
        (peft.LoraConfig(rank_pattern={"query": 2}), "several ranks"),
        (peft.LoraConfig(bias="all"), "it has biases"),
        (peft.LoHaConfig(), "of the kind LOHA"),
    ],
)
def test_what_lmkit_does_not_compute_is_not_taken_over(
    config: Any, reason: str, tmp_path: Path
) -> None:
    config.target_modules = {"query", "value"}
    peft.get_peft_model(plain(tmp_path, "bert"), config).save_pretrained(tmp_path / "peft")
    with pytest.raises(ValueError, match=reason):
        add_adapter(make(tmp_path), tmp_path / "peft", "x")


def test_a_mixture_is_no_adapter_of_a_checkpoint(tmp_path: Path) -> None:
    adapters = [Adapter(word, size=2, targets=["[01].output.dense"]) for word in "ab"]
    module = make(tmp_path, *adapters, AdapterFusion(["a", "b"]))
    path = save(module, tmp_path / "fused.ckpt")
    other = make(tmp_path)
    with pytest.raises(ValueError, match="there are the adapters a, b"):
        add_adapter(other, path, "x")
    assert isinstance(other, SequenceClassificationModule)
    assert list_adapters(lmkit.load(path)) == {"a": 0.0, "b": 0.0, "fusion": 1.0}
