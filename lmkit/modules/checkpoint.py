"""What a module adds to a checkpoint so that it loads alone, and resumes exactly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lightning.pytorch.trainer.states import TrainerFn

from ..surgery import from_spec
from ..surgery.composition import active_adapters, adapters_of, use_adapters
from ..surgery.config_history import original_config, settings_now
from ..surgery.folding import is_folded
from ..surgery.tuning import thaw
from ..tokenization import tokenizer_from_files, tokenizer_to_files
from .checkpoint_io import read_checkpoint
from .checks import check_same, check_tokenizer
from .frozen_base import complete, leave_out, on_base_of, take_head
from .history import history_of
from .resume import pending_gradients, rewind_unfinished

if TYPE_CHECKING:
    from .base import LMModule

__all__ = ["read_entry", "standalone", "write_entry"]


def write_entry(module: LMModule, checkpoint: dict[str, Any]) -> None:
    """Write the entry `lmkit` of a checkpoint: plain data and tensors only.

    It holds the class, the network's config as it was before the ledger's surgeries and what these
    have changed in it, name and fingerprint of the base, the ledger, the fits up to this one, the
    tokenizer's files, the seed, the gradients of an accumulation window that is not full, and
    which adapters are active.
    """
    if is_folded(module.network):
        raise ValueError("the network is folded: unfold it before a checkpoint is written")
    trainer = module.trainer
    unfinished = rewind_unfinished(checkpoint, trainer.accumulate_grad_batches)
    gradients = {} if unfinished else pending_gradients(trainer, module)
    window = trainer.strategy.reduce(module.item_mean.window.clone(), reduce_op="mean")
    checkpoint["lmkit"] = {
        "class": f"{type(module).__module__}:{type(module).__qualname__}",
        "config": original_config(module.network),
        "base": dict(module.base),
        "weights": sum(key.startswith("network.") for key in module.state_dict()),
        "ledger": module.ledger,
        "history": history_of(module),
        "tokenizer": tokenizer_to_files(module.tokenizer) if module.tokenizer else None,
        "pending": {"seed": module.seed, "gradients": gradients, "window": window.cpu()},
    }
    if changed := settings_now(module.network):
        checkpoint["lmkit"]["changed"] = changed
    if adapters_of(module.network):
        checkpoint["lmkit"]["adapters"] = active_adapters(module.network)
    if module.trainable_only:
        leave_out(module, checkpoint)


def read_entry(module: LMModule, checkpoint: dict[str, Any]) -> None:
    """Replay the ledger of a checkpoint, and take over what else `write_entry` wrote.

    Raises:
        ValueError: it is of another class, base or structure.
    """
    saved = check_same(module, checkpoint)
    module.configure_model()
    take_head(module, checkpoint)
    done = module.ledger
    if saved["ledger"][: len(done)] != done:
        raise ValueError(
            f"the checkpoint's structure is {saved['ledger']}, this run's {done}; give the "
            "callbacks the arguments they had, or start anew from an export"
        )
    for spec in saved["ledger"][len(done) :]:
        module.operate(from_spec(spec))
    if "adapters" in saved:
        use_adapters(module.network, saved["adapters"])
    if saved["tokenizer"]:
        tokenizer = tokenizer_from_files(saved["tokenizer"])
        check_tokenizer(tokenizer, module.tokenizer)
        module.tokenizer = module.tokenizer or tokenizer
    complete(module, checkpoint)
    # What the module was built from itself may have moved since.
    module.base = {**saved["base"], **(module.base if "fingerprint" in module.base else {})}
    thaw(module.network, module.base.get("fresh", ()))
    # To be taken up by a fit that goes on; a new one that starts from these weights does not.
    if module._trainer is not None and module.trainer.state.fn == TrainerFn.FITTING:
        module.pending = saved["pending"]


@contextmanager
def standalone(
    cls: type[LMModule], path: Any, given: Mapping[str, Any]
) -> Iterator[tuple[type[LMModule], dict[str, Any], dict[str, Any]]]:
    """Find how to build the module of a checkpoint, without the base if it can be done without.

    Args:
        cls: the checkpoint's class must be this or derive from it.
        path: of the checkpoint.
        given: arguments of the module that come before those of the checkpoint.

    Yields:
        The class; the arguments to build it with; and what its hyper-parameters are to say then.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is cut short, holds code, or is of another class; or it leaves weights out,
            and there is no base to take them from.
    """
    checkpoint = read_checkpoint(path, mmap=True)
    saved = check_same(cls, checkpoint)
    weights = sum(key.startswith("network.") for key in checkpoint["state_dict"])
    owner: type[LMModule] = saved["owner"]
    said = checkpoint["hyper_parameters"]
    others = {key: value for key, value in given.items() if key not in ("model", "pretrained")}
    if "model" in given or weights < saved["weights"]:
        named = given.get("model", said["model"])
        with on_base_of(saved, named, path) as base:
            changed = owner.arguments_for(said, base["model"], given.get("pretrained"))
            yield owner, {**changed, **others}, {"model": named}
    else:
        alone = owner.arguments_for(said, saved["config"], pretrained=False)
        before = {key: said[key] for key in ("model", "pretrained", *alone)}
        yield owner, {**alone, **given}, before
