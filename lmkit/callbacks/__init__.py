"""Callbacks: one file per technique."""

from .adapter import AdapterCallback
from .adapter_fusion import AdapterFusionCallback
from .bitfit import BitFitCallback
from .checkpoint import CheckpointCallback
from .efficiency import EfficiencyCallback
from .export import ExportCallback
from .figures import FiguresCallback
from .gradual_unfreezing import GradualUnfreezingCallback
from .ia3 import IA3Callback
from .lora import LoRACallback
from .loss_plot import LossPlotCallback
from .low_rank import LowRankCallback
from .predictions import PredictionsCallback
from .prefix_tuning import PrefixTuningCallback
from .prompt_tuning import PromptTuningCallback
from .provenance import ProvenanceCallback
from .pruning import PruningCallback
from .quantization import QuantizationCallback
from .samples import SamplesCallback
from .selective_tuning import SelectiveTuningCallback
from .structured_pruning import StructuredPruningCallback
from .surgery import SurgeryCallback
from .trainable_only import TrainableOnlyCheckpoint

__all__ = [
    "AdapterCallback",
    "AdapterFusionCallback",
    "BitFitCallback",
    "CheckpointCallback",
    "EfficiencyCallback",
    "ExportCallback",
    "FiguresCallback",
    "GradualUnfreezingCallback",
    "IA3Callback",
    "LoRACallback",
    "LossPlotCallback",
    "LowRankCallback",
    "PredictionsCallback",
    "PrefixTuningCallback",
    "PromptTuningCallback",
    "ProvenanceCallback",
    "PruningCallback",
    "QuantizationCallback",
    "SamplesCallback",
    "SelectiveTuningCallback",
    "StructuredPruningCallback",
    "SurgeryCallback",
    "TrainableOnlyCheckpoint",
]
