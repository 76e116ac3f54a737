"""Units that are removed in the middle of a fit: the optimizer's state is cut alike."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..modules import LMModule
from ..modules.frozen_base import marks_kept
from ..surgery.structured_pruning import RemoveUnits, remove_units
from .weight_averages import averaged_modules

__all__ = ["cut_states", "drop_empty_groups", "forget_best", "remove_in_fit"]


def remove_in_fit(trainer: Trainer, module: LMModule, surgery: RemoveUnits) -> None:
    """Remove units of a network that is being trained; what goes on is the smaller one.

    The surgery is written into the module's ledger. A weight that is cut stays the same object
    with fewer numbers, so that optimizers, schedules, and whatever else knows it, still do; what
    an optimizer keeps of it is cut alike. Weights of which nothing is left are taken out of the
    optimizers. Averages of the weights that other callbacks keep are cut too, and what is best
    begins anew, see `forget_best`. Several ranks get a new wrapper around the module, since the old
    one waits for gradients of the old sizes.

    Args:
        trainer: between two steps.
        module: that it trains.
        surgery: what to keep.
    """
    strategy = trainer.strategy
    is_wrapped = isinstance(strategy.model, DistributedDataParallel)
    if is_wrapped:
        strategy.model = module
        gc.collect()  # its hooks on the weights go with the wrapper
    for copied in averaged_modules(trainer.callbacks, module):  # type: ignore[attr-defined]
        remove_units(copied.network, surgery)
    old = dict(module.network.named_parameters(remove_duplicate=False))
    with marks_kept(module):
        slices = remove_units(module.network, surgery)
    made = dict(module.network.named_parameters(remove_duplicate=False))
    for optimizer in trainer.optimizers:
        cut_states(optimizer, old, slices)
    gone = {id(old[name]) for name in slices.gone}
    _keep_objects(module.network, old, slices, made)
    module.operate(surgery)  # finds it done, and writes it down
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    for optimizer in trainer.optimizers:
        drop_empty_groups(optimizer, gone, schedulers)
    forget_best(trainer.callbacks)  # type: ignore[attr-defined]
    if any(part._compiled_call_impl is not None for part in module.network.modules()):
        torch.compiler.reset()  # what was compiled may have hooks in it that are gone
    if is_wrapped and isinstance(strategy, DDPStrategy):
        strategy.configure_ddp()


def forget_best(callbacks: Iterable[object]) -> None:
    """Let the network that is left not be compared with the one that was larger.

    The best checkpoint would be the one from before, which is not what is asked for, and which the
    module that is left cannot load; and early stopping would wait for a score that it had. Files
    that were written stay.

    Args:
        callbacks: of the Trainer; those of Lightning that keep the best, or stop, begin anew.
    """
    for callback in callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.best_k_models:
            rank_zero_info(
                f"{callback.best_model_path} is of the network before the removal, and the best of "
                "what follows is kept beside it"
            )
            callback.best_k_models, callback.best_model_score = {}, None
            callback.best_model_path = callback.kth_best_model_path = ""
            callback.kth_value = torch.tensor(torch.inf if callback.mode == "min" else -torch.inf)
        elif isinstance(callback, EarlyStopping):
            worst = torch.inf if callback.monitor_op is torch.lt else -torch.inf
            callback.wait_count, callback.best_score = 0, torch.tensor(worst)


@torch.no_grad()
def cut_states(
    optimizer: Optimizer, old: Mapping[str, nn.Parameter], slices: Mapping[str, Any]
) -> None:
    """Cut what an optimizer keeps of weights, as the weights themselves were cut.

    What has the shape of the weight is cut along the same dimensions, what has one number is kept.
    Of a weight with a state of another shape (factored moments, shared blocks) it begins anew.

    Args:
        optimizer: its groups hold the old weights.
        old: weights of before by name.
        slices: by the names of now, of which part of which old one each is; see `remove_units`.
    """
    known: dict[int, Any] = {}
    for part in slices.values():
        known.setdefault(id(old[part.name]), part)
    for parameter, state in optimizer.state.items():
        part = known.get(id(parameter))
        if part is None or not part.cuts:
            continue
        for key, value in list(state.items()):
            if not isinstance(value, Tensor) or value.numel() == 1:
                continue
            if value.shape != parameter.shape:
                rank_zero_warn(
                    f"{type(optimizer).__name__} keeps {key} of the shape {tuple(value.shape)} of "
                    f"{part.name}, which cannot be cut as the weight was: it begins anew"
                )
                state.clear()
                break
            state[key] = part.of(value).contiguous()


def drop_empty_groups(optimizer: Optimizer, gone: set[int], schedulers: Sequence[Any] = ()) -> None:
    """Take weights out of an optimizer, and groups of which none is left, as if never there.

    Args:
        optimizer: changed in place.
        gone: identities of the weights.
        schedulers: of it or of others; those of torch forget the rates of the groups.
    """
    for parameter in [p for p in optimizer.state if id(p) in gone]:
        del optimizer.state[parameter]
    for group in optimizer.param_groups:
        group["params"][:] = [p for p in group["params"] if id(p) not in gone]
    kept = [bool(group["params"]) for group in optimizer.param_groups]
    if all(kept):
        return
    for scheduler in schedulers:
        if isinstance(scheduler, LRScheduler) and scheduler.optimizer is optimizer:
            for word in ("base_lrs", "lr_lambdas", "_last_lr"):
                if hasattr(scheduler, word):
                    pairs = zip(getattr(scheduler, word), kept, strict=True)
                    setattr(scheduler, word, [each for each, stays in pairs if stays])
    groups = zip(list(optimizer.param_groups), kept, strict=True)
    optimizer.param_groups[:] = [group for group, stays in groups if stays]


def _keep_objects(
    network: nn.Module,
    old: Mapping[str, nn.Parameter],
    slices: Mapping[str, Any],
    made: Mapping[str, nn.Parameter],
) -> None:
    """Let each weight be the object that it was, with the numbers that are left of it."""
    before: dict[int, nn.Parameter] = {}
    for name, part in slices.items():
        same, new = old[part.name], made[name]
        before[id(new)] = same
        if new is not same:
            same.grad = None
            same.data = new.data
    for part in network.modules():
        for word, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[word] = before[id(parameter)]
