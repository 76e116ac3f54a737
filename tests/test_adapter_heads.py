"""The head of an adapter takes the place of a random one, whatever the number of its classes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel

import lmkit
from lmkit.adapters import add_adapter, list_adapters, use_adapters, write_adapter
from lmkit.modules import LMModule
from lmkit.surgery.adapter import Adapter
from lmkit.surgery.ia3 import IA3
from lmkit.surgery.lora import LoRA
from tests import tiny
from tests.adapter_modules import MODULES, base, make, said, save, train
from tests.surgery.adapted import build

pytest.importorskip("peft")

LORA = LoRA("mine", ["query", "value"], rank=2)
NAMES = ["earth", "water", "fire", "air", "ether"]


def of_classes(
    folder: Path, names: list[str], *surgeries: Any, name: str = "bert", **settings: Any
) -> LMModule:
    """Make a module whose data have these classes, and give what learns other values."""
    numbered = dict(enumerate(names))
    decided = {"id2label": numbered, "label2id": {n: i for i, n in numbered.items()}, **settings}
    module: Any = MODULES[name](model=str(base(folder, name)))
    data = SimpleNamespace(tokenizer=None, network_settings=lambda: decided)
    module._trainer = SimpleNamespace(datamodule=data)
    module.configure_model()
    module._trainer = None
    for surgery in surgeries:
        module.operate(surgery)
    train(module)
    return module.eval()


@pytest.mark.parametrize("name", ["bert", "roberta", "modernbert", "tagging"])
@pytest.mark.parametrize("form", ["whole", "small", "folder"])
def test_a_random_head_of_two_classes_becomes_a_trained_one_of_five(
    form: str, name: str, tmp_path: Path
) -> None:
    targets = ["Wqkv"] if name == "modernbert" else ["query", "value"]
    names = ["O", "B-a", "I-a", "B-b", "I-b"] if name == "tagging" else NAMES
    trained = of_classes(tmp_path, names, LoRA("mine", targets, rank=2), name=name)
    source = tmp_path / form
    if form == "folder":
        write_adapter(trained, source)
    else:
        save(trained, source, form == "small")
    module = make(tmp_path, name=name)
    assert module.network.config.num_labels == 2
    add_adapter(module, source, "here", head=True)
    expected = said(trained.network)
    assert (said(module.network) - expected).abs().max() < 1e-6
    assert list(module.network.config.id2label.values()) == names
    assert module.network.num_labels == 5
    assert [*module.metrics["val_metrics"]] == [*trained.metrics["val_metrics"]]
    for small in (False, True):
        again = lmkit.load(save(module, tmp_path / "again.ckpt", small))
        assert (said(again.network) - expected).abs().max() < 1e-6
        assert list(again.network.config.id2label.values()) == names


def test_metrics_and_kind_of_task_are_those_of_the_head(tmp_path: Path) -> None:
    for names in (NAMES[:2], NAMES):
        kind = "multi_label_classification"
        path = tmp_path / f"{len(names)}.ckpt"
        trained = of_classes(tmp_path, names, LORA, problem_type=kind)
        save(trained, path)
        write_adapter(trained, tmp_path / path.stem)
        for source in (path, tmp_path / path.stem):
            module: Any = make(tmp_path)
            add_adapter(module, source, "x", head=True)
            assert module.task == "multi_label" and "f1" in module.metrics["val_metrics"]
            logits, there = torch.zeros(3, len(names)), torch.ones(3, len(names))
            module.metrics["val_metrics"]["f1"].update(logits, there)


@pytest.mark.parametrize("form", ["checkpoint", "folder", "base", "none"])
def test_a_module_without_a_tokenizer_takes_one_along(form: str, tmp_path: Path) -> None:
    plain: Any = make(tmp_path).network
    plain.resize_token_embeddings(len(tiny.tokenizer()))
    plain.base_model.save_pretrained(base(tmp_path))
    trained = of_classes(tmp_path, NAMES, LORA)
    source = tmp_path / "source"
    if form == "checkpoint":
        trained.tokenizer = tiny.tokenizer()
        save(trained, source)
    elif form == "folder":
        trained.tokenizer = tiny.tokenizer()
        lmkit.export(trained, source, adapter=True)
    else:
        with pytest.warns(
            UserWarning, match=r"the module has no tokenizer, and .*source gets none"
        ):
            lmkit.export(trained, source, adapter=True)
        if form == "base":
            tiny.tokenizer().save_pretrained(base(tmp_path))
    module = make(tmp_path)
    assert module.tokenizer is None
    add_adapter(module, source, "x", head=True)
    if form == "none":
        assert module.tokenizer is None
    else:
        assert module("the quick fox")["label"] in NAMES
    own = module.tokenizer
    add_adapter(module, source, "y")
    assert module.tokenizer is own


def test_the_example_of_the_card_works_to_the_letter(tmp_path: Path) -> None:
    card = Path(__file__).parents[1] / "docs" / "adapters.md"
    example = card.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    network = BertModel(BertConfig(**{**tiny.MASKED["bert"], "vocab_size": len(tiny.tokenizer())}))
    network.save_pretrained("bert-base-uncased")
    for task in ("topics", "tone"):
        trained = MODULES["bert"](model="bert-base-uncased")
        trained.tokenizer = tiny.tokenizer()
        trained.operate(LoRA(targets=["query", "value"]))
        train(trained)
        path = Path("runs", task, "checkpoints", "last.ckpt")
        path.parent.mkdir(parents=True)
        save(trained, path, trainable_only=True)
    lmkit.export("runs/tone/checkpoints/last.ckpt", "tone", adapter=True)
    known: dict[str, Any] = {}
    exec(example, known)
    assert known["list_adapters"](known["module"]) == {"topics": 0.7, "tone": 0.3}
    assert "label" in known["module"]("the quick fox")
    merged = lmkit.load("exported").network
    assert (said(merged) - said(known["module"].network)).abs().max() < 1e-5


def test_plain_peft_names_no_classes(tmp_path: Path) -> None:
    write_adapter(of_classes(tmp_path, NAMES, LORA), tmp_path / "peft")
    (tmp_path / "peft" / "lmkit.json").unlink()
    module = make(tmp_path)
    add_adapter(module, tmp_path / "peft", "x", head=True)
    assert list(module.network.config.id2label.values()) == [f"LABEL_{i}" for i in range(5)]


def test_a_second_adapter_may_bring_the_head(tmp_path: Path) -> None:
    save(of_classes(tmp_path, NAMES[:3], LORA), tmp_path / "three.ckpt")
    five = of_classes(tmp_path, NAMES, Adapter("mine", size=4, targets=["output.dense"]))
    save(five, tmp_path / "five.ckpt")
    module = make(tmp_path)
    add_adapter(module, tmp_path / "three.ckpt", "a")
    add_adapter(module, tmp_path / "five.ckpt", "b", head=True)
    use_adapters(module, {"b": 1})
    assert (said(module.network) - said(five.network)).abs().max() < 1e-6
    # Now there is a head that somebody trained.
    with pytest.raises(ValueError, match="it was trained or came with an adapter"):
        add_adapter(module, tmp_path / "three.ckpt", "c", head=True)
    assert list_adapters(module) == {"a": 0.0, "b": 1.0}


def with_trained_head(folder: Path) -> LMModule:
    module = make(folder)
    with torch.no_grad():
        module.network.classifier.weight.add_(0.1)
    return module


def with_head_of_the_base(folder: Path) -> LMModule:
    build("bert").save_pretrained(folder / "with-head")
    return MODULES["bert"](model=str(folder / "with-head"))


def from_a_checkpoint(folder: Path) -> LMModule:
    return lmkit.load(save(make(folder, LORA), folder / "other.ckpt", trainable_only=True))


def with_an_adapted_head(folder: Path) -> LMModule:
    module = make(folder)
    module.operate(IA3("y", ["classifier"]))
    return module


@pytest.mark.parametrize(
    ("make_module", "reason"),
    [
        (with_trained_head, "since it was trained.*build the module anew"),
        (with_head_of_the_base, "since it came with the base; take a base without a head"),
        (from_a_checkpoint, "since it was trained"),
        (with_an_adapted_head, "since an adapter stands in it"),
    ],
)
def test_a_head_that_somebody_needs_stays(make_module: Any, reason: str, tmp_path: Path) -> None:
    save(of_classes(tmp_path, NAMES, LORA), tmp_path / "five.ckpt")
    module = make_module(tmp_path)
    module.configure_model()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    ledger = module.ledger
    with pytest.raises(
        ValueError, match=rf"for other classes \(earth, water.*{reason}.*head=False"
    ):
        add_adapter(module, tmp_path / "five.ckpt", "x", head=True)
    after = module.state_dict()
    assert module.ledger == ledger and after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    add_adapter(module, tmp_path / "five.ckpt", "x")


def test_a_head_for_choices_is_none_for_classes(tmp_path: Path) -> None:
    path = save(of_classes(tmp_path, NAMES, LORA), tmp_path / "five.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    # A head of one output beside two names, as a network for multiple choice has.
    for key, shape in (("weight", (1, 16)), ("bias", (1,))):
        checkpoint["state_dict"][f"network.classifier.{key}"] = torch.zeros(shape)
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match="the two are not of one kind"):
        add_adapter(make(tmp_path), path, "x", head=True)
