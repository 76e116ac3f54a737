"""The options of `lmkit export`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

__all__ = ["read_options"]


def read_options(words: Sequence[str]) -> argparse.Namespace:
    """Read the options, under the names that `lmkit.export` has for them, and `ckpt`.

    Args:
        words: of the command line, behind the command.

    Raises:
        SystemExit: an option is wrong (code 2), or help was asked for (code 0).

    Example:
        >>> read_options(["--ckpt", "a.ckpt", "--output", "out", "--quantize", "int8"]).quantize
        'int8'
    """
    parser = argparse.ArgumentParser(
        prog="lmkit export", description="Make a model from a checkpoint that works without lmkit."
    )
    parser.add_argument("--ckpt", required=True, metavar="PATH", help="a checkpoint of lmkit")
    parser.add_argument("--output", required=True, metavar="DIR", help="the folder to write")
    parser.add_argument(
        "--format", choices=("hf", "onnx"), default="hf", help="Hugging Face folder or ONNX"
    )
    parser.add_argument(
        "--base",
        metavar="PATH",
        help="where the base of a checkpoint of what was trained is now: a folder or hub name",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is in DIR")
    adapters = parser.add_mutually_exclusive_group()
    adapters.add_argument(
        "--merge",
        action="store_true",
        help="put active adapters, low-rank layers and whole numbers into plain weights",
    )
    adapters.add_argument(
        "--adapter",
        nargs="?",
        const=True,
        default=False,
        metavar="NAME",
        help="write one adapter alone, for peft or lmkit; without NAME the only or active one",
    )
    parser.add_argument(
        "--task", metavar="NAME", help="of several tasks the one to write; by default each of them"
    )
    parser.add_argument("--head", action="store_true", default=True, help=argparse.SUPPRESS)
    parser.add_argument(
        "--no_head",
        dest="head",
        action="store_false",
        help="write the encoder alone, to go on with another task (of several tasks one folder)",
    )
    parser.add_argument("--plain", action="store_true", help="refuse what only lmkit can load")
    numbers = parser.add_mutually_exclusive_group()
    numbers.add_argument(
        "--quantize",
        choices=("int8", "torchao"),
        help="write whole numbers of 8 bits, or tensors of torchao",
    )
    numbers.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="of the weights of a folder"
    )
    parser.add_argument(
        "--exclude",
        nargs="+",
        default=(),
        metavar="NAME",
        help="roles, names or patterns of layers that are not quantized",
    )
    parser.add_argument(
        "--texts",
        type=_lines,
        metavar="FILE",
        help="a text a line, by which what was quantized is compared; else random words",
    )
    return parser.parse_args(list(words))


def _lines(path: str) -> list[str]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise argparse.ArgumentTypeError(f"no text could be read from {path}: {error}") from error
    if lines := [line for line in text.splitlines() if line.strip()]:
        return lines
    raise argparse.ArgumentTypeError(f"{path} has no lines")
