"""A run of several stages: each is an `lmkit fit` that begins from what the one before made."""

from __future__ import annotations

import difflib
import io
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .chain_options import find_missing, flag_of, options_of, take
from .cli_export import read_options

__all__ = ["Chain", "Stage", "has_stages", "read_chain"]

# Options of a fit that have others inside.
_PARTS = ("model", "data", "trainer", "checkpoint", "optimizer", "lr_scheduler")
_KEYS = ("config", "options", "checkpoint", "export")
_DONE = "stage.json"
_STOPPED = (130, 143)  # from outside: Ctrl-C, or the system
_PLACE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Stage:
    """One fit of a chain.

    Attributes:
        name: of its folder, and for the stages behind it.
        config: a YAML file, or the word of a recipe.
        options: of `lmkit fit` by name, without the dashes; `{NAME}` in a value stands for what the
            stage NAME has exported.
        checkpoint: which is exported, `"best"` or `"last"`.
        export: options of `lmkit export`, such as `{"format": "onnx"}`; `{"head": False}` is
            `--no_head`.
    """

    name: str
    config: str
    options: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: str = "best"
    export: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Chain:
    """Stages that are fit in turn, each in a folder of its own with its checkpoints and its export.

    A stage that is done leaves `stage.json`; a chain that goes on begins with the first stage that
    has none, at its last checkpoint.

    Attributes:
        stages: in order.
        word: names the folder under `runs/`, where no other is given.
    """

    stages: tuple[Stage, ...]
    word: str

    def planned(
        self, words: Sequence[str], command: Callable[[list[str]], int]
    ) -> Callable[[], int]:
        """Return what fits and exports all stages that are not done yet.

        Args:
            words: options of the command line; `--NAME.option=value` is for the stage NAME alone,
                any other for every stage. `--NAME.config=FILE` takes another config in place of the
                stage's own. `--trainer.default_root_dir` is the folder of them all.
            command: runs a command of lmkit, and returns its exit code.

        Returns:
            A function that returns 0, or the exit code of the stage that failed.

        Raises:
            ValueError: an option belongs to the chain as a whole and has another value than it may
                have, a stage was done with other options, or before one that is not done.
            FileExistsError: the chain was begun before, and `--ckpt_path last` is not given.
        """
        given = options_of(words)
        configs = {stage.name: take(given, f"{stage.name}.config") for stage in self.stages}
        stages = [replace(s, config=configs[s.name] or s.config) for s in self.stages]
        root = Path(take(given, "trainer.default_root_dir") or f"runs/{self.word}")
        going_on = take(given, "ckpt_path")
        if going_on not in (None, "last"):
            raise ValueError(
                f"--ckpt_path of a chain of stages can be last alone, got {going_on!r}: each stage "
                "has its own checkpoints"
            )
        folders = {
            stage.name: root / f"{number}-{stage.name}" for number, stage in enumerate(stages, 1)
        }
        begun = [folder for folder in folders.values() if folder.exists()]
        if begun and not going_on:
            raise FileExistsError(
                f"{begun[-1]} is there already: --ckpt_path last goes on with the chain, "
                "--trainer.default_root_dir=DIR begins another one"
            )
        exports = {name: folder / "exported" for name, folder in folders.items()}
        settings = {stage.name: self._settings(stage, given, exports) for stage in stages}
        open_stage = ""
        for stage in stages:
            folder = folders[stage.name]
            if open_stage and folder.exists():
                raise ValueError(
                    f"{folder} is of a chain in which the stage {open_stage} was done, and it is "
                    f"not any more: remove {folder}"
                )
            _check_same(stage, settings[stage.name], folder)
            open_stage = open_stage or ("" if (folder / _DONE).is_file() else stage.name)

        def run() -> int:
            # A wrong option of the last stage is better known before the first one is fit.
            due = [s for s in stages if not (folders[s.name] / _DONE).is_file()]
            for stage in due:
                with redirect_stdout(io.StringIO()) as printed:
                    words = [*settings[stage.name], "--print_config"]
                    code = command(["fit", "-c", stage.config, *words])
                if code:
                    _say(f"the options of the stage {stage.name} are wrong, and nothing was fit")
                    return code
                try:
                    read_options(["--ckpt=last", "--output=exported", *_exporting(stage)])
                except SystemExit as stop:  # the parser has said what is wrong
                    _say(f"the export of the stage {stage.name} is wrong, and nothing was fit")
                    return int(stop.code or 0)
                if missing := find_missing(printed.getvalue(), root):
                    raise FileNotFoundError(f"stage {stage.name}: {missing}; nothing was fit")
            for stage in stages:
                if code := self._run(stage, settings[stage.name], folders[stage.name], command):
                    return code
            return 0

        return run

    def _settings(
        self, stage: Stage, given: Mapping[str, list[str]], exports: Mapping[str, Path]
    ) -> list[str]:
        """Return the options of a stage as words; its own come last, and so count."""
        names = [other.name for other in self.stages]

        def fill(value: Any) -> str:
            text = value if isinstance(value, str) else json.dumps(value)
            return _PLACE.sub(lambda found: str(exports.get(found[1], found[0])), text)

        known = (*names, *_PARTS)
        for key in given:
            first, dot, _ = key.partition(".")
            if dot and first not in known:
                near = difflib.get_close_matches(first, known, n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise ValueError(f"--{key}: {hint}The stages are {', '.join(names)}")
        words = [f"--{key}={fill(value)}" for key, value in stage.options.items()]
        own = []
        for key, values in given.items():
            first, _, rest = key.partition(".")
            if first not in names:
                words += [f"--{key}={value}" for value in values]
            elif first == stage.name:
                own += [f"--{rest}={fill(value)}" for value in values]
        return [*words, *own]

    def _run(
        self, stage: Stage, words: list[str], folder: Path, command: Callable[[list[str]], int]
    ) -> int:
        title = f"stage {folder.name.replace('-', f' of {len(self.stages)}, ', 1)}"
        if (folder / _DONE).is_file():
            _say(f"{title}: done before")
            return 0
        _say(f"{title}: {stage.config}")
        place = f"--trainer.default_root_dir={folder}"
        kept = folder / "checkpoints"
        goes_on = ["--ckpt_path=last"] if kept.is_dir() else []
        code = command(["fit", "-c", stage.config, place, *words, *goes_on])
        if code:
            again = "the same command" if code in _STOPPED else "put right, the command"
            _say(f"{title}: stopped; {again} with --ckpt_path last goes on with it")
            return code
        found = _checkpoint(stage, kept)
        output = f"--output={folder / 'exported'}"
        code = command(["export", f"--ckpt={found}", output, "--overwrite", *_exporting(stage)])
        if not code:
            said = json.dumps(_said(stage, words), indent=2)
            (folder / _DONE).write_text(f"{said}\n", encoding="utf-8")
        return code


def _exporting(stage: Stage) -> list[str]:
    return [flag_of(key, value) for key, value in stage.export.items()]


def has_stages(path: Path) -> bool:
    """Whether a config file is a chain of stages."""
    import yaml

    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return isinstance(content, dict) and "stages" in content


def read_chain(path: Path) -> Chain:
    """Read a chain: a mapping `stages` of names to what `Stage` has.

    Raises:
        ValueError: it is no such mapping, a key is unknown, or an option names a stage that is not
            there before it.
    """
    import yaml

    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if others := sorted(set(content) - {"stages"}):
        raise ValueError(f"{path}: beside stages there can be nothing, got {others[0]!r}")
    listed = content["stages"]
    if not isinstance(listed, dict) or not listed:
        raise ValueError(
            f"{path}: stages must be a mapping of names to their config, got {listed!r}"
        )
    stages: list[Stage] = []
    for name, said in listed.items():
        if not isinstance(said, dict) or "config" not in said:
            raise ValueError(
                f"{path}: the stage {name} needs a config: a file or the word of a recipe"
            )
        if unknown := sorted(set(said) - set(_KEYS)):
            near = difflib.get_close_matches(unknown[0], _KEYS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(_KEYS)}"
            raise ValueError(f"{path}: the stage {name} has no {unknown[0]!r}; {hint}")
        stage = Stage(str(name), **said)
        if not re.fullmatch(r"\w+", stage.name) or stage.name in _PARTS:
            raise ValueError(
                f"{path}: a stage is named by a word that is no option of a fit, got {name!r}"
            )
        if stage.checkpoint not in ("best", "last"):
            raise ValueError(
                f"{path}: checkpoint of the stage {name} must be best or last, got "
                f"{stage.checkpoint!r}"
            )
        before = {other.name for other in stages}
        for value in stage.options.values():
            for place in _PLACE.findall(str(value)):
                if place in listed and place not in before:
                    raise ValueError(
                        f"{path}: the stage {name} takes what {place} exports, and {place} does "
                        "not come before it"
                    )
        stages.append(stage)
    return Chain(tuple(stages), path.stem)


def _checkpoint(stage: Stage, folder: Path) -> Path | None:
    from .cli_checkpoint import find_checkpoint

    try:
        return find_checkpoint(stage.checkpoint, [folder], resume=False)
    except FileNotFoundError:  # a run without a validation has no best one
        return find_checkpoint("last", [folder], resume=False)


def _said(stage: Stage, words: list[str]) -> dict[str, Any]:
    return {"config": stage.config, "options": words, "export": dict(stage.export)}


def _check_same(stage: Stage, words: list[str], folder: Path) -> None:
    note = folder / _DONE
    if not note.is_file():
        return
    before, now = json.loads(note.read_text(encoding="utf-8")), _said(stage, words)
    if before != now:
        other = sorted(set(now["options"]) ^ set(before["options"])) or ["its config or export"]
        raise ValueError(
            f"the stage {stage.name} was done with other options ({', '.join(other)}): remove "
            f"{folder} and what comes behind it, or begin anew with --trainer.default_root_dir=DIR"
        )


def _say(text: str) -> None:
    sys.stdout.write(f"lmkit: {text}\n")
    sys.stdout.flush()
