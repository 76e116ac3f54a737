"""`lmkit.export`: a model to use without lmkit, as a Hugging Face folder, an adapter or ONNX."""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from transformers import PreTrainedModel

from .adapters import write_adapter
from .adapters.ownership import check_module
from .adapters.stored import unmerged
from .loading import load
from .modules import LMModule
from .modules.history import NOTE, history_of
from .modules.network import usable_positions
from .onnx_file import require_onnx, write_onnx
from .surgery.composition import active_adapters, adapters_of
from .surgery.folding import check_mergeable
from .surgery.folding import merge as merge_into_base
from .surgery.plain_config import unsaid
from .surgery.structure_folder import STRUCTURE, structural_specs, write_structure

__all__ = ["FORMATS", "check_export", "export"]

#: What a model can be exported as.
FORMATS = ("hf", "onnx")


def export(
    module: LMModule | str | os.PathLike[str],
    output: str | os.PathLike[str],
    format: str = "hf",
    overwrite: bool = False,
    merge: bool = False,
    adapter: bool | str = False,
    base: str | os.PathLike[str] | None = None,
    plain: bool = False,
) -> Path:
    """Write a trained model for use.

    The folder appears whole or not at all. `"hf"` is a folder for plain `transformers`:
    `transformers.pipeline(task, model=output)` loads it. A structure that a config cannot say, such
    as low-rank layers, becomes a folder with a `structure.json`, which `lmkit.load` and the `model`
    of a module read, and plain `transformers` refuses. `"onnx"` holds `model.onnx` beside config
    and tokenizer, with free batch size and length, and its logits are compared with the network's
    in ONNX Runtime before it is handed over; adapters are part of it, merged or not.

    Args:
        module: a module, or what `lmkit.load` takes; it stays as it is.
        output: the folder to make.
        format: `"hf"` or `"onnx"` (needs the extra `onnx`).
        overwrite: replace a folder that is there already.
        merge: compute the active adapters into the base's weights, and low-rank layers into dense
            ones.
        adapter: write one adapter and its head alone, for plain peft where that computes the same
            and otherwise for `lmkit.adapters.add_adapter`: its name, or `True` for the only or only
            active one.
        base: a folder or hub name, where the base of a checkpoint that holds only what was trained
            is now; by default where it was.
        plain: refuse what plain `transformers` cannot load, before anything is written.

    Returns:
        The folder.

    Raises:
        TypeError: neither a module of lmkit nor a path or name.
        ValueError: an unknown format, options that exclude each other, adapters without `merge` or
            `adapter`, or a structure that neither `transformers` nor surgeries of lmkit can make;
            with `plain`, one that `transformers` cannot.
        FileExistsError: the folder is there and not empty.
        ImportError: the extra `onnx` or `peft` is needed and not installed.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    if adapter and (merge or format != "hf"):
        other = "merge" if merge else f"format={format!r}"
        raise ValueError(f"adapter writes one adapter alone and {other} a whole model: give one")
    if plain and (adapter or format != "hf"):
        other = "adapter" if adapter else f"format={format!r}"
        raise ValueError(f"plain is about folders of whole models, and {other} is none: give one")
    target = Path(output)
    if target.exists() and not overwrite and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} is there already; give another output or overwrite it")
    if format == "onnx":
        require_onnx()
    if not isinstance(module, str | os.PathLike):
        check_module(module, "export", "its network's own save_pretrained(folder)")
    if not isinstance(module, LMModule):
        module = load(module, base=base)
    elif base is not None:
        raise ValueError("base is for a checkpoint to be loaded, and this module has its weights")
    module.configure_model()
    if not adapter:
        network, specs = _network(module, format, merge, plain)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        folder = Path(scratch) / "export"
        if adapter:
            write_adapter(module, folder, None if adapter is True else adapter)
        elif format == "hf" and specs:
            write_structure(network, folder, specs)
        elif format == "hf":
            network.save_pretrained(folder)
        else:
            folder.mkdir()
            network.config.save_pretrained(folder)
            write_onnx(module, network, folder / "model.onnx")
        _write_tokenizer(module, folder, target)
        _write_note(module, folder)
        if target.exists():
            shutil.rmtree(target) if target.is_dir() else target.unlink()
        folder.replace(target)
    if not adapter and specs and format == "hf":
        widths = unsaid(network)
        how = widths[0] if widths else "merge=True (--merge) makes a plain folder, of dense layers"
        rank_zero_info(
            f"{target} has a {STRUCTURE}: lmkit.load reads it, and plain transformers refuses it, "
            f"since no config can say its layers: {how}"
        )
    return target


def check_export(module: LMModule, merge: bool = False, plain: bool = False) -> None:
    """Check that a module can be written as a folder.

    Args:
        module: with its network built.
        merge: whether adapters and low-rank layers are to be merged.
        plain: whether plain `transformers` is to load it.

    Raises:
        ValueError: it cannot, because of its adapters or its structure; says what can be done.
    """
    names = adapters_of(module.network)
    if names and not merge:
        active = ", ".join(active_adapters(module.network)) or "none"
        raise ValueError(
            f"the network has the adapters {', '.join(names)} (active: {active}), which plain "
            "transformers does not know: merge=True (--merge) computes the active ones into the "
            "base's weights, adapter=True (--adapter [NAME]) writes one of them alone"
        )
    if merge:
        check_mergeable(module.network)
    elif plain:
        _check_plain(module.network, structural_specs(module.network, module.ledger))


def _network(
    module: LMModule, format: str, merge: bool, plain: bool
) -> tuple[PreTrainedModel, list[dict[str, Any]]]:
    """Return a copy of the network as it is to be written, on the CPU and in evaluation mode.

    With it come the surgeries that its config does not say.
    """
    if format == "onnx" and module.network.config.is_encoder_decoder:
        raise ValueError(
            "format='onnx' is for encoders and decoders, and this is an encoder-decoder; export it "
            "as 'hf'"
        )
    if format == "hf":
        check_export(module, merge)
    network: PreTrainedModel = copy.deepcopy(module.network).cpu().eval()
    if merge:
        merge_into_base(network)
    if format == "onnx":  # it says each operation, whatever the structure
        return network, []
    specs = structural_specs(network, unmerged(module.ledger) if merge else module.ledger)
    if plain:
        _check_plain(network, specs)
    return network, specs


def _check_plain(network: PreTrainedModel, specs: list[dict[str, Any]]) -> None:
    if specs:
        kinds = ", ".join(dict.fromkeys(spec["class_path"].rpartition(".")[2] for spec in specs))
        widths = unsaid(network)
        why = f"a config has no words for it{f' ({widths[0]})' if widths else ''}"
        merge = "" if widths else "merge=True (--merge) makes low-rank layers dense; "
        raise ValueError(
            f"plain transformers cannot express this structure, which was changed by {kinds}: "
            f"{why}. {merge}without plain the folder gets a structure.json, which lmkit.load reads"
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
