"""A module is trimmed as a whole: network, tokenizer, ledger; and goes on as any other."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, BertConfig, PreTrainedTokenizerBase, pipeline

import lmkit
from lmkit import trimming
from lmkit.callbacks import LoRACallback, LowRankCallback, TrainableOnlyCheckpoint
from lmkit.modules import (
    DistillationModule,
    LMModule,
    MaskedLMModule,
    SequenceClassificationModule,
)
from lmkit.surgery.lora import LoRA
from lmkit.surgery.quantization import Quantize
from lmkit.tokenization import load_tokenizer, train_tokenizer
from lmkit.tokenization.trimming import TrimmedTokenizer
from lmkit.trimming import corpus_texts, trim, trim_vocabulary
from tests import tiny
from tests.callbacks.tuned import SaveAt, fit, save_encoder
from tests.cases import CASES, make_trainer, named

TASKS = {
    case.name: case
    for case in CASES
    if case.name
    in (
        "masked_lm",
        "causal_lm",
        "denoising",
        "sequence_classification",
        "distillation",
        "regression",
        "token_classification",
        "question_answering",
        "multiple_choice",
        "seq2seq",
        "two_encoders",
    )
}
TEXTS = ["the quick fox .", "old trees near green rivers", "the lazy dog ."]


def trained(name: str, folder: Path) -> LMModule:
    """A module after two steps."""
    case = TASKS[name]
    module = case.make_module()
    trainer = make_trainer(max_steps=2)
    trainer.fit(module, case.make_data(folder))
    return module.eval()


@torch.no_grad()
def said(module: LMModule, text: str) -> Tensor:
    ids = torch.tensor([module.tokenizer(text, truncation=True, max_length=16)["input_ids"]])
    if module.network.config.model_type == "bert" and "Choice" in type(module).__name__:
        ids = ids.unsqueeze(1)
    both = {"decoder_input_ids": ids} if module.network.config.is_encoder_decoder else {}
    output: Tensor = module.network.eval()(input_ids=ids, **both)[0]
    return output


def classifier(folder: Path) -> SequenceClassificationModule:
    """One of a base whose config names the classes, so that it can be built before the data."""
    if not folder.exists():
        save_encoder(folder)
        config = BertConfig.from_pretrained(folder, **named("fox", "moons", "trees"))
        config.save_pretrained(folder)
    torch.manual_seed(3)
    module = SequenceClassificationModule(str(folder), learning_rate=1e-2, warmup=0)
    module.tokenizer = copy.deepcopy(tiny.tokenizer())
    return module


def tokens(module: LMModule) -> dict[str, int]:
    assert module.tokenizer is not None
    return module.tokenizer.get_vocab()


@pytest.mark.parametrize("name", TASKS)
def test_every_task_says_of_the_texts_what_it_said(name: str, tmp_path: Path) -> None:
    module = trained(name, tmp_path)
    old, before = tokens(module), [said(module, text) for text in TEXTS]
    rows = module.network.get_input_embeddings().num_embeddings
    made = trim_vocabulary(module, iter(TEXTS))
    assert made.before == rows > made.after == module.network.get_input_embeddings().num_embeddings
    assert made.parameters[1] == sum(p.numel() for p in module.network.parameters())
    assert not module.network.training and module.task_module.tokenizer is module.tokenizer
    kept = sorted(old[token] for token in tokens(module))
    for text, first in zip(TEXTS, before, strict=True):
        now = said(module, text)
        assert torch.equal(first[..., kept] if first.shape[-1] == rows else first, now)
    (spec,) = module.ledger
    assert spec["class_path"] == "lmkit.surgery.vocabulary.TrimVocabulary"


@pytest.mark.parametrize(
    "name",
    ["sequence_classification", "regression", "token_classification", "question_answering"],
)
def test_an_evaluation_on_texts_of_the_corpus_gives_the_same_figures(
    name: str, tmp_path: Path
) -> None:
    module, case = trained(name, tmp_path), TASKS[name]
    data = case.make_data(tmp_path)
    trainer = make_trainer()
    (before,) = trainer.validate(module, data, verbose=False)
    # Words that are tagged are read one by one.
    corpus = _texts_of_data(data, module.tokenizer)
    made = trim_vocabulary(module, corpus)
    assert made.after < made.before
    with pytest.raises(ValueError, match="the data were tokenized with another tokenizer"):
        make_trainer().validate(module, case.make_data(tmp_path), verbose=False)
    # Without one of its own, a data module takes that of the module.
    (after,) = make_trainer().validate(
        module, case.make_data(tmp_path, tokenizer=None), verbose=False
    )
    assert after == before


def _texts_of_data(data: Any, tokenizer: PreTrainedTokenizerBase | None) -> list[str]:
    assert tokenizer is not None
    found = []
    for split in ("train", "val"):
        for ids in data.table(split).ragged("input_ids"):
            found.append(tokenizer.decode(ids, skip_special_tokens=True))
    return found


def test_a_checkpoint_of_a_fit_that_follows_loads_alone_and_can_be_trimmed_again(
    tmp_path: Path,
) -> None:
    module = trained("sequence_classification", tmp_path)
    case = TASKS["sequence_classification"]
    trim_vocabulary(module, TEXTS)
    trainer = make_trainer(max_steps=2)
    trainer.fit(module, case.make_data(tmp_path, tokenizer=None))
    trainer.save_checkpoint(tmp_path / "once.ckpt")
    loaded = lmkit.load(tmp_path / "once.ckpt")
    assert loaded.ledger == module.ledger and tokens(loaded) == tokens(module)
    assert torch.equal(said(loaded, TEXTS[0]), said(module, TEXTS[0]))
    first = trim_vocabulary(loaded, TEXTS[:2])
    trainer = make_trainer(max_steps=2)
    trainer.fit(loaded, case.make_data(tmp_path, tokenizer=None))
    trainer.save_checkpoint(tmp_path / "twice.ckpt")
    again = lmkit.load(tmp_path / "twice.ckpt")
    assert len(again.ledger) == 2 and again.network.config.vocab_size == first.after
    assert torch.equal(said(again, TEXTS[0]), said(loaded, TEXTS[0]))


def test_an_interrupted_fit_goes_on_with_what_the_checkpoint_was_trimmed_to(tmp_path: Path) -> None:
    def begin() -> SequenceClassificationModule:
        module = classifier(tmp_path / "base")
        trim_vocabulary(module, TEXTS)
        return module

    how: dict[str, Any] = {"data": {"tokenizer": None}, "max_steps": 6}
    save = SaveAt(3, tmp_path / "half.ckpt")
    whole, _ = fit(tmp_path, save, module=begin(), **how)
    on, _ = fit(tmp_path, module=begin(), ckpt_path=tmp_path / "half.ckpt", **how)
    state, theirs = whole.state_dict(), on.state_dict()
    assert state.keys() == theirs.keys() and all(torch.equal(theirs[k], state[k]) for k in state)
    assert on.ledger == whole.ledger and len(on.ledger) == 1


@pytest.mark.parametrize(
    ("name", "task"),
    [("masked_lm", "fill-mask"), ("sequence_classification", "text-classification")],
)
def test_the_export_loads_in_plain_transformers_and_trains_on(
    name: str, task: str, tmp_path: Path
) -> None:
    module = trained(name, tmp_path)
    trim_vocabulary(module, TEXTS)
    folder = lmkit.export(module, tmp_path / "out", plain=True)
    assert not (folder / "structure.json").exists()
    text = TEXTS[0].replace(TEXTS[0].split()[1], "[MASK]", 1) if task == "fill-mask" else TEXTS[0]
    (plain,) = pipeline(task, model=str(folder))(text, top_k=1)
    best = int(said(module, text)[0].argmax(-1)[_masked(module, text)]) if "mask" in task else None
    assert best is None or plain["token"] == best
    loaded = lmkit.load(folder)
    assert type(loaded) is type(module) and loaded.ledger == []
    assert torch.equal(said(loaded, TEXTS[0]), said(module, TEXTS[0]))
    # As the model of a new run, whose data take its tokenizer.
    case, settings = TASKS[name], {"max_steps": 2}
    new = case.module(str(folder), learning_rate=1e-2)
    make_trainer(**settings).fit(new, case.make_data(tmp_path, tokenizer=None))
    assert tokens(new) == tokens(module)
    # And once more trimmed.
    assert trim_vocabulary(new, TEXTS[:1]).after < len(tokens(module))


def _masked(module: LMModule, text: str) -> int:
    assert module.tokenizer is not None
    return list(module.tokenizer(text)["input_ids"]).index(module.tokenizer.mask_token_id)


@pytest.mark.slow
def test_the_export_as_onnx(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    module = trained("sequence_classification", tmp_path)
    trim_vocabulary(module, TEXTS)
    folder = lmkit.export(module, tmp_path / "onnx", format="onnx")  # compared by the export
    said_of = json.loads((folder / "config.json").read_text())
    assert said_of["vocab_size"] == len(tokens(module))


def test_low_rank_layers_and_a_trimmed_vocabulary_go_into_one_folder(tmp_path: Path) -> None:
    module, _ = fit(tmp_path, LowRankCallback(parameters=0.6, calibration_batches=2), max_steps=1)
    trim_vocabulary(module.eval(), TEXTS)
    folder = lmkit.export(module, tmp_path / "out")
    loaded = lmkit.load(folder)
    kinds = [spec["class_path"].rpartition(".")[2] for spec in loaded.ledger]
    assert kinds == ["LowRank", "TrimVocabulary"]
    # Weights of another place in memory, whose products are rounded otherwise, trimmed or not.
    assert (said(loaded, TEXTS[0]) - said(module, TEXTS[0])).abs().max() < 1e-7


def test_a_small_checkpoint_takes_its_trimmed_rows_from_the_whole_base(tmp_path: Path) -> None:
    module = classifier(tmp_path / "base")
    trim_vocabulary(module, TEXTS)
    module, trainer = fit(
        tmp_path,
        LoRACallback(rank=2),
        TrainableOnlyCheckpoint(),
        module=module,
        data={"tokenizer": None},
        max_steps=2,
    )
    trainer.save_checkpoint(tmp_path / "small.ckpt")
    state = torch.load(tmp_path / "small.ckpt", weights_only=True)["state_dict"]
    assert not any("word_embeddings" in key for key in state)
    loaded = lmkit.load(tmp_path / "small.ckpt")
    assert torch.equal(said(loaded, TEXTS[0]), said(module.eval(), TEXTS[0]))


def test_rows_that_no_token_has_go_and_those_that_the_config_names_stay() -> None:
    settings = {**tiny.MASKED["bert"], "vocab_size": 400}
    for start, behind in ((None, 0), (399, 1)):
        module = MaskedLMModule({**settings, "bos_token_id": start})
        module.tokenizer = copy.deepcopy(tiny.tokenizer())
        made = trim_vocabulary(module, TEXTS)
        assert made.before == 400 and made.after == len(module.tokenizer) + behind
        assert module.network.config.bos_token_id == (None if start is None else made.after - 1)


def test_an_id_of_the_config_that_has_no_token_among_those_that_have_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = MaskedLMModule({**tiny.MASKED["bert"], "vocab_size": 400, "bos_token_id": 300})
    module.tokenizer = copy.deepcopy(tiny.tokenizer())
    made = TrimmedTokenizer(module.tokenizer, [0, 1, 2, 3, 350])
    monkeypatch.setattr(trimming, "trim_tokenizer", lambda *_: made)
    with pytest.raises(ValueError, match="names the id 300, and the tokenizer has no token"):
        trim_vocabulary(module, TEXTS)


def test_texts_that_need_every_token_leave_all_as_it_is() -> None:
    module = MaskedLMModule(tiny.MASKED["bert"])
    module.tokenizer = tokenizer = train_tokenizer(["a b"], vocab_size=30)
    made = trim_vocabulary(module, ["a b"])
    assert made.before == made.after == len(tokenizer) and made.tokens == 2
    assert module.ledger == [] and module.tokenizer is tokenizer


def test_rare_tokens_go_and_texts_with_them_are_read_in_smaller_pieces() -> None:
    module = MaskedLMModule(tiny.MASKED["bert"])
    module.tokenizer = copy.deepcopy(tiny.tokenizer())
    made = trim_vocabulary(module, ["the fox", "the birds", "the fox"], min_count=2)
    assert {"the", "fox"} <= tokens(module).keys() and "birds" not in tokens(module)
    assert made.tokens == 6
    assert module.tokenizer.tokenize("birds")[0] == "b"


@pytest.mark.parametrize("texts", [[], ["", "  "], iter(())])
def test_a_corpus_without_texts_is_refused(texts: Any) -> None:
    module = MaskedLMModule(tiny.MASKED["bert"])
    module.tokenizer = copy.deepcopy(tiny.tokenizer())
    with pytest.raises(ValueError, match="there are no texts, and so no tokens to keep"):
        trim_vocabulary(module, texts)
    assert module.ledger == []


@pytest.mark.parametrize("texts", ["corpus.txt", Path("corpus.txt")])
def test_the_name_of_a_file_is_no_text(texts: Any) -> None:
    module = MaskedLMModule(tiny.MASKED["bert"])
    module.tokenizer = tiny.tokenizer()
    with pytest.raises(TypeError, match=r"texts must be several texts.*corpus_texts\(file\)"):
        trim_vocabulary(module, texts)


def test_what_cannot_be_trimmed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="trim_vocabulary takes a module of lmkit"):
        trim_vocabulary(torch.nn.Linear(1, 1), TEXTS)  # type: ignore[arg-type]
    bare = MaskedLMModule({**tiny.MASKED["bert"], "vocab_size": 300})
    with pytest.raises(ValueError, match="MaskedLMModule has no tokenizer"):
        trim_vocabulary(bare, TEXTS)
    bare.tokenizer = copy.deepcopy(tiny.tokenizer())
    small = MaskedLMModule({**tiny.MASKED["bert"], "vocab_size": 9})
    small.tokenizer = bare.tokenizer
    with pytest.raises(ValueError, match="has ids up to 152 and the model rows for 9 tokens"):
        trim_vocabulary(small, TEXTS)
    case = next(case for case in CASES if case.name == "replaced_token")
    both = case.make_module()
    both.tokenizer = bare.tokenizer
    with pytest.raises(ValueError, match="ReplacedTokenModule trains a second network over the"):
        trim_vocabulary(both, TEXTS)
    wrapped = MaskedLMModule(tiny.MASKED["bert"])
    wrapped.tokenizer = bare.tokenizer
    wrapped.configure_model()
    wrapped.operate(LoRA(targets=["cls.predictions.decoder"], rank=2))
    with pytest.raises(ValueError, match="adapters wrap it: merge them first"):
        trim_vocabulary(wrapped, TEXTS)
    assert wrapped.tokenizer is bare.tokenizer and len(wrapped.ledger) == 1
    rounded = MaskedLMModule(tiny.MASKED["bert"])
    rounded.tokenizer = bare.tokenizer
    rounded.operate(Quantize())
    with pytest.raises(ValueError, match="the network is quantized: trim it before"):
        trim_vocabulary(rounded, TEXTS)


def test_onnx_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    module = trained("sequence_classification", tmp_path)
    lmkit.export(module, tmp_path / "onnx", format="onnx")
    with pytest.raises(ValueError, match="cannot be trimmed: trim what it was exported from"):
        trim_vocabulary(lmkit.load(tmp_path / "onnx"), TEXTS)


def test_an_architecture_that_uses_ids_otherwise_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = MaskedLMModule(tiny.MASKED["bert"])
    module.tokenizer = copy.deepcopy(tiny.tokenizer())
    module.configure_model()
    plain = module.network.forward

    def by_ids(input_ids: Tensor, **others: Any) -> Any:
        output = plain(input_ids=input_ids, **others)
        output["logits"] = output["logits"] + input_ids.float().mean()
        return output

    monkeypatch.setattr(module.network, "forward", by_ids)
    with pytest.raises(ValueError, match="says something else of a text, though all of its tokens"):
        trim_vocabulary(module, TEXTS)


def test_a_tokenizer_that_cuts_otherwise_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    module = MaskedLMModule(tiny.MASKED["bert"])
    module.tokenizer = copy.deepcopy(tiny.tokenizer())
    real = trimming.trim_tokenizer

    def lossy(tokenizer: Any, counts: Any, *how: Any) -> Any:
        made = real(tokenizer, counts, *how)
        return made._replace(tokenizer=_Shortened(made.tokenizer))

    monkeypatch.setattr(trimming, "trim_tokenizer", lossy)
    with pytest.raises(ValueError, match="cuts a text otherwise, though all of its tokens"):
        trim_vocabulary(module, TEXTS)


class _Shortened:
    """A tokenizer that loses the last token of each text."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __call__(self, text: str, **how: Any) -> dict[str, list[int]]:
        return {"input_ids": self.inner(text, **how)["input_ids"][:-1]}


def test_a_teacher_of_the_old_vocabulary_is_refused_in_plain_words(tmp_path: Path) -> None:
    teacher = trained("sequence_classification", tmp_path)
    folder = lmkit.export(teacher, tmp_path / "teacher")
    student = lmkit.load(folder)
    trim_vocabulary(student, TEXTS)
    small = lmkit.export(student, tmp_path / "student")
    module = DistillationModule(SequenceClassificationModule(str(small)), str(folder))
    data = TASKS["sequence_classification"].make_data(tmp_path, tokenizer=None)
    with pytest.raises(ValueError, match="has another tokenizer than the student"):
        make_trainer(max_steps=1).fit(module, data)
    # A teacher that was trimmed with it reads the student's ids.
    both = DistillationModule(SequenceClassificationModule(str(small)), str(small))
    make_trainer(max_steps=1).fit(both, data)


def test_texts_of_files_are_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    (tmp_path / "b.jsonl").write_text('{"q": "three", "a": "four", "n": 1}\n')
    assert list(corpus_texts([tmp_path / "a.txt"])) == ["one", "two"]
    both = corpus_texts(tmp_path / "b.jsonl", ["q", "a"])
    assert list(both) == ["three", "four"]
    assert list(corpus_texts(tmp_path / "a.txt", document="file")) == ["one\n\ntwo"]
    with pytest.raises(ValueError, match=r"corpus: no file or folder .*c\.txt; did you mean"):
        list(corpus_texts(tmp_path / "c.txt"))
    with pytest.raises(ValueError, match=r"b\.jsonl.*'text'"):
        list(corpus_texts(tmp_path / "b.jsonl", ["text"]))


def test_an_encoder_without_a_head_is_trimmed_before_it_is_fine_tuned(tmp_path: Path) -> None:
    save_encoder(tmp_path / "base")
    folder, made = trim(tmp_path / "base", tmp_path / "small", TEXTS)
    assert folder == tmp_path / "small" and made.after < made.before
    old, new = (AutoModel.from_pretrained(tmp_path / name).eval() for name in ("base", "small"))
    small, whole = load_tokenizer(str(folder)), tiny.tokenizer()
    for text in TEXTS:
        ids = [torch.tensor([t(text)["input_ids"]]) for t in (whole, small)]
        assert torch.equal(old(ids[0])[0], new(ids[1])[0])
    module = SequenceClassificationModule(str(folder), learning_rate=1e-2)
    data = TASKS["sequence_classification"].make_data(tmp_path, tokenizer=None)
    make_trainer(max_steps=2).fit(module, data)
    assert tokens(module) == small.get_vocab()
    with pytest.raises(FileExistsError, match="is there already"):
        trim(tmp_path / "base", tmp_path / "small", TEXTS)
    with pytest.raises(ValueError, match="has no head, and only a folder"):
        trim(tmp_path / "base", tmp_path / "other", TEXTS, format="onnx")
    again, twice = trim(folder, folder, TEXTS[:1], overwrite=True)
    assert twice.after < made.after and len(load_tokenizer(str(again))) == twice.after


def test_a_folder_that_was_not_made_is_not_left_behind(tmp_path: Path) -> None:
    save_encoder(tmp_path / "base")
    with pytest.raises(ValueError, match="the corpus is empty"):
        trim(tmp_path / "base", tmp_path / "small", [])
    assert {path.name for path in tmp_path.iterdir()} == {"base"}
