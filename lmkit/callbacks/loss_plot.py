"""The loss as a picture, for those who look at a folder and not at a dashboard."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from ..dashboard import is_dry_run, log_stride, run_directory

__all__ = ["LossPlotCallback"]


class LossPlotCallback(Callback):
    """Draws training and validation loss to `<run>/loss.png`, after each validation and at the end.

    The points are kept in the checkpoint, so that a resumed run draws the whole curve.

    Args:
        train: the metric drawn as a line, read every `trainer.log_every_n_steps` steps.
        val: the metric drawn as points, read after each validation.
        filename: the name of the picture within the run's folder.

    Raises:
        ModuleNotFoundError: matplotlib is missing, at the start of a fit.

    Example:
        >>> LossPlotCallback().state_dict()
        {'train': [], 'val': []}
    """

    def __init__(
        self, train: str = "train/loss", val: str = "val/loss", filename: str = "loss.png"
    ) -> None:
        super().__init__()
        self.train = train
        self.val = val
        self.filename = filename
        self._points: dict[str, list[list[float]]] = {"train": [], "val": []}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that a picture can be drawn, before hours of training."""
        if find_spec("matplotlib") is None:
            raise ModuleNotFoundError(
                "LossPlotCallback draws with matplotlib, which is not installed: "
                "pip install 'lmkit[plot]', or leave the callback out"
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the training loss if the step is logged."""
        step = trainer.global_step
        if step % log_stride(trainer) == 0:
            self._keep(trainer, "train", self.train, step)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the validation loss, and draw."""
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            self._keep(trainer, "val", self.val, trainer.global_step)
            self._draw(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw."""
        self._draw(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Return the points so far: lists of `[step, loss]`."""
        return {name: [list(point) for point in points] for name, points in self._points.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the points of a checkpoint."""
        self._points = {name: [list(p) for p in state_dict[name]] for name in ("train", "val")}

    def _keep(self, trainer: Trainer, kind: str, metric: str, step: int) -> None:
        points = self._points[kind]
        value = trainer.callback_metrics.get(metric)
        if value is not None and (not points or points[-1][0] < step):
            points.append([float(step), float(value)])
        if len(points) > _MOST_POINTS:
            # A checkpoint must not grow with the run, and a picture has fewer columns than this.
            del points[1:-1:2]

    def _draw(self, trainer: Trainer) -> None:
        if not trainer.is_global_zero or is_dry_run(trainer) or not any(self._points.values()):
            return
        # Not pyplot, whose state is global and would be shared with a notebook.
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        for name, style in (("train", "-"), ("val", "o-")):
            if self._points[name]:
                steps, losses = zip(*self._points[name], strict=True)
                axes.plot(steps, losses, style, label=getattr(self, name), markersize=4)
        axes.set(xlabel="optimizer step", ylabel="loss (nats per token)")
        axes.grid(alpha=0.3)
        axes.legend()
        path = run_directory(trainer) / self.filename
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)


_MOST_POINTS = 4000
