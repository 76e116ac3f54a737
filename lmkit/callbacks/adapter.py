"""Small networks behind the projections of each layer, trained in its place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ..surgery.adapter import Adapter
from .surgery import SurgeryCallback

__all__ = ["AdapterCallback"]


class AdapterCallback(SurgeryCallback):
    r"""Trains bottleneck adapters and the head of the task; all else is frozen.

    An adapter adds $s \, (W_u \sigma(W_d y + b_d) + b_u)$ to what a projection gives, and starts at
    zero, so that training starts from the network as it is. Where adapters stand is their kind:

    - `houlsby`: behind the output projection of attention, and behind the last projection of the
      feed-forward block, before dropout, residual and normalization (Houlsby et al. 2019,
      arXiv:1902.00751). Scales and biases of the normalizations are trained with it.
    - `pfeiffer`: behind the last projection of the feed-forward block alone (Pfeiffer et al. 2020,
      arXiv:2005.00247), at the same place; the paper's own reads the normalized sum there.
    - `parallel`: the same, but the adapter reads the input of the block, as a second one beside it
      (He et al. 2021, arXiv:2110.04366, who take `scale=4.0`).
    - `compacter`: as `houlsby`, with weights that are sums of Kronecker products
      $\sum_i A_i \otimes (s_i t_i)$ (Karimi Mahabadi et al. 2021, arXiv:2106.04647); the $A_i$
      are shared by all adapters of this name.

    A rate of 10 to 30 times that of full tuning is usual. Adapters cannot be merged into the
    network: a checkpoint is what one keeps, and an export is ONNX.

    Args:
        name: of the adapter; several with names of their own may stand on one base.
        kind: where adapters stand, and what they are.
        size: of the bottleneck, at least 1.
        activation: `gelu`, `relu`, `silu`, `tanh` or `identity`.
        scale: $s$.
        dropout: of the bottleneck's activations, in `[0, 1)`.
        norms: whether the adapter moves the scales and biases of all normalizations of the body,
            by differences of its own that are switched with it; `null` for those of `houlsby`.
        divisions: of `compacter`, the number of products; divides `size` and the network's width.
        rank: of `compacter`, of each factor $s_i t_i$.
        targets: roles or patterns of projections in place of the kind's own, for networks whose
            names are not known; of `parallel` two, first and last of the feed-forward block.
        head: whether the head of the task is trained too. What was drawn at random always is.

    Raises:
        ValueError: an argument lies outside its range; in `setup`, another adapter has the name.
        NothingMatchedError: in `setup`, the network has no such projections; names what it has.

    Example:
        >>> AdapterCallback(kind="pfeiffer", size=48).surgery.size
        48
    """

    word = "adapter"

    def __init__(
        self,
        name: str = "default",
        kind: Literal["houlsby", "pfeiffer", "parallel", "compacter"] = "houlsby",
        size: int = 64,
        activation: Literal["gelu", "relu", "silu", "tanh", "identity"] = "gelu",
        scale: float = 1.0,
        dropout: float = 0.0,
        norms: bool | None = None,
        divisions: int = 4,
        rank: int = 1,
        targets: Sequence[str] | None = None,
        head: bool = True,
    ) -> None:
        super().__init__(
            Adapter(
                name=name,
                kind=kind,
                size=size,
                activation=activation,
                scale=scale,
                dropout=dropout,
                norms=norms,
                divisions=divisions,
                rank=rank,
                targets=tuple(targets or ()),
                head=head,
            )
        )
