"""Extractive question answering."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torchmetrics import Metric
from transformers import AutoModelForQuestionAnswering

from ..figures import bar_figure
from ..functional.question_answering import (
    best_spans,
    codes_to_text,
    score_answer,
    score_answer_or_none,
    span_loss,
)
from ..tokenization.question_windows import QuestionWindows
from ..types import Batch, StepOutput
from .answer_metrics import FIGURES, AnswerFigures, AnswerMean
from .answer_writing import Found, window_batch, write_answers
from .base import LMModule
from .checks import require_tokenizer
from .network import usable_positions
from .network_inputs import network_inputs
from .scores import Scores, row_scores
from .token_metrics import TokenMean

__all__ = ["QuestionAnsweringModule"]

# Of a window of `forward`, as transformers' scripts have it.
_MAX_LENGTH = 384


class QuestionAnsweringModule(LMModule):
    r"""Find the answer to a question in a text (BERT, arXiv:1810.04805, sections 4.2 and 4.3).

    Two scores of each token, $s$ as the first and $e$ as the last of the answer, and per window the
    loss $\mathcal{L} = \frac{1}{2}(-\log \operatorname{softmax}(s)_i
    - \log \operatorname{softmax}(e)_j)$, where $(i, j)$ is the answer, or CLS twice where the
    window does not hold it. Padding takes no share. The answer to a question is the span with the
    largest $s_i + e_j$ of all its windows, $i \le j$, of at most `max_answer_length` tokens.

    Logs `train/loss`, and of the validation `val/loss` over windows, and `val/exact_match` and
    `val/f1` over questions, the figures of SQuAD's own scripts, here in `[0, 1]` as all shares (the
    scripts print percent): of 1.1, or with a `null_threshold` of 2.0. A test has a table and a
    figure `answers`: both figures of all questions, of those with and of those without an answer.

    Args:
        model: hub name, folder, or config with a `model_type`: any architecture with a head for
            question answering (BERT, RoBERTa, DeBERTa, ModernBERT ...).
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
        max_answer_length: tokens of an answer at most.
        null_threshold: no answer is given where the score of none, the smallest $s_0 + e_0$ of all
            windows, is larger than that of the best answer by more than this (in logits); 0 is
            where both are as likely, and a larger one gives more answers. `None`, for SQuAD 1.1,
            gives an answer always, or as the config of an export says, which keeps the number.
        answer_count: how many answers `predict` returns for each question, the best ones.

    Raises:
        ValueError: a number lies outside its range.

    Example:
        >>> module = QuestionAnsweringModule({"model_type": "bert", "vocab_size": 99,
        ...     "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        ...     "intermediate_size": 8})
        >>> module.configure_model()
        >>> ids = torch.tensor([[2, 7, 3, 4, 5, 3]])
        >>> batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids),
        ...     "start_positions": torch.tensor([3]), "end_positions": torch.tensor([4])}
        >>> module.step(batch).items.item()
        1
    """

    auto_class = AutoModelForQuestionAnswering

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
        max_answer_length: int = 30,
        null_threshold: float | None = None,
        answer_count: int = 5,
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
        for name, value in (
            ("max_answer_length", max_answer_length),
            ("answer_count", answer_count),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")

    def configure_model(self) -> None:
        """Build the network; its config keeps the threshold, for those who use an export."""
        super().configure_model()
        if self.hparams["null_threshold"] is not None:
            self.network.config.null_threshold = float(self.hparams["null_threshold"])

    def setup(self, stage: str) -> None:
        """Check that the data fit the network and what is asked of it."""
        super().setup(stage)
        datamodule = getattr(self.trainer, "datamodule", None)
        if getattr(datamodule, "has_unanswerable", False) and self._threshold is None:
            rank_zero_warn(
                "the data have questions without an answer, and each will be given one: set "
                "null_threshold (--model.null_threshold=0)"
            )

    @property
    def _threshold(self) -> float | None:
        given: float | None = self.hparams["null_threshold"]
        return given if given is not None else getattr(self.network.config, "null_threshold", None)

    def step(self, batch: Batch) -> StepOutput:
        """Compute the loss of a batch of windows.

        Args:
            batch: `input_ids` and `attention_mask`, int64 `[B, L]`, perhaps `token_type_ids`
                `[B, L]`, and `start_positions` and `end_positions`, int64 `[B]`, -100 without a
                label.

        Returns:
            Loss, number of windows with a label, and the logits `[B, L, 2]` of start and end, minus
            infinity at padding.
        """
        logits = self._logits(batch)
        labels = batch["start_positions"], batch["end_positions"]
        loss, count = span_loss(logits[..., 0], logits[..., 1], *labels)
        return StepOutput(loss, count, logits)

    def scores(self, output: StepOutput, batch: Batch) -> Scores:
        """Return one item for each window: the scores `[B, 2, L]` of start and end."""
        assert output.logits is not None
        found = row_scores("classes", output.logits.transpose(1, 2), batch)
        labels = torch.stack([batch["start_positions"], batch["end_positions"]], 1)
        return found._replace(labels=labels, ragged=True)

    def build_metrics(self) -> dict[str, Metric]:
        """Make loss, exact match and F1."""
        return {
            "loss": TokenMean(),
            "exact_match": AnswerMean("exact_match", self._threshold),
            "f1": AnswerMean("f1", self._threshold),
        }

    def build_tables(self) -> dict[str, Metric]:
        """Make the figures of questions with and without an answer."""
        return {"answers": AnswerFigures(self._threshold)}

    def update_metrics(
        self, metrics: Mapping[str, Metric], output: StepOutput, batch: Batch
    ) -> None:
        """Give the metrics the result of one batch."""
        metrics["loss"].update(output.loss, output.items)
        rows = self._scored(output, batch)
        for name in FIGURES:
            metrics[name].update(**rows)

    def update_tables(self, tables: Mapping[str, Metric], output: StepOutput, batch: Batch) -> None:
        """Give the figures the result of one batch."""
        tables["answers"].update(**self._scored(output, batch))

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """Return exact match and F1 of all questions, of those with and of those without answer."""
        found = cast(Any, self.metrics["test_tables"])["answers"].compute()
        return {"answers": [{"of": name, **figures} for name, figures in found.items()]}

    def figures(self) -> dict[str, Any]:
        """Return the figure of exact match and F1."""
        rows = self.tables()["answers"]
        return {"answers": bar_figure({r["of"]: {n: r[n] for n in FIGURES} for r in rows})}

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """Answer whole questions, as `QuestionAnsweringDataModule` has them for prediction.

        Returns:
            For each question its `answer` ("" for none), the characters `start` and `end` of it in
            the context (`None` for none), its `score`, the probability among the best answers;
            `answers`, these best ones likewise, each with its `logit`; and, with a
            `null_threshold`, `null_difference`, how far the score of none is above the best answer.
        """
        return write_answers(batch, self._found(batch), len(batch["index"]), self._threshold)

    def forward(
        self,
        question: str | Sequence[str],
        context: str | Sequence[str],
        max_length: int | None = None,
        doc_stride: int = 128,
    ) -> Any:
        """Answer a question on a text, or several.

        Args:
            question: one, or a list.
            context: the text for it, or a list of as many.
            max_length: tokens of a window; by default 384, or what the network has positions for.
            doc_stride: tokens that neighbouring windows share, less where windows are short.

        Returns:
            What `predict_step` says of the question; a list of it for lists.

        Raises:
            ValueError: not as many questions as contexts, or no tokenizer.
        """
        if isinstance(question, str) != isinstance(context, str):
            raise ValueError("give one question and one context, or a list of each")
        asked = [question] if isinstance(question, str) else list(question)
        texts = [context] if isinstance(context, str) else list(context)
        if len(asked) != len(texts):
            raise ValueError(f"got {len(asked)} questions and {len(texts)} contexts")
        width = max_length or min(_MAX_LENGTH, usable_positions(self.network) or _MAX_LENGTH)
        windows = QuestionWindows(
            require_tokenizer(self), width, min(doc_stride, width // 3), min(64, width // 3)
        )
        written = []
        for one, text in zip(asked, texts, strict=True):
            batch = window_batch(windows, one, text, device=self.device)
            written += write_answers(batch, self._found(batch), 1, self._threshold)
        return written[0] if isinstance(question, str) else written

    def _logits(self, batch: Batch) -> Tensor:
        output = self.network(**network_inputs(self.network, batch))
        logits = torch.stack([output.start_logits, output.end_logits], -1).float()
        return logits.masked_fill(batch["attention_mask"].unsqueeze(-1) == 0, -torch.inf)

    @torch.no_grad()
    def _found(self, batch: Batch) -> Found:
        mode = self.network.training
        self.network.train(False)
        logits = self._logits(batch)
        self.network.train(mode)
        return self._spans(logits, batch, self.hparams["answer_count"])

    def _spans(self, logits: Tensor, batch: Batch, count: int) -> Found:
        start, end = logits.unbind(-1)
        longest = self.hparams["max_answer_length"]
        spans = best_spans(start, end, batch["char_start"] >= 0, longest, count)
        null = batch["null_positions"].unsqueeze(1)
        return Found(spans, (start.gather(1, null) + end.gather(1, null)).squeeze(1))

    def _scored(self, output: StepOutput, batch: Batch) -> dict[str, Tensor]:
        """Score the best span of each window: the arguments of `AnswerFigures.update`."""
        assert output.logits is not None
        score = score_answer if self._threshold is None else score_answer_or_none
        found = self._spans(output.logits, batch, 1)
        first = batch["char_start"].gather(1, found.spans.start).flatten()
        last = batch["char_end"].gather(1, found.spans.end).flatten()
        first, last = (at - batch["context_start"] for at in (first, last))
        contexts, answers = batch["context_codes"].cpu(), batch["answer_codes"].cpu()
        rows = []
        for row, (begin, stop) in enumerate(zip(first.tolist(), last.tolist(), strict=True)):
            golds = [text for codes in answers[row] if (text := codes_to_text(codes))]
            answer = codes_to_text(contexts[row])[max(begin, 0) : max(stop, 0)]
            # Having given no answer earns what no text earns.
            rows.append((*score(answer, golds), score("", golds).exact, float(bool(golds))))
        exact, f1, credit, answerable = torch.tensor(rows, device=first.device).unbind(1)
        return {
            "question": batch["question"],
            "span_score": found.spans.score[:, 0],
            "exact": exact,
            "f1": f1,
            "null_score": found.null,
            "null_credit": credit,
            "answerable": answerable,
        }
