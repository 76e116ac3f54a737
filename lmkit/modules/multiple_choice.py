"""Multiple choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchmetrics import Metric
from transformers import AutoModelForMultipleChoice

from ..figures import bar_figure
from ..functional import accuracy, token_cross_entropy
from ..tokenization.choice_rows import ChoiceRows, choice_texts
from ..types import Batch, StepOutput
from .base import LMModule
from .checks import require_tokenizer
from .choice_metrics import PlaceCounts
from .network import usable_positions
from .network_inputs import network_inputs
from .scores import Scores, real_tokens
from .token_metrics import TokenMean

__all__ = ["MultipleChoiceModule"]

# Of a row of `forward` where the network has no bound.
_MAX_LENGTH = 512


class MultipleChoiceModule(LMModule):
    r"""Choose the right one of several answers (BERT, arXiv:1810.04805, section 4.4).

    Each choice is read together with its question and gets one score $z_c$, and
    $\mathcal{L} = -\log \operatorname{softmax}(z)_y$ over the choices of a question. The choices do
    not see each other, so that their order says nothing; where a batch has questions with more and
    with fewer, what is lacking has the score minus infinity.

    Logs `train/loss`, and of the validation `val/loss` and `val/accuracy`, over questions. A test
    has a table and a figure `places`: how often the first choice, the second ... is right, is
    chosen, and how often it is found where it is right.

    Args:
        model: hub name, folder, or config with a `model_type`: any architecture with a head for
            multiple choice (BERT, RoBERTa, DeBERTa, ModernBERT ...).
        pretrained: whether a name or folder brings its weights. Those it lacks, such as the head
            of an encoder, are drawn at random.
        learning_rate: the peak of the schedule.
        weight_decay: of weight matrices; biases and normalizations have none.
        warmup: optimizer steps (int) or share of the run (float below 1).
        schedule: `"linear"`, `"cosine"` or `"constant"` after the warm-up.
        optimizer: `{"class_path": ..., "init_args": {...}}` in place of AdamW.
        dropout: of every layer in training, in `[0, 1)`; `None` leaves what the config says.
        compile: whether the layers are compiled; `None` decides by device and length of the run.
        layer_decay: factor of the learning rate from each layer to the one below, in `(0, 1]`.

    Example:
        >>> module = MultipleChoiceModule({"model_type": "bert", "vocab_size": 99,
        ...     "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        ...     "intermediate_size": 8})
        >>> module.configure_model()
        >>> ids = torch.tensor([[[2, 7, 3, 4, 3], [2, 7, 3, 5, 3]]])
        >>> batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids),
        ...     "choice_mask": torch.ones(1, 2), "labels": torch.tensor([1])}
        >>> module.step(batch).logits.shape
        torch.Size([1, 2])
    """

    auto_class = AutoModelForMultipleChoice

    def __init__(
        self,
        model: str | dict[str, Any],
        pretrained: bool = True,
        learning_rate: float = 5e-5,
        weight_decay: float = 0.01,
        warmup: int | float = 0.06,
        schedule: str = "linear",
        optimizer: dict[str, Any] | None = None,
        dropout: float | None = None,
        compile: bool | None = None,
        layer_decay: float = 1.0,
    ) -> None:
        super().__init__(
            model,
            pretrained,
            learning_rate,
            weight_decay,
            warmup,
            schedule,
            optimizer,
            dropout,
            compile,
            layer_decay,
        )

    def step(self, batch: Batch) -> StepOutput:
        """Compute the loss of a batch of questions.

        Args:
            batch: `input_ids` and `attention_mask`, int64 `[B, C, L]`, perhaps `token_type_ids`
                `[B, C, L]`; `choice_mask` `[B, C]`, 1 where there is a choice; `labels`, int64
                `[B]`, -100 without one.

        Returns:
            Loss, number of questions with a label, and the logits `[B, C]`, minus infinity where
            there is no choice.
        """
        logits = self._logits(batch)
        loss, count = token_cross_entropy(logits, batch["labels"])
        return StepOutput(loss, count, logits)

    def scores(self, output: StepOutput, batch: Batch) -> Scores:
        """Return one item for each question; its rows share it."""
        assert output.logits is not None
        tokens = real_tokens(batch)
        valid, choices = tokens.flatten(1).any(1), batch["choice_mask"].float()
        shares = choices / choices.sum(1, keepdim=True).clamp(min=1) * valid.unsqueeze(1)
        rows = torch.arange(len(valid), device=valid.device) * choices.shape[1]
        how = rows, tokens.flatten(0, 1), shares.flatten()
        return Scores("classes", output.logits, valid, batch["labels"], *how, ragged=True)

    def build_metrics(self) -> dict[str, Metric]:
        """Make loss and accuracy."""
        return {"loss": TokenMean(), "accuracy": TokenMean()}

    def update_metrics(
        self, metrics: Mapping[str, Metric], output: StepOutput, batch: Batch
    ) -> None:
        """Give the metrics the result of one batch."""
        assert output.logits is not None
        metrics["loss"].update(output.loss, output.items)
        metrics["accuracy"].update(accuracy(output.logits, batch["labels"]), output.items)

    def build_tables(self) -> dict[str, Metric]:
        """Make the counts of each place."""
        return {"places": PlaceCounts()}

    def update_tables(self, tables: Mapping[str, Metric], output: StepOutput, batch: Batch) -> None:
        """Give the counts the result of one batch."""
        assert output.logits is not None
        tables["places"].update(output.logits.argmax(-1), batch["labels"])

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """Return of each place how often it is right and chosen, and the accuracy where right."""
        counts = cast(Any, self.metrics["test_tables"])["places"].compute().tolist()
        rows = [
            {"place": place, "right": right, "chosen": chosen, "accuracy": both / max(right, 1)}
            for place, (right, chosen, both) in enumerate(counts)
        ]
        return {"places": [row for row in rows if row["right"] or row["chosen"]]}

    def figures(self) -> dict[str, Any]:
        """Return the figure of the places, as shares of all questions."""
        rows = self.tables()["places"]
        total = max(1, sum(row["right"] for row in rows))
        shares = {
            str(row["place"]): {
                "right": row["right"] / total,
                "chosen": row["chosen"] / total,
                "accuracy": row["accuracy"],
            }
            for row in rows
        }
        return {"places": bar_figure(shares)}

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """Choose.

        Returns:
            For each question the `choice`, its place from 0, its `probability`, and the
            `probabilities` of all its choices.
        """
        counts = batch["choice_mask"].sum(1).int().tolist()
        return [
            {"choice": int(p.argmax()), "probability": float(p.max()), "probabilities": p.tolist()}
            for p in (
                row[:count] for row, count in zip(self._probabilities(batch), counts, strict=True)
            )
        ]

    def forward(
        self,
        question: str | Sequence[str],
        choices: Sequence[str] | Sequence[Sequence[str]],
        context: str | Sequence[str] | None = None,
        max_length: int | None = None,
    ) -> Any:
        """Choose the answer to a question, or to several.

        Args:
            question: one, or a list; "" where the choices are ends of the context.
            choices: its answers, or a list of them for each question.
            context: the text that it is about, or a list of as many.
            max_length: tokens of a row; by default what the network has positions for, 512 at most.

        Returns:
            What `predict_step` says of the question, and the text of the choice as `answer`; a list
            of it for a list of questions.

        Raises:
            ValueError: not as many choices or contexts as questions, or no tokenizer.
        """
        if isinstance(question, str):
            texts = None if context is None else [str(context)]
            one: Any = [choices]
            return self.forward([question], one, texts, max_length)[0]
        contexts = [""] * len(question) if context is None else list(context)
        if not len(question) == len(choices) == len(contexts):
            raise ValueError(
                f"got {len(question)} questions, {len(choices)} lists of choices and "
                f"{len(contexts)} contexts; give as many of each"
            )
        width = max_length or min(_MAX_LENGTH, usable_positions(self.network) or _MAX_LENGTH)
        make = ChoiceRows(require_tokenizer(self), width)
        written = []
        for asked, given, text in zip(question, choices, contexts, strict=True):
            rows = make([choice_texts(text, asked, choice) for choice in given])
            ids, types = ([torch.tensor(row[i]) for row in rows] for i in (0, 1))
            batch = {
                # What stands in the padding is not looked at.
                "input_ids": pad_sequence(ids, batch_first=True),
                "attention_mask": pad_sequence([torch.ones_like(t) for t in ids], batch_first=True),
                "token_type_ids": pad_sequence(types, batch_first=True),
            }
            batch = {name: t.unsqueeze(0).to(self.device) for name, t in batch.items()}
            batch["choice_mask"] = torch.ones(1, len(rows), device=self.device)
            (found,) = self.predict_step(batch, 0)
            written.append({"answer": given[found["choice"]], **found})
        return written

    def _logits(self, batch: Batch) -> Tensor:
        logits: Tensor = self.network(**network_inputs(self.network, batch)).logits
        return logits.float().masked_fill(batch["choice_mask"] == 0, -torch.inf)

    @torch.no_grad()
    def _probabilities(self, batch: Batch) -> Tensor:
        mode = self.network.training
        self.network.train(False)
        probabilities = self._logits(batch).softmax(-1)
        self.network.train(mode)
        return probabilities
