"""Layers whose weights are products of two narrow matrices, in place of the dense ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..modules import LMModule
from ..modules.resume import coming_ledger
from ..surgery import from_spec, to_spec
from ..surgery.arguments import check_whole
from ..surgery.calibration import RowFisher, SecondMoments
from ..surgery.low_rank import LowRank, matrix_places, matrix_shape, put_factors, token_table
from ..surgery.low_rank_choice import (
    METHODS,
    Choice,
    LayerRank,
    RankRule,
    choose_ranks,
    target_layers,
)
from .calibration import gather
from .chosen_surgery import entry_of, why_no_entry

__all__ = ["LowRankCallback"]


class LowRankCallback(Callback):
    r"""Factorizes linear layers of a trained network before a fit: $W \approx A B$ with $r$ ranks.

    $r (o + i)$ numbers take the place of $o i$, and all of them learn in the fit that follows: the
    fine-tuning that such a network needs. By `method` the factors lose the least of

    - `activation`: $E \|(W - A B) x\|^2$, what the layer gives on training batches;
    - `fisher`: $\sum_o \hat F_o \|W_o - (A B)_o\|^2$ with the Fisher information of the rows, by
      the module's own loss on training batches (FWSVD, arXiv:2207.00112);
    - `plain`: $\|W - A B\|_F^2$, which needs no data and keeps little of a small network.

    The rank of a layer is the same for all (`rank`), or keeps a share of the layer's energy
    (`energy`), or a share of all parameters is given out where it keeps the most energy
    (`parameters`). Where ranks would save nothing, a layer stays dense; a `rank` that saves nothing
    is an error.

    Ranks and factors are computed in `setup` of the first fit, on rank 0, from the first
    `calibration_batches` of the first epoch of each rank. A run that goes on, and a checkpoint that
    is loaded, take them from the checkpoint. Layers, ranks and kept energies are printed;
    `low_rank/parameters` and `low_rank/share` are logged, what is left of the factorized and
    targeted matrices.

    On a LightningModule that is not lmkit's, `plain` alone is possible, and a checkpoint needs the
    callback to be loaded.

    Args:
        targets: roles (`query`, `key`, `value`, `attention_output`, `ffn_input`, `ffn_output`),
            `all` of them, or patterns of names of linear layers.
        method: what the factors keep.
        rank: $r$ of every layer, below the break-even $o i / (o + i)$.
        energy: share of $\sum_k \sigma_k^2$ of the weighted spectrum, in `(0, 1]`.
        parameters: share of the targeted matrices, in `(0, 1)`; 0.6 if neither of the three is set.
        embedding_rank: $r$ of the table of the tokens, beside all this; 0 leaves it. A table that
            the head shares is refused.
        calibration_batches: at least 1.

    Raises:
        ValueError: two of `rank`, `energy` and `parameters` are set, or an argument lies outside
            its range; in `setup`, a rank saves nothing, nothing would become smaller, a layer is
            low-rank already or shares its weight, there are no training batches, or the checkpoint
            to go on from was factorized otherwise.
        NothingMatchedError: in `setup`, a target matches nothing; names what is near.
        TypeError: in `setup`, the module is not lmkit's, and the method needs data.

    Example:
        >>> LowRankCallback(targets=["ffn_input", "ffn_output"], energy=0.9).settings["method"]
        'activation'
    """

    #: Under which its figures are logged.
    word = "low_rank"

    def __init__(
        self,
        targets: Sequence[str] = ("all",),
        method: Literal["activation", "fisher", "plain"] = "activation",
        rank: int | None = None,
        energy: float | None = None,
        parameters: float | None = None,
        embedding_rank: int = 0,
        calibration_batches: int = 32,
    ) -> None:
        super().__init__()
        if rank is None and energy is None and parameters is None:
            parameters = 0.6
        self.rule = RankRule(rank, energy, parameters)
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
        check_whole("embedding_rank", embedding_rank, 0)
        check_whole("calibration_batches", calibration_batches, 1)
        self.targets = (targets,) if isinstance(targets, str) else tuple(targets)
        if not self.targets and not embedding_rank:
            raise ValueError(
                "targets must name linear layers, e.g. ['all'], or embedding_rank be set"
            )
        self.method, self.embedding_rank = method, embedding_rank
        self.calibration_batches = calibration_batches

    @property
    def settings(self) -> dict[str, Any]:
        """What the ranks depend on, as the ledger has it."""
        return {
            "targets": list(self.targets),
            "method": self.method,
            **vars(self.rule),
            "embedding_rank": self.embedding_rank,
            "calibration_batches": self.calibration_batches,
        }

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Factorize the network, once; take what a checkpoint has from there."""
        if not isinstance(pl_module, LMModule):
            self._set_up_other(pl_module, stage)
            return
        pl_module.configure_model()
        if self._own(pl_module.ledger):
            return
        coming = coming_ledger(pl_module)
        if coming is not None:
            pl_module.operate(self._repeated(coming))
        elif stage == "fit":
            made = self._choose(trainer, pl_module)
            pl_module.operate(made.surgery)
            put_factors(pl_module.network, made.factors)
            _say(made.layers)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log how many parameters are left of the targeted matrices."""
        left = whole = 0
        network = _network(pl_module)
        for name in self._places(network):
            layer: Any = network.get_submodule(name)
            rows, columns = matrix_shape(layer)
            whole += rows * columns
            left += sum(p.numel() for p in layer.parameters() if p.dim() == 2)
        figures = {f"{self.word}/parameters": float(left), f"{self.word}/share": left / whole}
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=trainer.global_step)

    def _own(self, ledger: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
        return entry_of(ledger, _CLASS_PATH, self.settings)

    def _repeated(self, ledger: Sequence[Mapping[str, Any]]) -> Any:
        """Return the surgery of a checkpoint.

        Raises:
            ValueError: it has none of these settings.
        """
        if spec := self._own(ledger):
            return from_spec(spec)
        raise ValueError(
            why_no_entry(
                ledger,
                _CLASS_PATH,
                self.settings,
                name="LowRankCallback",
                done="was factorized",
                otherwise="has no low-rank layers",
            )
        )

    def _choose(self, trainer: Trainer, module: LMModule) -> Choice:
        """Compute ranks and factors, the same on each rank."""
        network = module.network
        names = target_layers(network, self.targets, self.embedding_rank)
        _check_alone(module, names)
        gathered: dict[str, Tensor] = {}
        if self.method != "plain":
            kind = SecondMoments if self.method == "activation" else RowFisher
            batches = self.calibration_batches
            gathered = gather(kind(network, names), trainer, module, batches)
        made: Choice | ValueError | RuntimeError | None = None
        if trainer.is_global_zero:
            try:
                made = self._chosen(network, names, gathered)
            except (ValueError, RuntimeError) as error:
                made = error  # to be raised on each rank, of which none may wait for another
        made = trainer.strategy.broadcast(made)
        if isinstance(made, Choice):
            return made
        raise made or ValueError("rank 0 has chosen no ranks")

    def _chosen(
        self, network: nn.Module, names: Sequence[str], gathered: Mapping[str, Tensor]
    ) -> Choice:
        how = self.embedding_rank, self.settings
        return choose_ranks(network, names, self.rule, self.method, gathered, *how)

    def _set_up_other(self, module: LightningModule, stage: str) -> None:
        """Factorize the network of a module that has no ledger."""
        done: list[Any] = getattr(module, "_surgeries", [])
        if any(getattr(surgery, "chosen", None) == self.settings for surgery in done):
            return
        if self.method != "plain":
            raise TypeError(
                f"LowRankCallback with method={self.method!r} runs lmkit's modules on batches, and "
                f"{type(module).__name__} is none; take method='plain', or gather by hand with "
                "lmkit.surgery.calibration"
            )
        network = _network(module)
        names = target_layers(network, self.targets, self.embedding_rank)
        made = self._chosen(network, names, {})
        made.surgery(network)
        put_factors(network, made.factors)
        module.train()
        object.__setattr__(module, "_surgeries", [*done, made.surgery])
        _say(made.layers)

    def _places(self, network: nn.Module) -> list[str]:
        places = [name for target in self.targets for name in matrix_places(network, target)]
        places += [token_table(network)] if self.embedding_rank else []
        return list(dict.fromkeys(places))


_CLASS_PATH = to_spec(LowRank({"any": 1}))["class_path"]


def _network(module: LightningModule) -> nn.Module:
    if isinstance(module, LMModule):
        return module.network
    inside = (part for part in module.modules() if isinstance(part, PreTrainedModel))
    return next(inside, module)


def _check_alone(module: LMModule, names: Sequence[str]) -> None:
    """Check that no other network of the module has the weights, such as a generator.

    Raises:
        ValueError: one has.
    """
    others = {id(p) for network in module.networks[1:] for p in network.parameters()}
    for name in names:
        layer: Any = module.network.get_submodule(name)
        if id(layer.weight) in others:
            raise ValueError(
                f"{name} cannot be factorized: another network of {type(module).__name__} shares "
                "its weight, and would lose its tie; leave it out"
            )


def _say(layers: Sequence[LayerRank]) -> None:
    """Print what became of each layer."""
    whole = sum(layer.shape[0] * layer.shape[1] for layer in layers)
    left = sum(layer.parameters for layer in layers)
    width = max(len(layer.name) for layer in layers)
    lines = [f"{'layer':<{width}}  {'size':>12}  {'rank':>5}  energy kept"]
    for layer in layers:
        size = f"{layer.shape[0]} x {layer.shape[1]}"
        rank = "dense" if layer.rank is None else str(layer.rank)
        lines.append(f"{layer.name:<{width}}  {size:>12}  {rank:>5}  {layer.energy:.1%}")
    rank_zero_info(
        "\n".join(
            [
                *lines,
                f"LowRankCallback: of {whole:,} numbers in {len(layers)} layers {left:,} are left "
                f"({left / whole:.1%})",
            ]
        )
    )
