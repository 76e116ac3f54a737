"""LightningModules, one per objective."""

from .attention_losses import AttentionLoss, RelationLoss
from .base import LMModule
from .causal_lm import CausalLMModule
from .denoising import DenoisingModule
from .distillation import DistillationModule
from .distillation_losses import LogitLoss
from .feature_losses import FlowLoss, HiddenLoss
from .masked_lm import MaskedLMModule
from .multi_task import MultiTaskModule
from .multiple_choice import MultipleChoiceModule
from .question_answering import QuestionAnsweringModule
from .replaced_token import ReplacedTokenModule
from .seq2seq import Seq2SeqModule
from .sequence_classification import SequenceClassificationModule
from .token_classification import TokenClassificationModule

__all__ = [
    "AttentionLoss",
    "CausalLMModule",
    "DenoisingModule",
    "DistillationModule",
    "FlowLoss",
    "HiddenLoss",
    "LMModule",
    "LogitLoss",
    "MaskedLMModule",
    "MultiTaskModule",
    "MultipleChoiceModule",
    "QuestionAnsweringModule",
    "RelationLoss",
    "ReplacedTokenModule",
    "Seq2SeqModule",
    "SequenceClassificationModule",
    "TokenClassificationModule",
]
