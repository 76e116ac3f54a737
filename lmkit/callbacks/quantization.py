"""Weights and inputs of few bits: trained to be so, or rounded after the training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from transformers import PreTrainedModel

from ..dashboard import is_dry_run
from ..modules import LMModule
from ..modules.own_base import become_base
from ..modules.resume import coming_ledger
from ..surgery import from_spec, to_spec
from ..surgery.quantization_conversion import (
    fake_quantized_layers,
    make_float,
    quantized_layers,
    stored_bytes,
)
from .chosen_surgery import entry_of, why_no_entry
from .quantization_plan import Decision, QuantizationPlan

__all__ = ["QuantizationCallback"]


class QuantizationCallback(Callback):
    r"""Rounds the weights of linear layers and tables to 8 or 4 bits, and what they read to 8.

    $\hat x \hat W^\top + b$ with $\hat w = s \lfloor w / s \rceil$, a step $s$ for each output (or
    group of its inputs), and for $\hat x$ a range of each token, of the whole tensor, or one that
    was measured. By `method`

    - `qat`: layers round while they learn, with the gradients of what they round
      (arXiv:1712.05877, arXiv:1910.06188). It begins in the `setup` of a fit, best on a network
      that was trained before. Weights stay floating-point numbers, so that a run goes on from its
      checkpoints; `lmkit.export` makes whole numbers of them, which compute the same to the bit.
    - `dynamic`: after the training, with ranges of each input.
    - `weight_only`: after the training, weights alone.
    - `static`: after the training, with ranges that were measured on training batches.

    The last three are done when a fit ends, `max_steps=0` being enough, and `quantized.ckpt` is
    written where the other checkpoints are, which hold the module as it was; or when a validation,
    test or prediction begins, behind the checkpoint it takes. The module is quantized then: test,
    export and save it. Put it before an `ExportCallback`, with `weights="last"`.

    The worst layers may be left out: each is quantized alone, and by what the network then says of
    training batches they are compared (`sensitivity`). Large inputs may be shared out between
    inputs and weights before both are rounded (`smooth`, SmoothQuant, arXiv:2211.10438).

    On a LightningModule that is not lmkit's, what needs no data is possible, and a checkpoint needs
    the callback to be loaded.

    Args:
        method: see above.
        bits: of a weight, 8 or 4.
        group_size: how many inputs of an output share a step, 0 for all; by default 0 for 8 bits
            and 32 for 4.
        activations: of `qat` and `dynamic`: `per_token`, or `per_tensor` as ONNX Runtime has it, or
            (of `qat`) `None`.
        targets: roles (`query`, `key`, `value`, `attention_output`, `ffn_input`, `ffn_output`),
            `all` of them, or patterns of names of linear layers.
        embeddings: whether the tables of the tokens are rounded, row by row, and with them heads
            that share them.
        exclude: roles, names or patterns of what is left out.
        sensitivity: how many of the worst layers are left out, or which share of all, in `(0, 1)`.
        smooth: $\alpha$ in `[0, 1]`, 0.5 being usual; `None` for no smoothing.
        calibration_batches: of each rank, at least 1, for `static`, `smooth` and `sensitivity`.

    Raises:
        ValueError: an argument lies outside its range, or two contradict each other; in `setup` or
            later, the network is quantized already, a layer cannot be, there are no training
            batches, or the checkpoint to go on from was prepared otherwise or holds whole numbers.
        NothingMatchedError: a target, or what is excluded, matches nothing; names what is near.
        TypeError: the module is not lmkit's, and data are needed.

    Example:
        >>> QuantizationCallback("static", smooth=0.5).plan.needs_data
        True
    """

    #: Under which its figures are logged.
    word = "quantization"

    def __init__(
        self,
        method: Literal["qat", "dynamic", "weight_only", "static"] = "qat",
        bits: int = 8,
        group_size: int | None = None,
        activations: Literal["per_token", "per_tensor"] | None = "per_token",
        targets: Sequence[str] = ("all",),
        embeddings: bool = True,
        exclude: Sequence[str] = (),
        sensitivity: int | float = 0,
        smooth: float | None = None,
        calibration_batches: int = 32,
    ) -> None:
        super().__init__()
        numbers = bits, group_size, activations
        where = targets, embeddings, exclude
        self.plan = QuantizationPlan(
            method, *numbers, *where, sensitivity, smooth, calibration_batches
        )
        self._found: Decision | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Prepare a network to be trained; make one float again that a checkpoint of before takes.

        Raises:
            ValueError: a network of whole numbers is to be trained.
        """
        learns = self.plan.method == "qat"
        if not isinstance(pl_module, LMModule):
            if learns and stage == "fit":
                self._operate_other(pl_module)
            return
        pl_module.configure_model()
        coming, own = coming_ledger(pl_module), self._own(pl_module.ledger)
        if learns:
            self._prepare(trainer, pl_module, coming, stage)
        elif stage == "fit" and (own or (coming is not None and self._own(coming))):
            which = "network" if own else "checkpoint to go on from"
            raise ValueError(
                f"the {which} is quantized already, and whole numbers do not learn: go on from a "
                "checkpoint that was written before the fit had ended"
            )
        elif own and coming is not None and not self._own(coming):
            # What comes are the weights of before, which are quantized when they are there.
            make_float(pl_module.network)
            become_base(pl_module, [spec for spec in pl_module.ledger if spec != own])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what layers round."""
        if self.plan.method == "qat":
            self._log(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Quantize after the training, and write a checkpoint where the others are."""
        self._finish(trainer, pl_module)
        folder = getattr(trainer.checkpoint_callback, "dirpath", None)
        if self.plan.method != "qat" and folder is not None and not is_dry_run(trainer):
            trainer.save_checkpoint(f"{folder}/quantized.ckpt", weights_only=True)
            rank_zero_info(f"QuantizationCallback: whole numbers are in {folder}/quantized.ckpt")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Quantize what is validated, if no fit does so."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._finish(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Quantize what is tested."""
        self._finish(trainer, pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Quantize what predicts."""
        self._finish(trainer, pl_module)

    def _own(self, ledger: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
        return entry_of(ledger, self._path, self.plan.settings)

    @property
    def _path(self) -> str:
        return str(to_spec(self.plan.surgery())["class_path"])

    def _prepare(
        self,
        trainer: Trainer,
        module: LMModule,
        coming: Sequence[Mapping[str, Any]] | None,
        stage: str,
    ) -> None:
        """Let layers round while they learn, once; take what a checkpoint has from there."""
        if self._own(module.ledger):
            return
        if coming is not None:
            if spec := self._own(coming):
                module.operate(from_spec(spec))
            elif stage == "fit":
                raise ValueError(self._fault(coming))
        elif stage == "fit":
            self._found = self.plan.decide(trainer, module)
            self._found.perform(module)
            self._say(module.network)

    def _fault(self, ledger: Sequence[Mapping[str, Any]]) -> str:
        return why_no_entry(
            ledger,
            self._path,
            self.plan.settings,
            name="QuantizationCallback",
            done="was trained",
            otherwise="was not trained to be quantized",
        )

    def _finish(self, trainer: Trainer, module: LightningModule) -> None:
        """Quantize a network that is no longer trained, once."""
        if self.plan.method == "qat":
            return
        if not isinstance(module, LMModule):
            self._operate_other(module)
            return
        if self._own(module.ledger):
            return
        if self.plan.needs_data and not trainer.fit_loop._data_source.is_defined():
            raise ValueError(
                f"QuantizationCallback(method={self.plan.method!r}) looks at training batches "
                "(static, smooth, sensitivity), and there are none here: call trainer.fit before, "
                "for which max_steps=0 is enough"
            )
        self._found = self.plan.decide(trainer, module)
        self._found.perform(module)
        self._say(module.network)
        self._log(trainer, module)

    def _operate_other(self, module: LightningModule) -> None:
        """Change the network of a module that has no ledger."""
        if self.plan.needs_data:
            raise TypeError(
                "QuantizationCallback with static, smooth or sensitivity runs lmkit's modules on "
                f"batches, and {type(module).__name__} is none: leave these out"
            )
        surgery = self.plan.surgery()
        done: list[Any] = getattr(module, "_surgeries", [])
        if surgery in done:
            return
        mode = module.training
        surgery(_network(module))
        if self.plan.method == "qat":
            module.train(mode)
        object.__setattr__(module, "_surgeries", [*done, surgery])
        self._say(_network(module))

    def _log(self, trainer: Trainer, module: LightningModule) -> None:
        network = _network(module)
        figures = {f"{self.word}/megabytes": stored_bytes(network) / 1e6}
        if self._found is not None:
            found, self._found = self._found, None
            figures[f"{self.word}/layers"] = float(len(found.layers) - len(found.left_out))
            for name, value in found.sensitivity.items():
                figures[f"{self.word}/sensitivity/{name or 'all'}"] = value
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=trainer.global_step)

    def _say(self, network: nn.Module) -> None:
        """Print what was measured, and what came of it."""
        found, lines = self._found, []
        scheme = self.plan.surgery().scheme
        if found is not None and found.sensitivity:
            ordered = sorted(found.sensitivity.items(), key=lambda item: -item[1])
            width = max(len(name or "all together") for name, _ in ordered)
            lines.append(f"{'layer':<{width}}  divergence")
            for name, value in ordered:
                note = "  left out" if name in found.left_out else ""
                lines.append(f"{name or 'all together':<{width}}  {value:10.2e}{note}")
        count = len(fake_quantized_layers(network) | quantized_layers(network))
        when = "while they learn" if self.plan.method == "qat" else "from now on"
        rank_zero_info(
            "\n".join(
                [
                    *lines,
                    f"QuantizationCallback: {count} layers round {when} ({scheme}); of whole "
                    f"numbers the network takes {stored_bytes(network) / 1e6:,.1f} MB",
                ]
            )
        )


def _network(module: LightningModule) -> nn.Module:
    if isinstance(module, LMModule):
        return module.network
    inside = (part for part in module.modules() if isinstance(part, PreTrainedModel))
    return next(inside, module)
