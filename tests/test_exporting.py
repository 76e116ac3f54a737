"""`lmkit.export` writes what works without lmkit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from transformers import pipeline

import lmkit
from lmkit import adapters
from lmkit.modules import CausalLMModule, LMModule, MaskedLMModule
from tests import tiny
from tests.cases import CASES, make_trainer

# The exporter takes ten seconds for each: one of either kind is enough for every run.
ARCHITECTURES = [
    pytest.param(cls, name, id=name, marks=() if name in ("bert", "gpt2") else pytest.mark.slow)
    for cls, names in ((MaskedLMModule, tiny.MASKED), (CausalLMModule, tiny.CAUSAL))
    for name in names
]


def make(cls: type[LMModule] = MaskedLMModule, name: str = "bert") -> LMModule:
    torch.manual_seed(0)
    module = cls(model=dict((tiny.MASKED | tiny.CAUSAL)[name]))
    module.tokenizer = tiny.tokenizer("wordpiece" if cls is MaskedLMModule else "bpe")
    module.configure_model()
    return module


def test_plain_pipelines_load_the_folder(tmp_path: Path) -> None:
    masked = pipeline("fill-mask", model=str(lmkit.export(make(), tmp_path / "masked")))
    assert len(masked("the quick [MASK] fox")) == 5
    causal = lmkit.export(make(CausalLMModule, "gpt2"), tmp_path / "causal")
    (row,) = pipeline("text-generation", model=str(causal))("the quick", max_new_tokens=3)
    assert row["generated_text"].startswith("the quick")


@pytest.mark.parametrize(("cls", "name"), ARCHITECTURES)
def test_onnx_logits_equal_those_of_torch_for_any_size(
    cls: type[LMModule], name: str, tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    module = make(cls, name)
    folder = lmkit.export(module, tmp_path / "out", format="onnx")
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    assert module.network.training, "an export leaves the mode as it was"
    module.eval()
    for rows, length in ((1, 3), (2, 17), (5, 40)):
        ids = torch.randint(5, 90, (rows, length))
        mask = torch.ones_like(ids)
        mask[0, length // 2 + 1 :] = 0
        feed = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
        logits = torch.from_numpy(session.run(["logits"], feed)[0])
        with torch.no_grad():
            expected = module.network(input_ids=ids, attention_mask=mask).logits
        assert torch.allclose(logits[mask.bool()], expected[mask.bool()], atol=1e-4)


def test_an_export_does_not_touch_what_is_there_unless_asked(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("keep")
    with pytest.raises(FileExistsError, match="there already"):
        lmkit.export(make(), tmp_path / "out")
    assert (tmp_path / "out" / "mine").read_text() == "keep"
    lmkit.export(make(), tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out" / "mine").exists()


def test_an_export_that_fails_leaves_no_half_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = make()

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(type(module.tokenizer), "save_pretrained", fail)
    with pytest.raises(OSError, match="no space"):
        lmkit.export(module, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_format_is_named() -> None:
    with pytest.raises(ValueError, match="one of hf, onnx, got 'gguf'"):
        lmkit.export(make(), "out", format="gguf")


TASKS = ("sequence_classification", "token_classification", "question_answering", "multiple_choice")


@pytest.mark.slow
@pytest.mark.parametrize("word", TASKS)
def test_the_onnx_of_a_task_has_its_inputs_and_outputs(word: str, tmp_path: Path) -> None:
    import onnxruntime

    case = next(case for case in CASES if case.name == word)
    trainer, module = make_trainer(max_steps=2), case.make_module()
    trainer.fit(module, case.make_data(tmp_path))
    # The export itself compares the logits, at another batch size and length.
    folder = lmkit.export(module, tmp_path / "onnx", format="onnx")
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    names = [put.name for put in session.get_inputs()]
    pairs = word != "token_classification"
    assert names == ["input_ids", "attention_mask", *(["token_type_ids"] if pairs else [])]
    outputs = [put.name for put in session.get_outputs()]
    assert outputs == (
        ["start_logits", "end_logits"] if word == "question_answering" else ["logits"]
    )


@pytest.mark.parametrize("word", [*TASKS, "seq2seq", "two_encoders", "masked_lm"])
def test_an_export_loads_as_the_module_that_it_was(word: str, tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == word)
    trainer, module = make_trainer(max_steps=2), case.make_module()
    trainer.fit(module, case.make_data(tmp_path))
    loaded = lmkit.load(lmkit.export(module, tmp_path / "out"))
    assert type(loaded) is type(module)
    asked: dict[str, Any] = {
        "sequence_classification": ("the quick fox",),
        "token_classification": ("the quick fox",),
        "question_answering": ("quick ?", "the quick fox"),
        "multiple_choice": ("which ?", ["fox", "dog"]),
        "seq2seq": ("the quick fox",),
        "two_encoders": ("the quick fox",),
    }
    if word in asked:
        assert loaded(*asked[word]) == module.eval()(*asked[word])


def test_a_module_of_another_kind_is_told_what_to_call(tmp_path: Path) -> None:
    own: Any = LightningModule()
    for call, remedy in (
        (lambda: lmkit.export(own, tmp_path / "out"), "save_pretrained"),
        (lambda: adapters.add_adapter(own, "a.ckpt", "a"), "load_state_dict"),
        (lambda: adapters.write_adapter(own, tmp_path / "out"), r"peft_folder\.write_peft_folder"),
        (lambda: adapters.list_adapters(own), r"composition\.active_adapters"),
        (lambda: adapters.use_adapters(own, {}), r"lmkit\.surgery\.composition\.use_adapters"),
        (lambda: adapters.merge_adapters(own), r"folding\.merge"),
        (lambda: adapters.fold_adapters(own), r"folding\.fold"),
        (lambda: adapters.unfold_adapters(own), r"folding\.unfold"),
    ):
        with pytest.raises(
            TypeError, match=rf"a module of lmkit, got a LightningModule;.*{remedy}"
        ):
            call()
