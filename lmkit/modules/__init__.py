"""LightningModules, one per objective."""

from .base import LMModule
from .causal_lm import CausalLMModule
from .denoising import DenoisingModule
from .masked_lm import MaskedLMModule
from .multiple_choice import MultipleChoiceModule
from .question_answering import QuestionAnsweringModule
from .replaced_token import ReplacedTokenModule
from .seq2seq import Seq2SeqModule
from .sequence_classification import SequenceClassificationModule
from .token_classification import TokenClassificationModule

__all__ = [
    "CausalLMModule",
    "DenoisingModule",
    "LMModule",
    "MaskedLMModule",
    "MultipleChoiceModule",
    "QuestionAnsweringModule",
    "ReplacedTokenModule",
    "Seq2SeqModule",
    "SequenceClassificationModule",
    "TokenClassificationModule",
]
