"""Callbacks: one file per technique."""

from .checkpoint import CheckpointCallback
from .efficiency import EfficiencyCallback
from .export import ExportCallback
from .loss_plot import LossPlotCallback
from .predictions import PredictionsCallback
from .provenance import ProvenanceCallback
from .samples import SamplesCallback

__all__ = [
    "CheckpointCallback",
    "EfficiencyCallback",
    "ExportCallback",
    "LossPlotCallback",
    "PredictionsCallback",
    "ProvenanceCallback",
    "SamplesCallback",
]
