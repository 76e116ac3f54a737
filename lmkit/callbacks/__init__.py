"""Callbacks: one file per technique."""

from .bitfit import BitFitCallback
from .checkpoint import CheckpointCallback
from .efficiency import EfficiencyCallback
from .export import ExportCallback
from .figures import FiguresCallback
from .gradual_unfreezing import GradualUnfreezingCallback
from .loss_plot import LossPlotCallback
from .predictions import PredictionsCallback
from .provenance import ProvenanceCallback
from .samples import SamplesCallback
from .selective_tuning import SelectiveTuningCallback
from .surgery import SurgeryCallback
from .trainable_only import TrainableOnlyCheckpoint

__all__ = [
    "BitFitCallback",
    "CheckpointCallback",
    "EfficiencyCallback",
    "ExportCallback",
    "FiguresCallback",
    "GradualUnfreezingCallback",
    "LossPlotCallback",
    "PredictionsCallback",
    "ProvenanceCallback",
    "SamplesCallback",
    "SelectiveTuningCallback",
    "SurgeryCallback",
    "TrainableOnlyCheckpoint",
]
