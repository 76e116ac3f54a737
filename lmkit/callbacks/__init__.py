"""Callbacks: one file per technique."""

from .adapter import AdapterCallback
from .adapter_fusion import AdapterFusionCallback
from .awp import AWPCallback
from .bitfit import BitFitCallback
from .checkpoint import CheckpointCallback
from .cutoff import CutoffCallback
from .efficiency import EfficiencyCallback
from .export import ExportCallback
from .fgm import FGMCallback
from .figures import FiguresCallback
from .free_lb import FreeLBCallback
from .gradient_conflict import GradientConflictCallback
from .gradual_unfreezing import GradualUnfreezingCallback
from .ia3 import IA3Callback
from .lora import LoRACallback
from .loss_plot import LossPlotCallback
from .low_rank import LowRankCallback
from .mixup import MixupCallback
from .pgd import PGDCallback
from .predictions import PredictionsCallback
from .prefix_tuning import PrefixTuningCallback
from .prompt_tuning import PromptTuningCallback
from .provenance import ProvenanceCallback
from .pruning import PruningCallback
from .quantization import QuantizationCallback
from .r_drop import RDropCallback
from .samples import SamplesCallback
from .selective_tuning import SelectiveTuningCallback
from .smart import SMARTCallback
from .structured_pruning import StructuredPruningCallback
from .surgery import SurgeryCallback
from .trainable_only import TrainableOnlyCheckpoint
from .uda import UDACallback
from .vat import VATCallback

__all__ = [
    "AWPCallback",
    "AdapterCallback",
    "AdapterFusionCallback",
    "BitFitCallback",
    "CheckpointCallback",
    "CutoffCallback",
    "EfficiencyCallback",
    "ExportCallback",
    "FGMCallback",
    "FiguresCallback",
    "FreeLBCallback",
    "GradientConflictCallback",
    "GradualUnfreezingCallback",
    "IA3Callback",
    "LoRACallback",
    "LossPlotCallback",
    "LowRankCallback",
    "MixupCallback",
    "PGDCallback",
    "PredictionsCallback",
    "PrefixTuningCallback",
    "PromptTuningCallback",
    "ProvenanceCallback",
    "PruningCallback",
    "QuantizationCallback",
    "RDropCallback",
    "SMARTCallback",
    "SamplesCallback",
    "SelectiveTuningCallback",
    "StructuredPruningCallback",
    "SurgeryCallback",
    "TrainableOnlyCheckpoint",
    "UDACallback",
    "VATCallback",
]
