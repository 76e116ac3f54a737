"""What a module refuses: a loss that is no number, and a checkpoint of something else."""

from __future__ import annotations

import difflib
import importlib
import json
import math
import sys
from collections.abc import Mapping
from contextvars import Context
from inspect import currentframe
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..functional.schedule import SCHEDULES
from ..tokenization import tokenizer_digest
from .frozen_base import decided_settings
from .network import check_fit

if TYPE_CHECKING:
    from .base import LMModule

__all__ = [
    "LossGuard",
    "check_data",
    "check_device",
    "check_same",
    "check_state",
    "check_tokenizer",
    "keep_arguments",
    "require_tokenizer",
]


class LossGuard:
    """Stops a fit at the first loss that is NaN or infinite, before a checkpoint can hold it.

    On a CPU each loss is looked at before it is differentiated. On an accelerator, where a look
    waits for all that is queued, they are looked at together on the Trainer's logging stride and
    before each checkpoint.
    """

    def __init__(self) -> None:
        self._losses: list[tuple[Tensor, Tensor | None, int, int, dict[str, Tensor]]] = []

    def watch(self, module: LMModule, loss: Tensor, index: Tensor | None, batch_idx: int) -> None:
        """Remember the loss of one batch and the rows (int64 `[B]`) it came from."""
        each = {name: part.detach() for name, part in module.task_losses.items()}
        self._losses.append((loss.detach(), index, module.current_epoch, batch_idx, each))
        if loss.device.type == "cpu":
            self.check(module)

    def check_due(self, module: LightningModule) -> None:
        """Check on the logging stride."""
        if len(self._losses) >= module.trainer.log_every_n_steps:  # type: ignore[attr-defined]
            self.check(module)

    def check(self, module: LightningModule) -> None:
        """Check all that was remembered.

        Raises:
            FloatingPointError: a loss is not finite; names the step and the rows of the batch.
        """
        losses, self._losses = self._losses, []
        for loss, index, epoch, batch_idx, each in losses:
            value = loss.item()
            if not math.isfinite(value):
                of = [name for name, part in each.items() if not math.isfinite(part.item())]
                task = f" of the task {' and '.join(of)}" if of else ""
                rows = "" if index is None else f", rows {index.tolist()}"
                raise FloatingPointError(
                    f"the loss{task} is {value} at step {module.global_step} (epoch {epoch}, batch "
                    f"{batch_idx}{rows}). The last checkpoint is from before it; lower the "
                    "learning_rate, set gradient_clip_val=1.0, or look at these rows"
                )


def keep_arguments(module: LMModule) -> None:
    """Keep the arguments of a module as its hyper-parameters, which a checkpoint holds.

    To be called by its constructor.

    Raises:
        TypeError: one is not plain data.
        ValueError: the schedule is unknown, or the learning rate below 0.
    """
    frame = currentframe()
    assert frame is not None
    # In a context of its own: Lightning's command line leaves the settings of its section in the
    # present one, and a module that is made inside another would take them for its own.
    Context().run(module.save_hyperparameters, frame=frame.f_back)
    for name, value in module.hparams.items():
        try:
            json.dumps(value)
        except TypeError as error:
            raise TypeError(
                f"{name} must be plain data (numbers, strings, lists, dictionaries), so that a "
                f"checkpoint can hold it; got {value!r}"
            ) from error
    rate = module.hparams.get("learning_rate")
    if isinstance(rate, int | float) and rate < 0:
        raise ValueError(f"learning_rate must be at least 0, got {rate}")
    schedule = module.hparams.get("schedule", "constant")
    if schedule not in SCHEDULES:
        near = difflib.get_close_matches(str(schedule), SCHEDULES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}{hint}")


def check_device(device: str | None) -> None:
    """Check that tensors can be put on a device and fetched, before any model is loaded.

    Raises:
        ValueError: there is no such device, or not on this machine.
    """
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device must be one that is here, such as cpu, got {device!r}: {reason}"
        ) from error


def require_tokenizer(module: LMModule) -> PreTrainedTokenizerBase:
    """Return the module's tokenizer, which reading and writing text needs.

    Raises:
        ValueError: it has none yet.
    """
    if module.tokenizer is None:
        raise ValueError(
            f"{type(module).__name__} has no tokenizer to write text with: fit or validate it with "
            "a data module first, load it from a checkpoint, or set module.tokenizer"
        )
    return module.tokenizer


def check_data(module: LMModule, datamodule: Any, stage: str) -> None:
    """Check that the data fit the network of a module, and warn of rows that it cannot use.

    Args:
        module: its network is built.
        datamodule: of the run, or `None`; may have `tokenizer`, `max_length`, `network_settings`
            and `unlabelled_rows`.
        stage: `"fit"`, `"validate"`, `"test"` or `"predict"`.

    Raises:
        ValueError: they have another tokenizer, longer rows or other classes than the network.
    """
    tokenizer = getattr(datamodule, "tokenizer", None)
    check_tokenizer(module.tokenizer, tokenizer)
    longest = getattr(datamodule, "max_length", None)
    check_fit(module.network, tokenizer, longest, decided_settings(datamodule))
    unlabelled = getattr(datamodule, "unlabelled_rows", 0)
    # One that is set up inside another does not decide what is learned from.
    is_trained = stage == "fit" and module.trainer.lightning_module is module
    if is_trained and unlabelled and not module.uses_unlabelled:
        rank_zero_warn(
            f"{unlabelled:,} training examples have no label (unlabelled_file), and "
            f"{type(module).__name__} learns nothing from them: they only take time. Leave "
            "unlabelled_file out, or train by a technique that uses it, such as distillation"
        )
    views = getattr(getattr(datamodule, "augmentation", None), "view", False)
    callbacks: list[Any] = module.trainer.callbacks  # type: ignore[attr-defined]
    if is_trained and views and not any(getattr(c, "reads_views", False) for c in callbacks):
        rank_zero_warn(
            "the data make another view of each example (transform_options: view), and nothing "
            "reads it: add UDACallback, or leave view out, so that the examples themselves are "
            "changed"
        )


def check_tokenizer(
    ours: PreTrainedTokenizerBase | None, theirs: PreTrainedTokenizerBase | None
) -> None:
    """Check that the data speak the ids that the weights were trained on.

    Args:
        ours: the module's, e.g. of its checkpoint.
        theirs: the data module's.

    Raises:
        ValueError: both are there and differ.
    """
    if ours is None or theirs is None or tokenizer_digest(ours) == tokenizer_digest(theirs):
        return
    raise ValueError(
        "the data were tokenized with another tokenizer than the model was trained with: the same "
        "ids mean other words. Give the data that the checkpoint was made from, or its tokenizer "
        "(data.tokenizer: the folder of an export)"
    )


def warn_of_script(class_path: str) -> None:
    """Warn of a surgery whose class no other program can import."""
    if class_path.startswith("__main__."):
        rank_zero_warn(
            f"the checkpoints will name {class_path}, which no other program can import: move the "
            "class from the script into a module"
        )


def check_same(module: LMModule | type[LMModule], checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Check that a checkpoint is one of this module's, and return its own entry.

    Args:
        module: the module that shall take it, or a class that the checkpoint's has to derive from.
        checkpoint: as it was read.

    Returns:
        The entry `lmkit` of the checkpoint with the class of its module as `owner`.

    Raises:
        ValueError: it is no checkpoint of lmkit, of another class, or of another base.
    """
    if "lmkit" not in checkpoint or "state_dict" not in checkpoint:
        raise ValueError(
            "this is no checkpoint of an lmkit module; weights from elsewhere come in as "
            "model='folder or hub name'"
        )
    saved = checkpoint["lmkit"]
    owner = _owner(saved["class"])
    cls = module if isinstance(module, type) else type(module)
    if not issubclass(owner, cls):
        raise ValueError(f"the checkpoint is of a {owner.__name__}, and this is a {cls.__name__}")
    if not isinstance(module, type):
        ours, theirs = module.base.get("fingerprint"), saved["base"].get("fingerprint")
        if ours and theirs and ours != theirs:
            raise ValueError(
                f"the checkpoint started from the base {saved['base']['name']!r} with the weights "
                f"{theirs}, and this run from {module.base['name']!r} with {ours}; give the same "
                "model, or load the checkpoint alone with lmkit.load"
            )
    return {**saved, "owner": owner}


def check_state(module: nn.Module, state: Mapping[str, Any], strict: bool) -> None:
    """Check that a state dict has every trainable weight, nothing unknown, and the right shapes.

    Raises:
        ValueError: it has not, and `strict` asks for it; names the first few.
    """
    if not strict:
        if getattr(module, "network", None) is None:
            rank_zero_warn(
                "the fit ran in processes of its own, and this one has no network to take the "
                "weights; call configure_model() before the fit, or lmkit.load(checkpoint)"
            )
        return
    own = module.state_dict()
    aliases: dict[int, set[str]] = {}
    missable: set[str] = set()
    for name, parameter in module.named_parameters(remove_duplicate=False):
        aliases.setdefault(id(parameter), set()).add(name)
        if not parameter.requires_grad:
            missable.add(name)
    for names in aliases.values():
        # Of tied weights one name is enough.
        if not names.isdisjoint(state):
            missable |= names
    faults = [f"{key} is missing" for key in own if key not in state and key not in missable]
    faults += [f"{key} is unknown" for key in state if key not in own]
    faults += [
        f"{key} is {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in state and own[key].shape != state[key].shape
    ]
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise ValueError(
            f"the checkpoint is of another structure: {'; '.join(faults[:5])}{more}. Give the "
            "model and callbacks it was made with, or load it alone with lmkit.load"
        )


def _owner(path: str) -> type[LightningModule]:
    module_name, _, name = path.partition(":")
    if module_name.startswith("lmkit."):
        importlib.import_module(module_name)
    # A class from elsewhere counts only where it is imported: a checkpoint must not import code.
    owner = getattr(sys.modules.get(module_name), name, None)
    if not (isinstance(owner, type) and issubclass(owner, LightningModule)):
        raise ValueError(
            f"the checkpoint is of the class {name!r} of {module_name!r}; import that module first"
        )
    return owner
