"""The options of `lmkit probe`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

__all__ = ["READING", "read_options"]

#: Options that tell how a file is read: arguments of its data module of the same names.
READING = (
    "text_column",
    "text_pair_column",
    "label_column",
    "label_separator",
    "column_names",
    "encoding",
    "on_bad_row",
)


def read_options(words: Sequence[str]) -> argparse.Namespace:
    """Read the options, under the names that `lmkit.transferability` has for them, and `json`.

    Args:
        words: of the command line, behind the command.

    Raises:
        SystemExit: an option is wrong (code 2), or help was asked for (code 0).

    Example:
        >>> read_options(["a", "b", "--data", "train.csv"]).models
        ['a', 'b']
    """
    parser = argparse.ArgumentParser(
        prog="lmkit probe",
        description="Compare encoders, frozen, by what they know of a task: which of them to train "
        "on it. Nothing is trained.",
    )
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="checkpoints, exports with or without a head, or hub names, or NAME=MODEL",
    )
    parser.add_argument(
        "--data",
        required=True,
        metavar="FILE",
        help="examples with labels, or the config.yaml of a run, for its data",
    )
    parser.add_argument(
        "--task",
        choices=("single_label", "multi_label", "regression", "tagging"),
        help="of examples (default: tagging of .conll, single_label of other files)",
    )
    for part in ("text", "text_pair", "label"):
        text = "of a table, if it is not obvious"
        parser.add_argument(f"--{part}_column", metavar="NAME", help=text)
    parser.add_argument(
        "--label_separator", metavar="TEXT", help="of multi_label in a field (default: ,)"
    )
    parser.add_argument(
        "--column_names", nargs="+", metavar="NAME", help="of .csv or .tsv without a header"
    )
    parser.add_argument("--encoding", help="of FILE (default: utf-8)")
    parser.add_argument(
        "--on_bad_row", choices=("error", "skip"), help="whether to leave them out (default: error)"
    )
    parser.add_argument(
        "--examples",
        type=int,
        default=1000,
        metavar="N",
        help="at most; of tagging sentences of so many words (default: 1000)",
    )
    parser.add_argument(
        "--pooling",
        choices=("first", "mean", "last"),
        help="what of the tokens of a text is taken (default: as the head of the architecture)",
    )
    parser.add_argument("--batch_size", type=int, default=32, help="(default: 32)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: 0)")
    parser.add_argument("--device", help="of the models, such as cuda or cpu")
    parser.add_argument("--json", metavar="FILE", help="write the figures")
    return parser.parse_args(list(words))
