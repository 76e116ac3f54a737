"""Adapters of several tasks, mixed by attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import LightningModule, Trainer

from ..modules import LMModule
from ..surgery import from_spec, to_spec
from ..surgery.adapter import Adapter
from ..surgery.adapter_fusion import AdapterFusion
from ..surgery.fusion_attention import FusionAttention
from .surgery import SurgeryCallback

__all__ = ["AdapterFusionCallback"]


class AdapterFusionCallback(SurgeryCallback):
    r"""Trains a mixture of adapters that were trained before, and the head; all else is frozen.

    At each adapted layer $y + \sum_t \alpha_t V z_t$ with $\alpha = \mathrm{softmax}_t(Q y \cdot K
    z_t)$, where $z_t$ is what adapter $t$ adds to the projection's result $y$ (Pfeiffer et al.
    2020, arXiv:2005.00247). $Q$, $K$ and $V$ are trained: three square matrices for each layer,
    which is more than adapters have. At first each adapter counts about the same.

    Each time that the Trainer logs, the attention that each adapter got is logged as
    `adapter_fusion/<name>`: the mean over layers and positions (padding included) of a batch.

    What starts from a checkpoint of such a fit, to go on, to test or to predict, takes the adapters
    from there, and the files need not be there any more.

    Args:
        adapters: checkpoints (or exported adapters) by the name that each adapter shall have here.
            Their base has to be this network's.
        names: of the adapters to be mixed; those of `adapters` by default. Others have to be in the
            network, e.g. from an `AdapterCallback` before this one.
        name: of the fusion, under which it is switched.
        head: whether the head of the task is trained too. What was drawn at random always is.

    Raises:
        ValueError: no adapters are named; in `setup`, the network has none of a name, or a file
            belongs to another base or holds an adapter of another kind, such as LoRA.
        FileNotFoundError: when a run starts, a file is gone and no checkpoint holds the adapters.
        TypeError: in `setup`, adapters shall be read for a module that is not lmkit's.

    Example:
        >>> AdapterFusionCallback({"topics": "topics.ckpt", "tone": "tone.ckpt"}).surgery.names
        ('topics', 'tone')
    """

    word = "adapter_fusion"

    def __init__(
        self,
        adapters: Mapping[str, str] | None = None,
        names: Sequence[str] | None = None,
        name: str = "fusion",
        head: bool = True,
    ) -> None:
        self.adapters = dict(adapters or {})
        super().__init__(AdapterFusion(tuple(names or self.adapters), name, head))
        self._attention = FusionAttention()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Add the adapters from their files, and fuse them, once.

        Which checkpoint will be restored is not known yet. If a file is gone, adapters and fusion
        are left to that; a run that restores none is stopped when it starts.
        """
        if not self.adapters or self._add(pl_module):
            super().setup(trainer, pl_module, stage)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that the adapters have come, from their files or a checkpoint."""
        self._check_there(pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check it where nothing was fit."""
        self._check_there(pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check it where nothing was fit."""
        self._check_there(pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check it where nothing was fit."""
        self._check_there(pl_module)

    def _add(self, pl_module: LightningModule) -> bool:
        """Add the adapters, and return whether they are there to be fused."""
        from ..adapters import add_adapter

        if not isinstance(pl_module, LMModule):
            raise TypeError(
                "AdapterFusionCallback reads adapters for modules of lmkit, got a "
                f"{type(pl_module).__name__}; add them by hand, and give only their names"
            )
        if to_spec(self.surgery) in pl_module.ledger:
            return True
        if not all(Path(source).exists() for source in self.adapters.values()):
            return False
        for name, source in self.adapters.items():
            add_adapter(pl_module, source, name)
            self._check_kind(pl_module, name)
        return True

    def _check_there(self, module: LightningModule) -> None:
        if not isinstance(module, LMModule) or to_spec(self.surgery) in module.ledger:
            return
        gone = [
            f"{n}: {source}" for n, source in self.adapters.items() if not Path(source).exists()
        ]
        raise FileNotFoundError(
            f"there is nothing at the places of the adapters {', '.join(gone)}; give where they "
            "are now, or start from a checkpoint of the fusion, which holds them"
        )

    def _check_kind(self, module: LMModule, name: str) -> None:
        own = [from_spec(s) for s in module.ledger if s["init_args"].get("name") == name]
        if not any(isinstance(surgery, Adapter) for surgery in own):
            kinds = " and ".join(type(surgery).__name__ for surgery in own)
            raise ValueError(
                f"adapters[{name!r}] is {self.adapters[name]}, which holds {kinds} and no "
                "bottleneck adapter, and only those can be fused: train one with AdapterCallback "
                "(lmkit fit -c adapter), or weigh adapters of other kinds with "
                "lmkit.adapters.use_adapters"
            )

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Look at the attention of a step that is logged."""
        if trainer.loggers and trainer._logger_connector.should_update_logs:
            self._attention.begin(pl_module, [cast(AdapterFusion, self.surgery).name])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the mean attention of each adapter."""
        for adapters in self._attention.end().values():
            for name, mean in adapters.items():
                pl_module.log(f"{self.word}/{name}", mean, batch_size=1)
