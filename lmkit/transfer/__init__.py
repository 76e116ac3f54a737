"""Which of several encoders to train on a task: what each knows of it, frozen."""

from .probing import transferability
from .results import TransferReport, TransferRow

__all__ = ["TransferReport", "TransferRow", "transferability"]
