"""Names of classes: which there are, in which order, and what a network calls them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from transformers import AutoConfig

from .text_rows import BadRows

__all__ = [
    "align_labels",
    "label_number",
    "network_labels",
    "sorted_labels",
    "warn_of_mixed_labels",
    "warn_of_unlikely_labels",
]


# More classes that are whole numbers may be values; of fewer nobody knows.
_MANY = 20


def sorted_labels(names: Collection[str]) -> list[str]:
    """Sort the names of classes: numbers by size, names by the alphabet.

    Example:
        >>> sorted_labels({"10", "9", "1"}), sorted_labels({"b", "10", "a"})
        (['1', '9', '10'], ['10', 'a', 'b'])
        >>> sorted_labels({"10", "9.5", "-1"})
        ['-1', '9.5', '10']
    """
    if all(_is_number(name) for name in names):
        # By name too: 1 and 01 are two classes, and every process must have them in one order.
        return sorted(names, key=lambda name: (float(name), name))
    return sorted(names)


def align_labels(found: Sequence[str], own: Sequence[str], trained: bool) -> list[str]:
    """Return the classes in the order of the network, when it knows all that the data have.

    A network with a head has an order of its own, and labels are matched with it by name, never
    by number.

    Args:
        found: classes of the data, in their order.
        own: names that the network has, in its order; empty if it has none.
        trained: whether the head is to be used as it is, and not to be replaced by a fresh one.

    Example:
        >>> align_labels(["no", "yes"], ["yes", "no"], trained=False)
        ['yes', 'no']
    """
    if not own:
        return list(found)
    # A row with a label that a trained head does not know is a bad row, and named as one.
    knows_all = all(name in own for name in found)
    return list(own) if trained or knows_all else list(found)


def warn_of_mixed_labels(found: Mapping[str, str]) -> None:
    """Warn where some labels are numbers and others names, which is mostly a slip.

    Args:
        found: name of each class -> where it stands.
    """
    numbers = [name for name in found if _is_number(name)]
    names = [name for name in found if name not in numbers]
    if numbers and names:
        rank_zero_warn(
            f"labels are both numbers and names: {numbers[0]!r} ({found[numbers[0]]}) and "
            f"{names[0]!r} ({found[names[0]]}); each is a class of its own. Correct those that "
            "should be the same"
        )


def warn_of_unlikely_labels(task: str, labels: Sequence[str]) -> None:
    """Warn of classes that are likely values to predict, or several labels in one.

    Args:
        task: `"single_label"`, `"multi_label"` or `"regression"`.
        labels: names of the classes.
    """
    numbers = [float(name) for name in labels if _is_number(name)]
    all_numbers = task == "single_label" and len(numbers) == len(labels)
    if all_numbers and (len(labels) > _MANY or not all(n.is_integer() for n in numbers)):
        rank_zero_warn(
            f"the labels are {len(labels)} numbers ({', '.join(labels[:3])} ...), and each is "
            "taken for a class of its own. If they are values to predict, pass "
            "task='regression' (lmkit probe: --task regression; lmkit fit: -c regression)"
        )
    if task == "multi_label" and (joined := [n for n in labels if ";" in n or "|" in n]):
        rank_zero_warn(
            f"{joined[0]!r} is taken for one label. If it is several, pass the label_separator "
            "that stands between them (--label_separator, of lmkit fit --data.label_separator)"
        )


def label_number(
    name: str, known: Mapping[str, int], file: str, line: int, bad: BadRows
) -> int | None:
    """Return the number of a class, or report the row and return `None`.

    Args:
        name: of the class.
        known: name -> number.
        file: where it stands.
        line: where it stands.
        bad: what to do with bad rows.
    """
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    names = ", ".join(map(repr, list(known)[:20])) + (" ..." if len(known) > 20 else "")
    fault = f"unknown label {name!r} (known: {names}){hint}"
    bad(file, line, fault, "Correct the label, or train with examples of it")
    return None


def _is_number(name: str) -> bool:
    return re.fullmatch(r"-?\d+(\.\d+)?", name) is not None


def network_labels(module: Any) -> tuple[list[str], bool]:
    """Return the names that a module's network has for its classes.

    Args:
        module: the `LightningModule` that is to be trained or used, if there is one yet.

    Returns:
        The names in the order of the head, empty if it has none or has only numbers; and whether
        the network is built already, so that its head is to be used as it is.
    """
    network = getattr(module, "network", None)
    if network is not None:
        return _names(network.config.id2label), True
    model = module.hparams.get("model") if module is not None else None
    if isinstance(model, Mapping):
        return _names(model.get("id2label") or {}), False
    if isinstance(model, str) and module.hparams.get("pretrained", True):
        try:
            return _names(AutoConfig.from_pretrained(model).id2label), False
        except (OSError, ValueError, KeyError):
            pass  # the module will say what is wrong with it
    return [], False


def _names(id2label: Mapping[Any, str]) -> list[str]:
    names = [str(id2label[key]) for key in sorted(id2label, key=int)]
    is_numbered = names == [f"LABEL_{number}" for number in range(len(names))]
    return [] if is_numbered else names
