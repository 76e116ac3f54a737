"""Keys and values that are learned, for each layer of a frozen network."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer

from ..surgery.prefix_tuning import Prefixes, PrefixTuning
from .prompt_tuning import refuse_packing
from .surgery import SurgeryCallback

__all__ = ["PrefixTuningCallback"]


class PrefixTuningCallback(SurgeryCallback):
    r"""Learns $P$ keys and values for each layer, and the head of the task; all else is frozen.

    Prefix tuning (Li and Liang 2021, arXiv:2101.00190; for encoders P-tuning v2,
    arXiv:2110.07602), with the parameters of peft: $2 L d P$ of them, 46,080 for MiniLM. What is
    learned loads in plain peft. For architectures whose layers take keys and values from outside:
    BERT, RoBERTa, ELECTRA, GPT-2, Llama ... The network cannot be exported as a plain folder.

    Args:
        length: $P$, at least 1. A network with learned positions has as many fewer for the text.
        projection: whether a perceptron computes the prefix in training, which is steadier and has
            many more parameters; what it computes is what counts afterwards.
        hidden: width of the perceptron; 0 for that of a layer's keys.
        name: of the prefix; several of different names stand one behind the other.
        seed: what is drawn depends on it alone.
        head: whether the head of the task is trained too. What was drawn at random always is.

    Raises:
        ValueError: an argument lies outside its range; in `setup`, the architecture takes no keys
            and values from outside, gradients are checkpointed, the data pack several texts into a
            row, or their texts may be longer than there are positions behind the prefix.
        ImportError: in `setup`, the extra `peft` is not installed.

    Example:
        >>> PrefixTuningCallback(length=20).surgery.length
        20
    """

    word = "prefix_tuning"

    def __init__(
        self,
        length: int = 10,
        projection: bool = False,
        hidden: int = 0,
        name: str = "default",
        seed: int = 0,
        head: bool = True,
    ) -> None:
        super().__init__(PrefixTuning(name, length, projection, hidden, seed, head))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the surgery be performed, once, and check that the texts have room behind it."""
        refuse_packing(trainer, "prefix tuning")
        super().setup(trainer, pl_module, stage)
        longest = getattr(getattr(trainer, "datamodule", None), "max_length", None)
        for module in pl_module.modules():
            if isinstance(module, Prefixes) and longest is not None:
                module.check_length(longest)
