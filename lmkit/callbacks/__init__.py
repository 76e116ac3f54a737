"""Callbacks: one file per technique."""

from .checkpoint import CheckpointCallback
from .efficiency import EfficiencyCallback
from .export import ExportCallback
from .figures import FiguresCallback
from .gradual_unfreezing import GradualUnfreezingCallback
from .loss_plot import LossPlotCallback
from .predictions import PredictionsCallback
from .provenance import ProvenanceCallback
from .samples import SamplesCallback

__all__ = [
    "CheckpointCallback",
    "EfficiencyCallback",
    "ExportCallback",
    "FiguresCallback",
    "GradualUnfreezingCallback",
    "LossPlotCallback",
    "PredictionsCallback",
    "ProvenanceCallback",
    "SamplesCallback",
]
