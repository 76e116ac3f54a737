"""Which checkpoint a command starts from, and whose settings win: its or the command line's."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.utilities import rank_zero_only

from .modules.checkpoint_io import read_checkpoint
from .modules.frozen_base import on_base_of
from .tokenization import tokenizer_from_files

__all__ = [
    "base_config",
    "checkpoint_folders",
    "find_checkpoint",
    "flags_of",
    "option_of",
    "reconcile",
    "say",
    "stand_alone",
    "take_up",
]

#: What the network is made from: with another value the weights of the checkpoint do not fit.
STRUCTURE = ("model", "pretrained")


def checkpoint_folders(settings: Any) -> list[Path]:
    """Return where the checkpoints of a run may be, from the settings of a command."""
    folders = [settings.checkpoint.dirpath or f"{settings.trainer.default_root_dir}/checkpoints"]
    given = settings.trainer.callbacks or []
    for callback in given if isinstance(given, list) else [given]:
        folders.append(callback.get("init_args", {}).get("dirpath"))
    return [Path(folder).expanduser() for folder in dict.fromkeys(folders) if folder]


def find_checkpoint(word: str, folders: Iterable[Path], resume: bool) -> Path | None:
    """Turn `last`, `best` or a path into the path of a checkpoint.

    Args:
        word: what was given as `--ckpt_path`.
        folders: where the run's checkpoints are.
        resume: whether `last` may be missing, because a run that has not begun begins.

    Returns:
        The file, or `None` for a `last` that is not there yet.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: the last checkpoint cannot be read.
    """
    if word not in ("last", "best"):
        if not Path(word).exists() and "://" not in word:
            raise FileNotFoundError(f"there is no checkpoint at {word}")
        return Path(word)
    folders = list(folders)
    found = [path for folder in folders for path in folder.glob("last*.ckpt")]
    if not found:
        places = " or ".join(map(str, folders))
        if resume and word == "last":
            say(f"there is no checkpoint in {places} yet: starting from the beginning")
            return None
        raise FileNotFoundError(f"there is no checkpoint in {places}; give a path as --ckpt_path")
    last = max(found, key=lambda path: path.stat().st_mtime_ns)
    return last if word == "last" else _best(last)


def reconcile(
    model: Any, checkpoint: Mapping[str, Any], flags: Iterable[str], path: Path, resume: bool
) -> None:
    """Settle what the config and a checkpoint say differently about the module, and name each.

    A resumed fit takes everything from the checkpoint, for its optimizer and schedule are in the
    middle of a run with those values. Elsewhere a flag of the command line wins, unless it would
    change the structure; a value from a recipe does not. Where the base of a checkpoint that leaves
    its weights out has been moved to, a flag says in any case.

    Args:
        model: the config's `class_path` and `init_args`; changed in place.
        checkpoint: as loaded.
        flags: the names of the module's arguments given on the command line.
        path: of the checkpoint, for messages.
        resume: whether the fit of the checkpoint goes on.

    Raises:
        ValueError: the checkpoint is of another class.
    """
    owner = _owner(checkpoint)
    if owner is not None and _class_of(model["class_path"]) is not owner:
        raise ValueError(
            f"{path} is a checkpoint of {owner.__name__}, and the config is for "
            f"{model['class_path'].rsplit('.', 1)[-1]}: give the one that fits"
        )
    moved = {"model"} if (checkpoint.get("lmkit") or {}).get("left_out") else set()
    for name, saved in _hyper_parameters(checkpoint).items():
        given = model["init_args"].get(name, saved)
        if _same(given, saved):
            continue
        if name in flags and (name in moved or not (resume or name in STRUCTURE)):
            say(f"model.{name} is {_show(given)}; the checkpoint {path} had {_show(saved)}")
            continue
        advice = (
            "; to train its weights with other settings, start anew from an export of it"
            if resume and name in flags
            else ""
        )
        say(
            f"model.{name}={_show(given)} is overridden by {_show(saved)} of the checkpoint "
            f"{path}{advice}"
        )
        model["init_args"][name] = saved


def stand_alone(model: Any, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Let a module that is to be used be built as the checkpoint says, without what it began from.

    So neither the base that was fine-tuned nor the training data have to be there.

    Args:
        model: the config's `class_path` and `init_args`; changed in place.
        checkpoint: as loaded.

    Returns:
        The entry of a module of lmkit in the checkpoint, for `take_up`; empty if there is none.
    """
    entry = dict(checkpoint.get("lmkit") or {})
    weights = sum(key.startswith("network.") for key in checkpoint.get("state_dict", {}))
    if entry.get("config") and weights >= entry.get("weights", weights + 1):
        owner = _class_of(model["class_path"])
        given = {name: _plain(value) for name, value in vars(model["init_args"]).items()}
        changed = owner.arguments_for(given, entry["config"], pretrained=False)
        for name, value in changed.items():
            model["init_args"][name] = value
    return entry


def take_up(module: Any, entry: Mapping[str, Any], path: str) -> None:
    """Give a module that is to be used the tokenizer and the classes of a checkpoint.

    Args:
        module: as it was made; changed in place.
        entry: as `stand_alone` returns it.
        path: of the checkpoint, for messages.

    Raises:
        ValueError: the checkpoint leaves weights out, and there is no base to take them from.
    """
    if entry.get("tokenizer"):
        # So that no training text is needed to know it.
        for each in (module, *getattr(module, "tasks", {}).values()):
            each.tokenizer = tokenizer_from_files(entry["tokenizer"])
    if entry.get("left_out"):
        # It needs its base, and what it is tested on may lack a class that it knows.
        with on_base_of(entry, module.hparams["model"], path) as base:
            module.hparams.update(base)
            module.configure_model()


def base_config(path: Path) -> str | None:
    """Return a config for a checkpoint that came without one: a file, or its content as JSON.

    That is the config saved in the run's folder, or else what the checkpoint holds of module and
    data; `None` if it holds too little.
    """
    saved = path.parent.parent / "config.yaml"
    if saved.is_file():
        return str(saved)
    checkpoint = read_checkpoint(path, mmap=True)
    owner = _owner(checkpoint)
    data = dict(checkpoint.get("datamodule_hyper_parameters", {}))
    if owner is None or "_class_path" not in data:
        return None
    sections = {
        "model": {
            "class_path": f"{owner.__module__}.{owner.__qualname__}",
            "init_args": _arguments(owner, checkpoint),
        },
        "data": {
            "class_path": data.pop("_class_path"),
            "init_args": {k: v for k, v in data.items() if not k.startswith("_")},
        },
    }
    return json.dumps(sections)


def flags_of(words: Sequence[str], section: str = "model") -> set[str]:
    """Return the arguments of a section that were given as flags.

    Example:
        >>> sorted(flags_of(["fit", "--model.init_args.warmup=3", "--model.model", "x"]))
        ['model', 'warmup']
    """
    names = set()
    for word in words:
        option = word.split("=", 1)[0]
        if option.startswith(f"--{section}."):
            name = option.removeprefix(f"--{section}.").removeprefix("init_args.")
            names.add(name.split(".")[0].removesuffix("+"))
    return names


def option_of(words: Sequence[str], option: str) -> str | None:
    """Return the value of an option among the words of a command line, if it is there."""
    for place, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name == option:
            return value if equals else next(iter(words[place + 1 : place + 2]), None)
    return None


def say(message: str) -> None:
    """Tell the user, once for all ranks."""
    if getattr(rank_zero_only, "rank", 0) == 0:
        sys.stderr.write(f"lmkit: {message}\n")


def _best(last: Path) -> Path:
    # A run that was killed may know a best one that it had replaced already, so the newest
    # checkpoint whose best one is there counts.
    files = sorted(last.parent.glob("*.ckpt"), key=lambda p: p.stat().st_mtime_ns, reverse=True)
    for file in files:
        states: Mapping[str, Any] = read_checkpoint(file, mmap=True).get("callbacks", {})
        for state in states.values():
            best = state.get("best_model_path") if isinstance(state, dict) else None
            # The folder of a run may have been moved since.
            for path in (Path(best), last.parent / Path(best).name) if best else ():
                if path.is_file():
                    return path
    raise FileNotFoundError(
        f"{last} knows of no best checkpoint: the run had no validation yet, or it was removed; "
        "use --ckpt_path last"
    )


def _owner(checkpoint: Mapping[str, Any]) -> type[Any] | None:
    name = checkpoint.get("lmkit", {}).get("class")
    if name is None:
        name = checkpoint.get("hyper_parameters", {}).get("_class_path")
    return None if name is None else _class_of(name.replace(":", "."))


def _class_of(dotted: str) -> type[Any]:
    module, _, name = dotted.rpartition(".")
    # An import runs code, so a checkpoint may name only lmkit's modules and those that the config
    # has imported already.
    if module not in sys.modules and module.split(".")[0] == __package__:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    found = getattr(sys.modules.get(module), name, None)
    if not isinstance(found, type):
        raise ValueError(
            f"the checkpoint is of {dotted}, which is not imported: give the config it was made "
            "with, whose class_path imports it"
        )
    return found


def _hyper_parameters(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    saved = checkpoint.get("hyper_parameters", {})
    return {name: value for name, value in saved.items() if not name.startswith("_")}


def _arguments(owner: type[Any], checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    known = inspect.signature(owner).parameters
    return {name: value for name, value in _hyper_parameters(checkpoint).items() if name in known}


def _same(one: Any, other: Any) -> bool:
    return _text(one, in_order=True) == _text(other, in_order=True)


def _show(value: Any) -> str:
    text = _text(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _text(value: Any, in_order: bool = False) -> str:
    return json.dumps(_plain(value), sort_keys=in_order, default=str)


def _plain(value: Any) -> Any:
    """Return what the parser makes of classes and their arguments as plain data."""
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value.as_dict() if isinstance(value, Namespace) else value
