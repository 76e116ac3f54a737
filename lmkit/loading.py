"""`lmkit.load`: a checkpoint, an exported folder or a hub name back into a module."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from . import modules
from .adapters.stored import how_to_add
from .modules import (
    CausalLMModule,
    LMModule,
    MaskedLMModule,
    MultipleChoiceModule,
    QuestionAnsweringModule,
    ReplacedTokenModule,
    Seq2SeqModule,
    SequenceClassificationModule,
    TokenClassificationModule,
)
from .modules.history import NOTE
from .modules.onnx_network import holds_onnx, run_onnx
from .tokenization import load_tokenizer

__all__ = ["load", "noted_module"]

# By the end of the architecture's name in a config.json.
_HEADS: dict[str, type[LMModule]] = {
    "ForMaskedLM": MaskedLMModule,
    "ElectraForPreTraining": ReplacedTokenModule,
    "ForPreTraining": MaskedLMModule,
    "ForCausalLM": CausalLMModule,
    "LMHeadModel": CausalLMModule,
    "ForConditionalGeneration": Seq2SeqModule,
    "EncoderDecoderModel": Seq2SeqModule,
    "MarianMTModel": Seq2SeqModule,
    "ForSequenceClassification": SequenceClassificationModule,
    "ForTokenClassification": TokenClassificationModule,
    "ForQuestionAnswering": QuestionAnsweringModule,
    "ForMultipleChoice": MultipleChoiceModule,
}


def load(
    path: str | os.PathLike[str],
    map_location: Any = "cpu",
    base: str | os.PathLike[str] | None = None,
) -> LMModule:
    """Load a module to use it or to train it on.

    Args:
        path: a checkpoint file, the folder of an export (with a `structure.json` too, or any folder
            that `save_pretrained` wrote), or a hub name. ONNX of a classification, a tagging, a
            choice or answers runs in ONNX Runtime: it predicts and is tested, and is not trained.
        map_location: the device that the weights of a checkpoint go to, as in `torch.load`.
        base: a folder or hub name, where the base of a checkpoint that holds only what was trained
            is now; by default where it was.

    Returns:
        The module with its network built and its tokenizer, in evaluation mode.

    Raises:
        FileNotFoundError: the path is a file's and there is none.
        ValueError: a checkpoint that is cut short, holds code or is not lmkit's; a folder or hub
            name without a model, with a head that no module has, or whose weights are not of the
            structure that it says; ONNX of a language model.
        ImportError: it is ONNX, and the extra `onnx` is not installed.

    Example:
        >>> load("nowhere.ckpt")
        Traceback (most recent call last):
        ...
        FileNotFoundError: there is no checkpoint at nowhere.ckpt
    """
    place = Path(path)
    if place.is_file() or place.suffix == ".ckpt":
        moved: dict[str, Any] = {} if base is None else {"model": str(base)}
        return LMModule.load_from_checkpoint(place, map_location=map_location, **moved).eval()
    if base is not None:
        raise ValueError(f"base is for a checkpoint that was trained on it, and {place} is none")
    if how := how_to_add(place):
        raise ValueError(f"{place} holds an adapter and no base: {how}")
    if place.is_dir() and not (place / "config.json").is_file():
        if inside := sorted(each.parent.name for each in place.glob("*/config.json")):
            raise ValueError(
                f"the folder {place} holds the models {', '.join(inside)}: give one of them, such "
                f"as {place / inside[0]}"
            )
        raise ValueError(
            f"the folder {place} holds no config.json; give an exported folder, or a checkpoint "
            f"in it{_checkpoints_in(place)}"
        )
    try:
        config = AutoConfig.from_pretrained(str(path))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{str(path)!r} is neither a checkpoint, nor a folder, nor a model that the hub gives: "
            f"{str(error).splitlines()[0]}"
        ) from error
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(
            f"{str(path)!r} has quantized weights of another library, for plain transformers "
            "(from_pretrained): load what it was made of, or an export with quantize='int8'"
        )
    architecture = (config.architectures or ["no architecture"])[0]
    noted = noted_module(place / NOTE)
    for ending, by_head in _HEADS.items():
        if architecture.endswith(ending):
            cls, settings = noted or (by_head, {})
            module = cls(model=str(path), **settings)
            module.tokenizer = load_tokenizer(str(path))
            if holds_onnx(place):
                run_onnx(module, place)
            module.configure_model()
            return module.eval()
    if architecture.endswith("Model"):
        raise ValueError(
            f"{str(path)!r} is a {architecture}, which has no head: give it to a module of your "
            f"task, e.g. SequenceClassificationModule(model={str(path)!r})"
        )
    raise ValueError(
        f"{str(path)!r} is a {architecture}, for which there is no module; modules are there for "
        f"{', '.join(_HEADS)}"
    )


def noted_module(note: Path) -> tuple[type[LMModule], dict[str, Any]] | None:
    """Return class and settings that an export notes, if they are those of a module of lmkit."""
    try:
        said = json.loads(note.read_text(encoding="utf-8"))
        name, settings = said["module"], said["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    cls = getattr(modules, name, None) if name in modules.__all__ else None
    if cls is None or not isinstance(settings, Mapping):
        return None
    known = inspect.signature(cls).parameters
    return cls, {
        k: v for k, v in settings.items() if k in known and k not in ("model", "pretrained")
    }


def _checkpoints_in(folder: Path) -> str:
    found = sorted(folder.rglob("*.ckpt"))[:3]
    return f": {', '.join(map(str, found))}" if found else ""
