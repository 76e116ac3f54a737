"""Learned factors for keys, values and the inside of feed-forward blocks."""

from __future__ import annotations

from collections.abc import Sequence

from ..surgery.ia3 import IA3
from .surgery import SurgeryCallback

__all__ = ["IA3Callback"]


class IA3Callback(SurgeryCallback):
    r"""Trains factors of activations, and the head of the task; all else is frozen.

    $l_k \odot k$ and $l_v \odot v$ in attention, and $W (l_{ff} \odot x)$ in the last projection of
    each feed-forward block (Liu et al. 2022, arXiv:2205.05638). For each layer that is
    $d_k + d_v + d_{ff}$ numbers, fewer than any other technique has. All start at one, so that
    training starts from the network as it is.

    A rate of 50 to 200 times that of full tuning is usual: the paper's is 3e-3.

    Args:
        name: of the adapter; several with names of their own may stand on one base, and the
            factors of the active ones are multiplied.
        targets: roles, `all`, or patterns of names of linear layers whose results are multiplied.
            Where one projection computes query, key and value, the query is multiplied too.
        inputs: the same of layers whose inputs are.
        head: whether the head of the task is trained too. What was drawn at random always is.

    Raises:
        ImportError: in `setup`, peft is not installed.
        ValueError: nothing is named; in `setup`, a layer is named twice, or another adapter has the
            name.
        NothingMatchedError: in `setup`, a target matches nothing; names what is near.

    Example:
        >>> IA3Callback(targets=["value"], inputs=[]).surgery.targets
        ('value',)
    """

    word = "ia3"

    def __init__(
        self,
        name: str = "default",
        targets: Sequence[str] = ("key", "value"),
        inputs: Sequence[str] = ("ffn_output",),
        head: bool = True,
    ) -> None:
        super().__init__(IA3(name, targets, inputs, head))
