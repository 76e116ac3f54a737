"""What makes a network train faster and changes nothing of what it learns."""

from __future__ import annotations

import shutil
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch import Trainer
from torch import nn
from transformers import PreTrainedModel

from ..surgery.depth import layer_stacks
from .attention import use_fast_attention
from .network_inputs import check_packing
from .optimizer import planned_steps

if TYPE_CHECKING:
    from .base import LMModule

__all__ = ["Speed", "set_dropout", "should_compile"]

# Below this many steps compiling on a CPU takes longer than it saves.
_WORTHWHILE_STEPS = 2000


class Speed:
    """The fast attention and the compiled layers of a module, for as long as a Trainer runs it."""

    def __init__(self) -> None:
        self._attention: list[tuple[PreTrainedModel, str]] = []
        self._compiled: list[nn.Module] = []

    def set_up(self, module: LMModule) -> None:
        """Choose the attention, and check that packed texts stay apart."""
        datamodule = getattr(module.trainer, "datamodule", None)
        modes = {getattr(datamodule, f"{name}batching", None) for name in ("", "eval_")}
        for network in module.networks:
            if before := use_fast_attention(network):
                self._attention.append((network, before))
            if "pack" in modes:
                longest = cast(Any, datamodule).max_length
                check_packing(network, longest, causal=module.is_causal)

    def compile(self, module: LMModule) -> None:
        """Compile each layer by itself, if it pays: the code of one serves for all."""
        wanted = module.hparams["compile"]
        if wanted is False or not (wanted or should_compile(module.network, module.trainer)):
            return
        stacks = [stack for network in module.networks for stack in layer_stacks(network).values()]
        for layer in (layer for stack in stacks for layer in stack):
            layer.compile()
            # Evaluation has batches of other shapes, each of which would be compiled anew.
            layer._compiled_call_impl = partial(_in_training, layer, layer._compiled_call_impl)
            self._compiled.append(layer)

    def tear_down(self, module: LMModule) -> None:
        """Leave the network as it was."""
        for layer in self._compiled:
            layer._compiled_call_impl = None
        self._compiled.clear()
        for network, before in self._attention:
            use_fast_attention(network, before)
        self._attention.clear()


def _in_training(layer: nn.Module, compiled: Any, *args: Any, **kwargs: Any) -> Any:
    return (compiled if layer.training else layer._call_impl)(*args, **kwargs)


def set_dropout(network: nn.Module, rate: float) -> None:
    """Set every dropout of a network; its config stays, for those that fine-tune it later.

    Args:
        network: changed in place: `nn.Dropout` layers, and the rates that layers keep as numbers.
        rate: in `[0, 1)`.

    Raises:
        ValueError: the rate lies outside its range.

    Example:
        >>> layer = nn.TransformerEncoderLayer(8, 2)
        >>> set_dropout(layer, 0.0)
        >>> layer.dropout.p, layer.self_attn.dropout
        (0.0, 0.0)
    """
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"dropout must lie in [0, 1), got {rate}")
    for module in network.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = rate
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, rate)


def should_compile(network: nn.Module, trainer: Trainer) -> bool:
    """Whether `torch.compile` pays: on CUDA; on a CPU with AMX in a long run without dropout.

    Without AMX the matrix products take three quarters of the time, and compiling the rest gains
    nothing. inductor draws dropout on a CPU so slowly that the compiled network is the slower one.
    """
    if trainer.strategy.root_device.type == "cuda":
        return True
    steps = planned_steps(trainer)
    has_dropout = any(
        isinstance(module, nn.modules.dropout._DropoutNd) and module.p
        for module in network.modules()
    )
    is_long = steps is None or steps >= _WORTHWHILE_STEPS
    has_amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    return has_amx and is_long and not has_dropout and shutil.which("g++") is not None
