"""Building the network of a module, and checking that data and Trainer go with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..surgery import to_spec
from ..surgery.config_history import config_remembered
from ..surgery.structure_folder import saved_surgeries
from ..surgery.tuning import thaw
from ..types import Surgery
from .checkpoint_io import write_atomically
from .checks import check_data, warn_of_script
from .frozen_base import decided_settings, describe_base, leaves_out, marks_kept
from .history import read_history
from .speed import set_dropout
from .step_log import make_metrics

if TYPE_CHECKING:
    from .base import LMModule

__all__ = ["assemble", "check_run", "perform"]


def assemble(module: LMModule) -> None:
    """Build the network and the metrics of a module, with what its data decide."""
    datamodule = module._trainer and getattr(module._trainer, "datamodule", None)
    if module.tokenizer is None:
        module.tokenizer = getattr(datamodule, "tokenizer", None)
    named, pretrained = module.hparams["model"], module.hparams["pretrained"]
    how = named, pretrained, module.tokenizer, decided_settings(datamodule)
    network, loaded = module.build(module.auto_class, *how)
    # What an export with changed structure says of itself.
    module._ledger = saved_surgeries(named, pretrained)
    if module.hparams["dropout"] is not None:
        set_dropout(network, module.hparams["dropout"])
    module.network, module.base = network, module.base | describe_base(network, loaded)
    if earlier := read_history(named, pretrained):
        module.base["history"] = earlier
    module.metrics = make_metrics(module)


def perform(module: LMModule, surgery: Surgery) -> None:
    """Change the network of a module, and write down how, unless that was done before."""
    spec = to_spec(surgery)
    if spec in module._ledger:
        return
    with marks_kept(module), config_remembered(module.network):
        surgery(module.network)
    warn_of_script(spec["class_path"])
    module._ledger.append(spec)
    thaw(module.network, module.base.get("fresh", ()))
    module.network.train()


def check_run(module: LMModule, stage: str) -> None:
    """Check that the data fit the network, and see to it that checkpoints are written whole."""
    datamodule = getattr(module.trainer, "datamodule", None)
    check_data(module, datamodule, stage)
    module.tokenizer = getattr(datamodule, "tokenizer", None) or module.tokenizer
    module._speed.set_up(module)
    if stage == "fit":
        module.base["fit"] = True
        # A module that was loaded to be used is in eval mode, and Lightning would keep it so.
        module.train()
        module.trainable_only = leaves_out(module.trainer)
    write_atomically(module.trainer.strategy)
