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
from lmkit.callbacks import ExportCallback
from lmkit.cli import main
from lmkit.modules import CausalLMModule, LMModule, MaskedLMModule
from lmkit.surgery.lora import LoRA
from lmkit.surgery.low_rank import LowRank, low_rank_layers
from lmkit.surgery.selection import Selection
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


def narrow(cls: type[LMModule] = MaskedLMModule, name: str = "bert") -> LMModule:
    """Make a module with low-rank layers."""
    module = make(cls, name)
    module.operate(Selection(norms=True))
    module.operate(LowRank({"all": 3}))
    return module


def said(module: LMModule) -> torch.Tensor:
    ids = torch.randint(5, 90, (2, 9), generator=torch.Generator().manual_seed(1))
    mode = module.network.training
    with torch.no_grad():
        logits: torch.Tensor = module.network.eval()(input_ids=ids).logits
    module.network.train(mode)
    return logits


@pytest.mark.parametrize(
    ("cls", "name"), [(MaskedLMModule, "bert"), (CausalLMModule, "gpt2"), (CausalLMModule, "llama")]
)
def test_what_a_config_cannot_say_is_a_folder_for_lmkit_or_merged_a_plain_one(
    cls: type[LMModule], name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    module = narrow(cls, name)
    config = module.network.config.to_dict()
    folder = lmkit.export(module, tmp_path / "narrow")
    assert "has a structure.json: lmkit.load reads it, and plain transformers" in caplog.text
    loaded = lmkit.load(folder)
    assert type(loaded) is cls and torch.equal(said(loaded), said(module))
    # What is trained was the choice of one run, and is no structure.
    assert [spec["class_path"] for spec in loaded.ledger] == ["lmkit.surgery.low_rank.LowRank"]
    assert all(p.requires_grad for p in loaded.network.parameters())
    with pytest.raises(OSError, match="no file named"):
        cls.auto_class.from_pretrained(folder)
    again = lmkit.load(lmkit.export(loaded, tmp_path / "again"))
    assert torch.equal(said(again), said(module))
    plain = cls.auto_class.from_pretrained(lmkit.export(module, tmp_path / "merged", merge=True))
    assert not (tmp_path / "merged" / "structure.json").exists()
    module.network.eval()
    ids = torch.randint(5, 90, (2, 9))
    with torch.no_grad():
        gap = plain(input_ids=ids).logits - module.network(input_ids=ids).logits
    assert gap.abs().max() < 1e-5
    assert module.network.config.to_dict() == config and low_rank_layers(module.network)


def test_a_plain_folder_is_refused_where_no_config_can_say_the_structure(tmp_path: Path) -> None:
    module = narrow()
    with pytest.raises(ValueError, match=r"cannot express.*changed by LowRank.*merge=True.*dense"):
        lmkit.export(module, tmp_path / "out", plain=True)
    assert not (tmp_path / "out").exists()
    lmkit.export(module, tmp_path / "out", merge=True, plain=True)
    lmkit.export(make(), tmp_path / "dense", plain=True)
    for other in ({"format": "onnx"}, {"adapter": True}):
        with pytest.raises(ValueError, match="plain is about folders of whole models"):
            lmkit.export(module, tmp_path / "no", plain=True, **other)  # type: ignore[arg-type]


def test_a_callback_refuses_a_plain_folder_before_the_training(tmp_path: Path) -> None:
    module, trainer = narrow(), make_trainer()
    with pytest.raises(ValueError, match="cannot express this structure"):
        ExportCallback("out", plain=True).on_fit_start(trainer, module)
    with pytest.raises(ValueError, match="about folders of whole models"):
        ExportCallback(format="onnx", plain=True)
    for settings in ({}, {"merge": True, "plain": True}):
        callback = ExportCallback("out", **settings)  # type: ignore[arg-type]
        callback.on_fit_start(trainer, module)
        callback.on_fit_end(trainer, module)
        assert Path("out/structure.json").exists() != bool(settings)


def test_the_command_refuses_merges_and_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = narrow()
    trainer = make_trainer(max_steps=1)
    trainer.fit(module, CASES[0].make_data(tmp_path, tokenizer=tiny.tokenizer_folder(Path("t"))))
    trainer.save_checkpoint("low.ckpt")
    assert main(["export", "--ckpt", "low.ckpt", "--output", "plain", "--plain"]) == 1
    assert "cannot express this structure" in capsys.readouterr().err
    assert not Path("plain").exists()
    assert main(["export", "--ckpt", "low.ckpt", "--output", "merged", "--merge", "--plain"]) == 0
    assert main(["export", "--ckpt", "low.ckpt", "--output", "narrow"]) == 0
    assert Path("narrow/structure.json").exists()
    assert (said(lmkit.load("merged")) - said(lmkit.load("narrow"))).abs().max() < 1e-5


@pytest.mark.parametrize("adapted", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_low_rank_layers_are_a_part_of_onnx(adapted: bool, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    module = narrow()
    if adapted:
        module.operate(LoRA(targets=["query"], rank=2))
    folder = lmkit.export(module, tmp_path / "out", format="onnx")
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    ids = torch.randint(5, 90, (2, 9), generator=torch.Generator().manual_seed(1))
    feed = {"input_ids": ids.numpy(), "attention_mask": torch.ones_like(ids).numpy()}
    logits = torch.from_numpy(session.run(["logits"], feed)[0])
    assert (logits - said(module)).abs().max() < 1e-4


def test_adapters_on_low_rank_layers_are_merged_with_them_and_are_no_folder_of_their_own(
    tmp_path: Path,
) -> None:
    pytest.importorskip("peft")
    module = narrow()
    module.operate(LoRA(targets=["all"], rank=2))
    with torch.no_grad():
        for name, parameter in module.network.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    before = said(module)
    with pytest.raises(ValueError, match="which plain transformers does not know: merge=True"):
        lmkit.export(module, tmp_path / "out")
    with pytest.raises(ValueError, match="was trained on low-rank layers"):
        lmkit.export(module, tmp_path / "out", adapter=True)
    plain = lmkit.load(lmkit.export(module, tmp_path / "out", merge=True, plain=True))
    assert (said(plain) - before).abs().max() < 1e-5
    adapters.merge_adapters(module)
    assert module.ledger == [{"class_path": "lmkit.surgery.selection.Selection", **rest()}]
    assert not low_rank_layers(module.network) and (said(module) - before).abs().max() < 1e-5


def rest() -> dict[str, Any]:
    settings = {"patterns": [], "layers": 0, "norms": True, "embeddings": False, "biases": False}
    return {"init_args": {**settings, "head": True}}


def test_an_adapter_goes_on_the_layers_that_it_was_trained_on(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    folder = str(lmkit.export(narrow(), tmp_path / "base"))
    module = MaskedLMModule(folder)
    module.operate(LoRA("words", targets=["query"], rank=2))
    trainer = make_trainer(max_steps=1)
    data = CASES[0].make_data(tmp_path, tokenizer=folder)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    same = MaskedLMModule(folder)
    adapters.add_adapter(same, tmp_path / "a.ckpt", "words")
    assert torch.equal(said(same), said(module))
    dense = make()
    with pytest.raises(ValueError, match="for other layers: the adapter was trained on low-rank"):
        adapters.add_adapter(dense, tmp_path / "a.ckpt", "words")
    dense.operate(LoRA("words", targets=["query"], rank=2))
    trainer = make_trainer(max_steps=1)
    trainer.fit(dense, data)
    trainer.save_checkpoint(tmp_path / "b.ckpt")
    with pytest.raises(ValueError, match="for other layers: this module has low-rank ones"):
        adapters.add_adapter(MaskedLMModule(folder), tmp_path / "b.ckpt", "words")
