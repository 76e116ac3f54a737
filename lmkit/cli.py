"""The command `lmkit`: answers at once what needs no torch, and hands on the rest."""

from __future__ import annotations

import difflib
import logging
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from .__about__ import __version__

__all__ = ["find_recipe", "main", "recipes"]

USAGE = """\
usage: lmkit COMMAND [options]

  fit          train: lmkit fit -c masked_lm
  validate     evaluate on the validation data: lmkit validate --ckpt_path CKPT
  test         evaluate on the test data: lmkit test --ckpt_path CKPT
  predict      write predictions.jsonl: lmkit predict --ckpt_path CKPT --data.predict_file=TXT
  export       make a Hugging Face folder or ONNX: lmkit export --ckpt CKPT --output DIR
  recipes      list the packaged recipes, or print one: lmkit recipes masked_lm
  quickstart   pre-train a small BERT on the CPU in about two minutes

  -h, --help   show this; lmkit COMMAND --help shows a command's options
  --version    show the version

-c takes a YAML file or the word of a recipe; options after it change single values:
  lmkit fit -c masked_lm --model.learning_rate=1e-4 --trainer.max_steps=1000
A callback's are changed by its class, and a further callback is added by +=:
  lmkit fit -c lora --trainer.callbacks.LoRACallback.rank=4
  lmkit fit -c lora --trainer.callbacks+=LossPlotCallback
--cpu_tuning=false leaves allocator, pages and threads of the process as they are.
A run that stopped goes on with the same command and --ckpt_path last.
LMKIT_DEBUG=1 shows the stack trace of an error.
"""

# Modules of Lightning whose errors are for users: early stopping names the metrics that there are,
# where the one to watch is none of them; the other one refuses two callbacks of one state.
_PLAIN = (
    "lightning.pytorch.callbacks.early_stopping",
    "lightning.pytorch.trainer.connectors.callback_connector",
)

#: Exit codes: of a run that failed, of a wrong command line or config, of Ctrl-C.
FAILED, WRONG, INTERRUPTED = 1, 2, 130

RECIPES = Path(__file__).parent / "recipes"


def main(args: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        args: the command and its options; those of the process by default.

    Returns:
        The exit code: 0, or 1 for a run that failed, 2 for a wrong command line or config, 130
        for Ctrl-C, 143 for a termination by the system.
    """
    words = list(sys.argv[1:] if args is None else args)
    if not words or words[0] in ("-h", "--help", "help"):
        _out(USAGE)
        return 0
    if words[0] == "--version":
        _out(f"lmkit {__version__}\n")
        return 0
    command = COMMANDS.get(words[0])
    if command is None:
        return _complain(f"there is no command {words[0]!r}{_nearest(words[0], COMMANDS)}")
    try:
        return command(words)
    except SystemExit as stop:  # a parser has printed its help or its error
        return stop.code if isinstance(stop.code, int) else FAILED if stop.code else 0


def recipes() -> dict[str, Path]:
    """Return the packaged recipes: files by word."""
    return {path.stem: path for path in sorted(RECIPES.rglob("*.yaml"))}


def find_recipe(word: str) -> Path:
    """Find a config file by its path, or a packaged recipe by its word.

    Raises:
        FileNotFoundError: there is neither; names the nearest recipe.

    Example:
        >>> find_recipe("masked_lm").name
        'masked_lm.yaml'
    """
    path = Path(word)
    if path.is_file():
        return path
    if path.suffix or len(path.parts) > 1:
        raise FileNotFoundError(f"there is no config file {word}")
    known = recipes()
    if word not in known:
        raise FileNotFoundError(
            f"there is no file and no recipe {word!r}{_nearest(word, known)} "
            "(lmkit recipes lists all)"
        )
    return known[word]


def _train(words: list[str]) -> int:
    def build() -> Callable[[], int]:
        _quieten()
        arguments, name = _resolve_configs(words)
        tuned = _take_switch(arguments, "--cpu_tuning", default=words[0] == "fit")
        if tuned:
            from .launcher import tune_process

            tune_process()
        from .lightning_cli import build

        return build(arguments, name, tuned).start

    # What fails before the start is the fault of the command line or the config.
    return _guard(build, WRONG)


def _export(words: list[str]) -> int:
    from .cli_export import read_options

    options = read_options(words[1:])

    def build() -> Callable[[], int]:
        if not Path(options.ckpt).exists():
            raise FileNotFoundError(f"there is no checkpoint at {options.ckpt}")
        output = Path(options.output)
        if output.is_dir() and any(output.iterdir()) and not options.overwrite:
            raise FileExistsError(f"{output} is there already; --overwrite replaces it")
        _quieten()
        from .exporting import export

        def run() -> int:
            how = {name: value for name, value in vars(options).items() if name != "ckpt"}
            _out(f"{export(options.ckpt, **how)}\n")
            return 0

        return run

    return _guard(build, WRONG)


def _list_recipes(words: list[str]) -> int:
    def build() -> Callable[[], int]:
        if words[1:2] and words[1] not in ("-h", "--help"):
            text = find_recipe(words[1]).read_text(encoding="utf-8")
        else:
            known = recipes()
            width = max(map(len, known), default=0)
            text = "".join(f"{w:<{width}}  {_headline(p)}\n" for w, p in known.items())
            text += "\nlmkit recipes WORD prints one; lmkit fit -c WORD runs it\n"
        _out(text)
        return lambda: 0

    return _guard(build, WRONG)


def _quickstart(words: list[str]) -> int:
    def build() -> Callable[[], int]:
        _quieten()
        from .quickstart import main as quickstart

        return lambda: quickstart(words[1:]) or 0

    return _guard(build, WRONG)


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "fit": _train,
    "validate": _train,
    "test": _train,
    "predict": _train,
    "export": _export,
    "recipes": _list_recipes,
    "quickstart": _quickstart,
}


def _resolve_configs(words: list[str]) -> tuple[list[str], str | None]:
    """Replace the words of recipes by their files; return the first one's word too."""
    resolved, name = list(words), None
    for place, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option not in ("-c", "--config"):
            continue
        if not equals:
            place, value = place + 1, words[place + 1] if place + 1 < len(words) else ""
            if not value:
                raise ValueError(f"{option} needs a config file or the word of a recipe")
        path = find_recipe(value)
        _check_yaml(path)
        resolved[place] = f"{option}={path}" if equals else str(path)
        name = name or path.stem
    return resolved, name


def _take_switch(words: list[str], option: str, default: bool) -> bool:
    """Take an option out of the words that has to be known before torch is there."""
    value = default
    for word in [word for word in words if word.split("=")[0] == option]:
        given = word.partition("=")[2].lower() or "true"
        if given not in ("true", "false"):
            raise ValueError(f"{option} must be true or false, as in {option}=false; got {given!r}")
        value = given == "true"
        words.remove(word)
    return value


def _check_yaml(path: Path) -> None:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise ValueError(f"{path}, line {line}: this is no YAML: {error.problem}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold settings such as 'model:' and 'data:'")


def _guard(build: Callable[[], Callable[[], int]], code: int) -> int:
    """Build and run, and turn the errors of users into one message and an exit code."""
    try:
        run = build()
        code = FAILED
        return run()
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        if os.environ.get("LMKIT_DEBUG", "0") not in ("", "0") or not _is_for_users(error):
            raise
        return _complain(str(error), code)


def _is_for_users(error: Exception) -> bool:
    """Whether the message says what to do; a bug's does not, and its trace is wanted."""
    if isinstance(error, TypeError | RuntimeError | FloatingPointError):
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        raiser = "" if trace is None else str(trace.tb_frame.f_globals["__name__"])
        return raiser.startswith(("lmkit.", *_PLAIN))
    # Lightning's own class for wrong settings is known by its name: to import it takes seconds.
    is_lightnings = any(c.__name__ == "MisconfigurationException" for c in type(error).__mro__)
    return isinstance(error, ValueError | OSError | ImportError) or is_lightnings


def _headline(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        return file.readline().removeprefix("#").strip()


def _nearest(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"


def _quieten() -> None:
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    # transformers imports torchao where it is there, which reports on kernels of other machines,
    # and torch on how torchao registers its types.
    for name in ("torchao", "torchao.kernel.intmm", "torch.utils._pytree"):
        logging.getLogger(name).addFilter(_is_no_import)


def _is_no_import(record: logging.LogRecord) -> bool:
    said = record.getMessage()
    return not said.startswith(("Failed to load", "<enum '", "Warning: Detected no triton"))


def _complain(message: str, code: int = WRONG) -> int:
    sys.stderr.write(f"lmkit: error: {message.strip()}\n")
    return code


def _out(text: str) -> None:
    sys.stdout.write(text)
