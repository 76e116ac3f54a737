"""The commands that work on what is there, such as trim and report; without torch yet."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from .cli_probe import READING, read_options
from .model_names import named_models

__all__ = ["TOOLS"]


def _trim(words: list[str]) -> Callable[[], int]:
    parser = argparse.ArgumentParser(
        prog="lmkit trim",
        description="Leave out the tokens of a model that texts do without. Of texts whose tokens "
        "are kept it says exactly what it said before.",
    )
    parser.add_argument("model", metavar="MODEL", help="a checkpoint, an export, or a hub name")
    parser.add_argument("output", metavar="DIR", help="the folder to write")
    parser.add_argument(
        "--corpus",
        required=True,
        nargs="+",
        metavar="FILE",
        help="texts of the kind that the model is to read: .txt, .jsonl, .csv, .tsv, .parquet",
    )
    parser.add_argument(
        "--text_column",
        action="append",
        default=[],
        metavar="NAME",
        help="of a table, if it is not obvious; give it again for a second column",
    )
    parser.add_argument("--encoding", default="utf-8", help="of the corpus (default: utf-8)")
    parser.add_argument(
        "--min_count",
        type=int,
        default=1,
        metavar="N",
        help="how often a token has to come to be kept (default: 1)",
    )
    parser.add_argument(
        "--format", choices=("hf", "onnx"), default="hf", help="Hugging Face folder or ONNX"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is in DIR")
    options = parser.parse_args(words)
    output = Path(options.output)
    if output.exists() and not options.overwrite and not _is_empty(output):
        raise FileExistsError(f"{output} is there already; --overwrite replaces it")
    if Path(options.model).suffix == ".ckpt" and not Path(options.model).exists():
        raise FileNotFoundError(f"there is no checkpoint at {options.model}")
    _quieten()
    from .trimming import corpus_texts, trim

    def run() -> int:
        texts = corpus_texts(options.corpus, options.text_column, encoding=options.encoding)
        how = options.min_count, options.format, options.overwrite
        folder, made = trim(options.model, output, texts, *how)
        before, after = made.parameters
        _out(
            f"{made.before:,} -> {made.after:,} tokens, {before:,} -> {after:,} parameters "
            f"({after / before:.1%})\n{folder}\n"
        )
        return 0

    return run


def _report(words: list[str]) -> Callable[[], int]:
    reports = argparse.ArgumentParser(prog="lmkit report", description="Reports on models.")
    kinds = reports.add_subparsers(metavar="REPORT", required=True)
    parser = kinds.add_parser(
        "efficiency",
        help="what models cost and are worth, beside a dense one",
        description="Measure size, memory, latency and quality of models beside a dense one.",
    )
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="checkpoints, exports, folders with an ONNX file or hub names, or NAME=MODEL; the "
        "first one is the dense one that the others are compared with",
    )
    parser.add_argument(
        "--data",
        nargs="+",
        metavar="FILE",
        help="the config.yaml of a run, for its data and metrics; or texts, for agreement alone",
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures")
    parser.add_argument("--plot", metavar="FILE", help="draw quality against latency and size")
    parser.add_argument(
        "--shapes",
        nargs="+",
        type=_shape,
        default=[(1, 32), (32, 128)],
        metavar="ROWSxTOKENS",
        help="of the runs that are timed (default: 1x32 32x128)",
    )
    parser.add_argument("--rounds", type=int, default=20, help="runs of each (default: 20)")
    parser.add_argument("--threads", type=int, default=1, help="of the processor (default: 1)")
    parser.add_argument("--split", choices=("test", "val"), help="by default test, if it is there")
    parser.add_argument("--metric", metavar="NAME", help="the main metric, without val/")
    parser.add_argument("--no_memory", action="store_true", help="do not measure memory")
    options = reports.parse_args(words)
    models = named_models(options.models)
    _quieten()
    from rich.console import Console

    from .report import efficiency
    from .report.config_data import data_from_config

    data = options.data
    if data and Path(data[0]).suffix in (".yaml", ".yml"):
        data = data_from_config(data[0])

    def run() -> int:
        made = efficiency(
            models,
            data,
            shapes=options.shapes,
            rounds=options.rounds,
            threads=options.threads,
            split=options.split,
            metric=options.metric,
            memory=not options.no_memory,
        )
        Console().print(made.table())
        for path, write in ((options.json, made.to_json), (options.plot, made.plot)):
            if path:
                _out(f"{write(path)}\n")
        return 0

    return run


def _shape(text: str) -> tuple[int, int]:
    rows, _, tokens = text.partition("x")
    if not (rows.isdecimal() and tokens.isdecimal() and int(rows) and int(tokens)):
        raise argparse.ArgumentTypeError(f"must be ROWSxTOKENS, such as 1x32, got {text!r}")
    return int(rows), int(tokens)


def _back_translate(words: list[str]) -> Callable[[], int]:
    parser = argparse.ArgumentParser(
        prog="lmkit back-translate",
        description="Say the texts of a file in other words, by way of another language. A pass "
        "that was killed goes on with the same command.",
    )
    parser.add_argument("file", metavar="FILE", help=".jsonl, .csv, .tsv, .parquet or .txt")
    parser.add_argument("output", metavar="OUTPUT", help="the .jsonl to write")
    for way, example in (("there", "en-es"), ("back", "es-en")):
        either = parser.add_mutually_exclusive_group(required=True)
        either.add_argument(f"--{way}", metavar="MODEL", help="an encoder-decoder, folder or hub")
        either.add_argument(
            f"--{way}_command",
            type=shlex.split,
            metavar="WORDS",
            help=f"a program that reads and writes lines, as in 'apertium -u {example}'",
        )
        parser.add_argument(f"--{way}_prefix", default="", metavar="TEXT", help="before each text")
    parser.add_argument("--text_column", metavar="NAME", help="of a table, if it is not obvious")
    parser.add_argument("--copies", type=int, default=1, metavar="N", help="of each (default: 1)")
    parser.add_argument(
        "--temperature", type=float, default=0.9, help="of the draws of models (default: 0.9)"
    )
    parser.add_argument("--beams", type=int, metavar="N", help="search in place of drawing")
    parser.add_argument("--max_new_tokens", type=int, metavar="N", help="of models, for a text")
    parser.add_argument(
        "--similarity_model", metavar="MODEL", help="an encoder; without one it is chrF"
    )
    parser.add_argument(
        "--min_similarity", type=float, metavar="S", help="(default: 0.7 with an encoder, else 0.3)"
    )
    parser.add_argument(
        "--length_ratio",
        nargs=2,
        type=float,
        default=(0.5, 2.0),
        metavar=("LOW", "HIGH"),
        help="of translation to original (default: 0.5 2)",
    )
    parser.add_argument("--batch_size", type=int, default=32, help="(default: 32)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    parser.add_argument("--device", help="of the models, such as cuda or cpu")
    parser.add_argument("--encoding", default="utf-8", help="of FILE (default: utf-8)")
    parser.add_argument("--overwrite", action="store_true", help="replace OUTPUT")
    options = vars(parser.parse_args(words))
    if Path(options["output"]).exists() and not options["overwrite"]:
        raise FileExistsError(f"{options['output']} is there already; --overwrite replaces it")
    for way in ("there", "back"):
        command = options.pop(f"{way}_command")
        options[way] = options[way] or command
    options["length_ratio"] = tuple(options["length_ratio"])
    _quieten()
    from .back_translation import back_translate

    def run() -> int:
        made = back_translate(options.pop("file"), **options)
        _out(
            f"{made.written:,} of {made.translations:,} translations of {made.rows:,} rows "
            f"(dropped: {made.reasons})\n{made.path}\n"
        )
        return 0

    return run


def _probe(words: list[str]) -> Callable[[], int]:
    options = vars(read_options(words))
    models, file = named_models(options.pop("models")), options.pop("json")
    if not Path(options["data"]).exists():
        raise FileNotFoundError(f"there is no file {options['data']}")
    _quieten()
    from rich.console import Console

    from .modules.checks import check_device
    from .transfer import transferability
    from .transfer.target import target_data

    check_device(options["device"])
    asked = {name: options.pop(name) for name in READING}
    reading = {name: value for name, value in asked.items() if value is not None}
    options["data"] = target_data(options["data"], options.pop("task"), reading)

    def run() -> int:
        made = transferability(models, **options)
        Console().print(made.table())
        if file:
            _out(f"{made.to_json(file)}\n")
        return 0

    return run


def _quickstart(words: list[str]) -> Callable[[], int]:
    _quieten()
    from .quickstart import main

    return lambda: main(words) or 0


#: From the words behind a command to what runs it; a wrong word raises before anything runs.
TOOLS: dict[str, Callable[[list[str]], Callable[[], int]]] = {
    "back-translate": _back_translate,
    "probe": _probe,
    "quickstart": _quickstart,
    "report": _report,
    "trim": _trim,
}


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _quieten() -> None:
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")


def _out(text: str) -> None:
    sys.stdout.write(text)
