"""Prompts that are learned, in front of the texts of a frozen network."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, cast

from lightning.pytorch import LightningModule, Trainer

from ..modules import LMModule
from ..surgery.prompt_tuning import PromptTuning
from .surgery import SurgeryCallback

__all__ = ["PromptTuningCallback", "refuse_packing"]


class PromptTuningCallback(SurgeryCallback):
    r"""Learns $P$ vectors in front of each text, and the head of the task; all else is frozen.

    Prompt tuning (Lester et al. 2021, arXiv:2104.08691), and with an `encoder` P-tuning (Liu et
    al. 2021, arXiv:2103.10385). $P d$ numbers: 3,840 for ten prompts of MiniLM. Labels, offsets,
    pooling and logits are those of the text, whatever the task; the decoder of an encoder-decoder
    attends to the prompts of its encoder. The network cannot be exported as a plain folder.

    Args:
        length: $P$, at least 1. Each prompt makes each text a token longer to compute.
        init: where the vectors start: `random`, with the deviation of the embeddings;
            `vocabulary`, at $P$ tokens drawn from it; `text`, at those of `init_text`.
        init_text: its tokens are repeated or cut to $P$, e.g. `"Is this review positive?"`.
        encoder: `none`; or `mlp` or `lstm`, which compute the prompts from what is learned.
        hidden: width of the encoder; 0 for that of the embeddings.
        name: of the prompt; several of different names stand one behind the other.
        seed: what is drawn depends on it alone.
        head: whether the head of the task is trained too. What was drawn at random always is.

    Raises:
        ValueError: an argument lies outside its range; in `setup`, the data pack several texts into
            a row, there is no tokenizer for `init_text`, or the architecture reads no embeddings.

    Example:
        >>> PromptTuningCallback(length=20, init="vocabulary").surgery.length
        20
    """

    word = "prompt_tuning"

    def __init__(
        self,
        length: int = 10,
        init: Literal["random", "vocabulary", "text"] = "random",
        init_text: str = "",
        encoder: Literal["none", "mlp", "lstm"] = "none",
        hidden: int = 0,
        name: str = "default",
        seed: int = 0,
        head: bool = True,
    ) -> None:
        if (init == "text") != bool(init_text.strip()):
            raise ValueError(
                f"init='text' and init_text go together, got init={init!r} and {init_text!r}"
            )
        # The tokens of a text are known when there is a tokenizer.
        ids = (0,) if init == "text" else ()
        surgery = PromptTuning(name, length, init, ids, encoder, hidden, seed, head)
        super().__init__(surgery)
        self.init_text = init_text

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Turn the text into tokens, and let the surgery be performed, once."""
        refuse_packing(trainer, "prompt tuning")
        if self.init_text:
            ids = self._tokens(trainer, pl_module)
            self.surgery = replace(cast(PromptTuning, self.surgery), token_ids=ids)
        super().setup(trainer, pl_module, stage)

    def _tokens(self, trainer: Trainer, pl_module: LightningModule) -> tuple[int, ...]:
        if isinstance(pl_module, LMModule):
            pl_module.configure_model()  # takes the tokenizer of the data, if it has none
        owners = pl_module, getattr(trainer, "datamodule", None)
        found = (getattr(owner, "tokenizer", None) for owner in owners)
        tokenizer: Any = next((each for each in found if each is not None), None)
        if tokenizer is None:
            raise ValueError(
                f"init_text is {self.init_text!r}, and neither the module nor the data module has "
                "a tokenizer to read it with; give the data module one, or take init='vocabulary'"
            )
        ids = tuple(tokenizer(self.init_text, add_special_tokens=False)["input_ids"])
        if not ids:
            raise ValueError(f"init_text {self.init_text!r} has no tokens; give it some words")
        return ids


def refuse_packing(trainer: Trainer, technique: str) -> None:
    """Check that a row of the data holds one text, in front of which something can stand.

    Raises:
        ValueError: the data module packs several texts into a row.
    """
    data = getattr(trainer, "datamodule", None)
    for name in ("batching", "eval_batching"):
        if getattr(data, name, None) == "pack":
            raise ValueError(
                f"{technique} needs one text in a row, and the data module has {name}='pack'; pass "
                f"{name}='bucket', or 'pad' for tagged words"
            )
