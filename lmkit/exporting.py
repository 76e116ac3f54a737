"""`lmkit.export`: a model to use without lmkit, as a Hugging Face folder, an adapter or ONNX."""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from .adapters import write_adapter
from .adapters.ownership import check_module
from .export_network import (
    agreement_of,
    cast,
    check_export,
    encoder_to_write,
    is_rounded,
    network_to_write,
    parts_to_write,
)
from .functional.agreement import Agreement
from .loading import load
from .modules import LMModule
from .modules.history import NOTE, history_of
from .modules.network import usable_positions
from .modules.network_inputs import knows_types
from .modules.onnx_network import OnnxNetwork
from .onnx_file import require_onnx, write_int8, write_onnx
from .surgery.plain_config import unsaid
from .surgery.structure_folder import STRUCTURE, write_structure
from .surgery.task_adapter import task_adapter_names
from .surgery.torchao_tensors import require_torchao

__all__ = ["FORMATS", "NUMBERS", "QUANTIZED", "check_export", "check_options", "export"]

#: What a model can be exported as; in which whole numbers, and in which floating-point ones.
FORMATS, NUMBERS = ("hf", "onnx"), ("float32", "bfloat16")
QUANTIZED = ("int8", "torchao")

# Below this agreement what was written is not what was trained.
_AGREE = 0.99


def export(
    module: LMModule | str | os.PathLike[str],
    output: str | os.PathLike[str],
    format: str = "hf",
    overwrite: bool = False,
    merge: bool = False,
    adapter: bool | str = False,
    base: str | os.PathLike[str] | None = None,
    plain: bool = False,
    quantize: str | None = None,
    exclude: Sequence[str] = (),
    dtype: str | None = None,
    texts: Sequence[str] | None = None,
    task: str | None = None,
    head: bool = True,
) -> Path:
    """Write a trained model for use.

    The folder appears whole or not at all. `"hf"` is a folder for plain `transformers`:
    `transformers.pipeline(task, model=output)` loads it. A structure that a config cannot say, such
    as low-rank layers, becomes a folder with a `structure.json`, which `lmkit.load` and the `model`
    of a module read, and plain `transformers` refuses. `"onnx"` holds `model.onnx` beside config
    and tokenizer, with free batch size and length, and its logits are compared with the network's
    in ONNX Runtime before it is handed over; adapters are part of it, merged or not.

    A network with quantized layers, or such that learned to be, is written in whole numbers, and
    `quantize` writes another one so. ONNX has 8 bits for weights and for what layers read, as ONNX
    Runtime rounds it; a folder has them for weights alone, and a `structure.json`. `"torchao"` is a
    folder that plain `transformers` loads where torchao is, for its kernels. What then is said of
    examples is compared with what the network says, and less than 0.99 is a warning.

    Args:
        module: a module, or what `lmkit.load` takes; it stays as it is.
        output: the folder to make.
        format: `"hf"` or `"onnx"` (needs the extra `onnx`).
        overwrite: replace a folder that is there already, with all that is in it.
        merge: compute the active adapters into the base's weights, low-rank layers into dense ones,
            and whole numbers into floating-point ones.
        adapter: write one adapter and its head alone, for plain peft where that computes the same
            and otherwise for `lmkit.adapters.add_adapter`: its name, or `True` for the only or only
            active one.
        base: a folder or hub name, where the base of a checkpoint that holds only what was trained
            is now; by default where it was.
        plain: refuse what plain `transformers` cannot load, before anything is written.
        quantize: `"int8"` for whole numbers of 8 bits, `"torchao"` for those of its tensors (needs
            the extra `compress`).
        exclude: roles, names or patterns of layers that are not quantized.
        dtype: of the weights of a folder: `"bfloat16"` for half the bytes, `"float32"` by default.
        texts: by which what was quantized is compared; random words by default.
        task: of several tasks the one to write; by default each of them, in a folder of its name.
        head: whether the head is written. An encoder alone is the `model` of another task's module;
            several tasks have one, and one folder.

    Returns:
        The folder.

    Raises:
        TypeError: neither a module of lmkit nor a path or name.
        ValueError: an unknown format or task, options that exclude each other, adapters without
            `merge` or `adapter`, or a structure that neither `transformers` nor surgeries of lmkit
            can make; with `plain`, one that `transformers` cannot; or the network cannot be
            quantized.
        NothingMatchedError: something that is excluded matches nothing.
        FileExistsError: the folder is there and not empty.
        ImportError: the extra `onnx`, `peft` or `compress` is needed and not installed.
    """
    check_options(format, merge, bool(adapter), plain, quantize, dtype, head)
    target = Path(output)
    if target.exists() and not overwrite and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} is there already; give another output or overwrite it")
    if format == "onnx":
        require_onnx()
    if quantize == "torchao":
        require_torchao()
    if not isinstance(module, str | os.PathLike):
        check_module(module, "export", "its network's own save_pretrained(folder)")
    if not isinstance(module, LMModule):
        module = load(module, base=base)
    elif base is not None:
        raise ValueError("base is for a checkpoint to be loaded, and this module has its weights")
    module.configure_model()
    how: dict[str, Any] = {"format": format, "merge": merge, "adapter": adapter, "plain": plain}
    how |= {"quantize": quantize, "exclude": exclude, "dtype": dtype, "texts": texts, "head": head}
    beside = next(folder for folder in target.absolute().parents if folder.exists())
    with tempfile.TemporaryDirectory(dir=beside, prefix=f".{target.name}-") as scratch:
        folder = Path(scratch) / "export"
        for name, part in parts_to_write(module, task, head):
            _write(part, folder / name, target / name, **how)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            shutil.rmtree(target) if target.is_dir() else target.unlink()
        folder.replace(target)
    return target


def _write(
    module: LMModule,
    folder: Path,
    target: Path,
    format: str,
    merge: bool,
    adapter: bool | str,
    plain: bool,
    quantize: str | None,
    exclude: Sequence[str],
    dtype: str | None,
    texts: Sequence[str] | None,
    head: bool,
) -> None:
    """Write the model of one task to a folder, which is to be `target`."""
    if isinstance(module.network, OnnxNetwork):
        raise ValueError(
            "the module is of an ONNX model, which is an export: export what that was made of"
        )
    agreed: Agreement | None = None
    if not adapter:
        network, specs = network_to_write(module, format, merge, plain, quantize, exclude, head)
        rounded = bool(quantize or is_rounded(module.network))
        if not rounded and (exclude or (texts is not None and dtype != "bfloat16")):
            raise ValueError("exclude and texts are for what is quantized: give quantize='int8'")
        if dtype == "bfloat16":
            cast(network, torch.bfloat16)
        if format == "hf" and (rounded or dtype == "bfloat16"):
            agreed = agreement_of(module, network, texts)
        written = network if head else encoder_to_write(network)
    folder.parent.mkdir(exist_ok=True)
    if adapter:
        write_adapter(module, folder, None if adapter is True else adapter)
    elif format == "hf" and specs:
        write_structure(network, folder, specs, head)
    elif format == "hf":
        written.save_pretrained(folder)
    else:
        folder.mkdir()
        network.config.architectures = [type(network).__name__]
        network.config.save_pretrained(folder)
        path = folder / "model.onnx"
        if quantize or is_rounded(network):
            agreed, _ = write_int8(module, network, path, exclude, texts)
        else:
            write_onnx(module, network, path)
    _write_tokenizer(module, folder, target)
    _write_note(module, folder)
    if agreed is not None:
        _tell(target, agreed, texts)
    if not adapter and specs and format == "hf":
        widths = unsaid(network)
        how = widths[0] if widths else "merge=True (--merge) makes a plain folder, of dense layers"
        if task_adapter_names(specs):
            how = "an adapter of a task is no change of a layer's weights, and cannot be merged"
        rank_zero_info(
            f"{target} has a {STRUCTURE}: lmkit.load reads it, and plain transformers refuses it, "
            f"since no config can say its layers: {how}"
        )


def check_options(
    format: str,
    merge: bool,
    adapter: bool,
    plain: bool,
    quantize: str | None,
    dtype: str | None,
    head: bool = True,
) -> None:
    """Check options of `export` that need no model to be wrong.

    Raises:
        ValueError: one is unknown, or two exclude each other.
    """
    known = (
        ("format", format, FORMATS),
        ("quantize", quantize, QUANTIZED),
        ("dtype", dtype, NUMBERS),
    )
    for word, given, allowed in known:
        if given is not None and given not in allowed:
            raise ValueError(f"{word} must be one of {', '.join(allowed)}, got {given!r}")
    if adapter and (merge or format != "hf"):
        other = "merge" if merge else f"format={format!r}"
        raise ValueError(f"adapter writes one adapter alone and {other} a whole model: give one")
    if plain and (adapter or format != "hf"):
        other = "adapter" if adapter else f"format={format!r}"
        raise ValueError(f"plain is about folders of whole models, and {other} is none: give one")
    for word, given in (("quantize", quantize), ("dtype", dtype)):
        if given is not None and adapter:
            raise ValueError(f"{word} is about whole models, and adapter is none: give one")
    if dtype == "bfloat16" and format != "hf":
        raise ValueError(
            "dtype='bfloat16' is for folders: on a CPU ONNX Runtime computes in float32. Leave it "
            "out, or give quantize='int8'"
        )
    if dtype == "bfloat16" and quantize:
        raise ValueError(f"dtype='bfloat16' and quantize={quantize!r} exclude each other: give one")
    if not head and (adapter or quantize or format != "hf"):
        other = "adapter" if adapter else f"quantize={quantize!r}" if quantize else "format='onnx'"
        raise ValueError(
            f"head=False writes an encoder that another fit begins from, and {other} something to "
            "use as it is: give one"
        )
    if quantize == "torchao" and format != "hf":
        raise ValueError("quantize='torchao' is for folders; for ONNX give quantize='int8'")


def _tell(target: Path, agreed: Agreement, texts: Sequence[str] | None) -> None:
    """Say how far what was written agrees with the network, and warn if it does not."""
    by = f"{len(texts)} texts" if texts is not None else "random words"
    # Of random words the highest scores may be as good as equal.
    if agreed.cosine >= _AGREE and (texts is None or agreed.same >= _AGREE):
        rank_zero_info(f"{target} says what the network says: {agreed} ({by})")
        return
    rank_zero_warn(
        f"{target} does not say what the network says: {agreed} ({by}). Measure it on your task "
        "before you use it; train with QuantizationCallback('qat'), leave the worst layers out "
        "(sensitivity, exclude), or smooth the inputs (smooth)"
    )


def _write_tokenizer(module: LMModule, folder: Path, target: Path) -> None:
    if module.tokenizer is None:
        rank_zero_warn(
            f"the module has no tokenizer, and {target} gets none: set module.tokenizer and export "
            "again, or save one there with its save_pretrained"
        )
        return
    tokenizer = copy.deepcopy(module.tokenizer)
    longest = usable_positions(module.network)
    if longest is not None:
        longest -= int(getattr(getattr(module.network.base_model, "prefixes", None), "count", 0))
    if longest is not None and tokenizer.model_max_length > longest:
        # So that `truncation=True` cuts a text to what the network has positions for.
        tokenizer.model_max_length = longest
    # With types plain transformers tells two texts apart, or looks them up among GPT-2's words.
    types = ["token_type_ids"] if knows_types(module.network) else []
    others = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
    tokenizer.model_input_names = [*others, *types]
    tokenizer.save_pretrained(folder)


def _write_note(module: LMModule, folder: Path) -> None:
    """Note what plain transformers does not ask for, and `lmkit.load` goes by."""
    note = folder / NOTE
    known = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {}
    task = module.task_module
    settings = {k: v for k, v in task.hparams.items() if k not in ("model", "pretrained")}
    said = {"module": type(task).__name__, "settings": settings, **known}
    said["history"] = history_of(module)
    note.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
