"""Data modules: from text to batches, as pure functions of (seed, epoch, rank)."""

from .base import LMDataModule
from .causal_lm import CausalLMDataModule
from .denoising import DenoisingDataModule
from .masked_lm import MaskedLMDataModule
from .multi_task import MultiTaskDataModule
from .multiple_choice import MultipleChoiceDataModule
from .question_answering import QuestionAnsweringDataModule
from .replaced_token import ReplacedTokenDataModule
from .seq2seq import Seq2SeqDataModule
from .sequence_classification import SequenceClassificationDataModule
from .token_classification import TokenClassificationDataModule

__all__ = [
    "CausalLMDataModule",
    "DenoisingDataModule",
    "LMDataModule",
    "MaskedLMDataModule",
    "MultiTaskDataModule",
    "MultipleChoiceDataModule",
    "QuestionAnsweringDataModule",
    "ReplacedTokenDataModule",
    "Seq2SeqDataModule",
    "SequenceClassificationDataModule",
    "TokenClassificationDataModule",
]
