"""The command `lmkit`: answers at once what needs no torch, and hands on the rest."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from .__about__ import __version__
from .chain import has_stages, read_chain
from .cli_recipes import find_recipe, headline, nearest, recipes, resolve_configs

__all__ = ["find_recipe", "main", "recipes"]

USAGE = """\
usage: lmkit COMMAND [options]

  fit             train: lmkit fit -c masked_lm
  validate        evaluate on the validation data: lmkit validate --ckpt_path CKPT
  test            evaluate on the test data: lmkit test --ckpt_path CKPT
  predict         write predictions.jsonl: lmkit predict --ckpt_path CKPT --data.predict_file=TXT
  export          make a Hugging Face folder or ONNX: lmkit export --ckpt CKPT --output DIR
  back-translate  say texts in other words: lmkit back-translate FILE OUT --there A --back B
  trim            leave out the tokens that texts do without: lmkit trim MODEL DIR --corpus TXT
  report          compare models in speed, size and quality: lmkit report efficiency A B
  probe           which encoder to train on a task: lmkit probe A B --data train.csv
  recipes         list the packaged recipes, or print one: lmkit recipes masked_lm
  quickstart      pre-train a small BERT on the CPU in about two minutes

  -h, --help      show this; lmkit COMMAND --help shows a command's options
  --version       show the version

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
        return _complain(f"there is no command {words[0]!r}{nearest(words[0], COMMANDS)}")
    try:
        return command(words)
    except SystemExit as stop:  # a parser has printed its help or its error
        return stop.code if isinstance(stop.code, int) else FAILED if stop.code else 0


def _train(words: list[str]) -> int:
    def build() -> Callable[[], int]:
        _quieten()
        arguments, name, configs = resolve_configs(words)
        if chains := [path for path in configs if has_stages(path)]:
            return _chain(words[0], arguments, chains[0], len(configs))
        tuned = _take_switch(arguments, "--cpu_tuning", default=words[0] == "fit")
        if tuned:
            from .launcher import tune_process

            tune_process()
        from .lightning_cli import build

        return build(arguments, name, tuned).start

    # What fails before the start is the fault of the command line or the config.
    return _guard(build, WRONG)


def _chain(command: str, arguments: list[str], path: Path, configs: int) -> Callable[[], int]:
    """Return what runs a chain of stages."""
    if command != "fit":
        raise ValueError(
            f"{path} is a chain of stages, which is fit; lmkit {command} is for one of them, with "
            "-c STAGE_FOLDER/config.yaml"
        )
    if configs > 1:
        raise ValueError(f"{path} is a chain of stages, and takes no other config beside it")
    chain = read_chain(path)
    rest = [word for word in arguments[1:] if word not in ("-c", "--config", str(path))]
    rest = [word for word in rest if word not in (f"-c={path}", f"--config={path}")]
    if {"-h", "--help", "--print_config"} & set(rest):
        return lambda: _show(path)
    return chain.planned(rest, main)


def _show(path: Path) -> int:
    _out(path.read_text(encoding="utf-8"))
    return 0


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
            text = "".join(f"{w:<{width}}  {headline(p)}\n" for w, p in known.items())
            text += "\nlmkit recipes WORD prints one; lmkit fit -c WORD runs it\n"
        _out(text)
        return lambda: 0

    return _guard(build, WRONG)


def _use_tool(words: list[str]) -> int:
    from .cli_tools import TOOLS

    return _guard(lambda: TOOLS[words[0]](words[1:]), WRONG)


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "fit": _train,
    "validate": _train,
    "test": _train,
    "predict": _train,
    "export": _export,
    "recipes": _list_recipes,
    "back-translate": _use_tool,
    "probe": _use_tool,
    "quickstart": _use_tool,
    "report": _use_tool,
    "trim": _use_tool,
}


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


def _quieten() -> None:
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")


def _complain(message: str, code: int = WRONG) -> int:
    sys.stderr.write(f"lmkit: error: {message.strip()}\n")
    return code


def _out(text: str) -> None:
    sys.stdout.write(text)
