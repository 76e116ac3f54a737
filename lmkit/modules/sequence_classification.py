"""Classification of texts and of pairs of texts, and regression."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor
from torchmetrics import Metric
from transformers import AutoModelForSequenceClassification
from transformers.models.auto.auto_factory import _BaseAutoModelClass

from ..functional.classification import binary_loss, class_loss, regression_loss
from ..tokenization import require_pad_token
from ..types import Batch, StepOutput
from .base import LMModule
from .checks import require_tokenizer
from .class_metrics import (
    Confusion,
    LabelCounts,
    Reliability,
    ValuePairs,
    class_figures,
    class_rows,
    label_rows,
    task_metrics,
    update_class_metrics,
)
from .class_predictions import class_weights, read_classes
from .network import usable_positions
from .network_inputs import network_inputs
from .scores import Scores, row_scores
from .token_metrics import TokenMean
from .word_predictions import label_list

__all__ = ["SequenceClassificationModule"]

# Of raw text: texts at a time.
_AT_ONCE = 32


class SequenceClassificationModule(LMModule):
    r"""Tell the class of a text or of a pair of texts, or a number.

    With one label per example $\mathcal{L} = -\frac{1}{N} \sum_i \log p_\theta(y_i \mid x_i)$, with
    any number of labels the mean of the binary cross-entropies, in a regression the mean squared
    error (BERT, arXiv:1810.04805, section 4.1). Which of them is the data module's `task`, and
    stands in the config of the export as `problem_type`, beside the names of the classes.

    Logs `train/loss` and `val/loss`; with one label `val/accuracy`, `val/macro_f1` and `val/mcc`
    (Matthews' correlation); with several `val/accuracy` (of all decisions), `val/f1` (micro) and
    `val/macro_f1`; in a regression `val/pearson`, `val/spearman` and `val/mse`. The validation loss
    is the one that is trained. A test also gives a table of the classes, and figures.

    Args:
        model: hub name, folder, or config with a `model_type`: any architecture with a head for
            sequences (BERT, RoBERTa, DistilBERT, ELECTRA, ModernBERT, GPT-2, Llama ...).
        pretrained: whether a name or folder brings its weights. Those it lacks, such as the head,
            are drawn at random.
        learning_rate: the peak of the schedule.
        weight_decay: of weight matrices; biases and normalizations have none.
        warmup: optimizer steps (int) or share of the run (float below 1).
        schedule: `"linear"`, `"cosine"` or `"constant"` after the warm-up.
        optimizer: `{"class_path": ..., "init_args": {...}}` in place of AdamW.
        dropout: of every layer in training, in `[0, 1)`; `None` leaves what the config says.
        compile: whether the layers are compiled; `None` decides by device and length of the run.
        layer_decay: factor of the learning rate from each layer to the one below, in `(0, 1]`.
        pooling: `"cls"` or `"mean"`, what the head sees, for architectures that have the choice
            (ModernBERT ...); `None` leaves what the config says.
        class_weights: how much an example of each class counts: a list in the order of the classes,
            a dictionary by name (1 for the others), or `"balanced"`, all classes as much. In
            multi-label data they weight the positive labels.
        label_smoothing: $\epsilon$ in `[0, 1)`, the share of the target that is spread over all
            classes; with one label only.
        focal_gamma: $\gamma \ge 0$ of the focal loss, 0 for none; not in a regression.
        threshold: in multi-label data, the probability from which on a label is predicted.

    Raises:
        ValueError: an argument lies outside its range; in `setup`, one does not go with the task,
            or there are no such classes.

    Example:
        >>> module = SequenceClassificationModule({"model_type": "bert", "vocab_size": 99,
        ...     "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        ...     "intermediate_size": 8, "id2label": {0: "no", 1: "yes"}})
        >>> module.configure_model()
        >>> ids = torch.tensor([[2, 7, 4, 3]])
        >>> batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids),
        ...     "labels": torch.tensor([1])}
        >>> module.step(batch).items.item()
        1.0
    """

    auto_class: ClassVar[type[_BaseAutoModelClass]] = AutoModelForSequenceClassification
    weights: Tensor | None

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
        pooling: Literal["cls", "mean"] | None = None,
        class_weights: Literal["balanced"] | list[float] | dict[str, float] | None = None,
        label_smoothing: float = 0.0,
        focal_gamma: float = 0.0,
        threshold: float = 0.5,
    ) -> None:
        more = optimizer, dropout, compile, layer_decay
        super().__init__(model, pretrained, learning_rate, weight_decay, warmup, schedule, *more)
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"label_smoothing must lie in [0, 1), got {label_smoothing}")
        if focal_gamma < 0.0:
            raise ValueError(f"focal_gamma must be at least 0, got {focal_gamma}")
        if not 0.0 < threshold < 1.0:
            raise ValueError(f"threshold must lie in (0, 1), got {threshold}")
        if pooling not in (None, "cls", "mean"):
            raise ValueError(f"pooling must be one of cls, mean, got {pooling!r}")
        self.register_buffer("weights", None, persistent=False)

    @property
    def task(self) -> str:
        """`"single_label"`, `"multi_label"` or `"regression"`, as the network's config says."""
        config = self.network.config
        if config.problem_type is not None:
            return str(config.problem_type).removesuffix("_classification")
        return "regression" if config.num_labels == 1 else "single_label"

    def configure_model(self) -> None:
        """Build the network, with the pooling that is asked for."""
        if getattr(self, "network", None) is not None:
            return
        super().configure_model()
        if pooling := self.hparams["pooling"]:
            if not hasattr(self.network.config, "classifier_pooling"):
                raise ValueError(
                    f"pooling={pooling!r}: the architecture {self.network.config.model_type!r} has "
                    "one way of pooling only; leave pooling out, or take e.g. modernbert"
                )
            self.network.config.classifier_pooling = pooling

    def setup(self, stage: str) -> None:
        """Check that the data are of the network's task, and weigh its classes."""
        self.configure_model()
        data: Any = getattr(self.trainer, "datamodule", None)
        theirs = getattr(data, "task", self.task)
        if stage != "predict" and theirs != self.task:
            raise ValueError(
                f"the data are for task={theirs!r} and the model for {self.task!r}; give the data "
                f"task={self.task!r}"
            )
        super().setup(stage)
        if self.task != "single_label" and self.hparams["label_smoothing"]:
            raise ValueError(f"label_smoothing is for one label per example, got task={self.task}")
        if self.task == "regression":
            for name in ("class_weights", "focal_gamma"):
                if self.hparams[name]:
                    raise ValueError(f"{name} is for classes, and the task is a regression")
        setting = self.hparams["class_weights"]
        # Without training data a balance is not known, and the loss of a test is not weighted.
        if stage == "fit" or (stage != "predict" and setting != "balanced"):
            count: Any = getattr(data, "label_counts", list) if setting == "balanced" else list
            self.weights = class_weights(setting, self._labels, count())

    def step(self, batch: Batch) -> StepOutput:
        """Compute the loss of examples.

        Args:
            batch: `input_ids` and `attention_mask`, int64 `[B, L]`, of pairs perhaps
                `token_type_ids`; and `labels`: int64 `[B]`, -100 for a filler; in multi-label data
                float `[B, C]`, in a regression float `[B]`, NaN for a filler.

        Returns:
            Loss, number (or weight) of examples, and logits `[B, C]`.
        """
        logits = self._logits(batch)
        labels, gamma = batch["labels"], self.hparams["focal_gamma"]
        if self.task == "regression":
            loss, items = regression_loss(logits, labels)
        elif self.task == "multi_label":
            loss, items = binary_loss(logits, labels, self.weights, gamma)
        else:
            smoothing = self.hparams["label_smoothing"]
            loss, items = class_loss(logits, labels, self.weights, smoothing, gamma)
        return StepOutput(loss, items, logits)

    def scores(self, output: StepOutput, batch: Batch) -> Scores:
        """Return one item for each example."""
        assert output.logits is not None
        kinds: dict[str, Any] = {"multi_label": "labels", "regression": "value"}
        return row_scores(kinds.get(self.task, "classes"), output.logits, batch)

    def build_metrics(self) -> dict[str, Metric]:
        """Make the loss and the metrics of the task."""
        return {"loss": TokenMean(), **task_metrics(self.task, len(self._labels))}

    def build_tables(self) -> dict[str, Metric]:
        """Make what tables and figures are drawn from."""
        classes = len(self._labels)
        if self.task == "regression":
            return {"pairs": ValuePairs()}
        if self.task == "multi_label":
            return {"counts": LabelCounts(classes, self.hparams["threshold"])}
        return {"confusion": Confusion(classes), "reliability": Reliability()}

    def update_metrics(
        self, metrics: Mapping[str, Metric], output: StepOutput, batch: Batch
    ) -> None:
        """Give the metrics the result of one batch, without its fillers."""
        update_class_metrics(metrics, output, batch["labels"], self.task, self.hparams["threshold"])

    def update_tables(self, tables: Mapping[str, Metric], output: StepOutput, batch: Batch) -> None:
        """Give the counts the result of one batch."""
        for table in tables.values():
            table.update(output.logits, batch["labels"])

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """Return precision, recall, F1 and numbers of each class."""
        found = self._counts()
        if "confusion" in found:
            return {"classes": class_rows(self._labels, found["confusion"])}
        return {"classes": label_rows(self._labels, found["counts"])} if "counts" in found else {}

    def figures(self) -> dict[str, Any]:
        """Return confusion, scores of the classes and reliability; of a regression the values."""
        return class_figures(self._counts(), self.tables().get("classes", []), self._labels)

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """Return the prediction of each row, fillers included: see `forward`."""
        return self._read(batch)

    @torch.no_grad()
    def forward(self, texts: Any, pairs: Any = None) -> Any:
        """Predict on raw text.

        Args:
            texts: a text, or a list of texts.
            pairs: the second text, or a list of them, for a model of pairs.

        Returns:
            Of a text a dictionary, of a list a list of them: `label`, its `score` and
            `probabilities` by name; in multi-label data `labels` and `probabilities`; in a
            regression `value`.

        Raises:
            TypeError: that is no text.
            ValueError: the module has no tokenizer, or there are not as many pairs as texts.
        """
        if not isinstance(texts, str | list | tuple):
            raise TypeError(f"expected a text or a list of texts, got {type(texts).__name__}")
        if isinstance(texts, str):
            return self.forward([texts], None if pairs is None else [pairs])[0]
        if pairs is not None and len(pairs) != len(texts):
            raise ValueError(f"got {len(texts)} texts and {len(pairs)} second texts")
        tokenizer = require_tokenizer(self)
        require_pad_token(tokenizer, give=True)
        longest = min(usable_positions(self.network) or 512, tokenizer.model_max_length)
        mode = self.network.training
        self.network.train(False)
        read = []
        for first in range(0, len(texts), _AT_ONCE):
            there = slice(first, first + _AT_ONCE)
            encoded = tokenizer(
                list(texts[there]),
                None if pairs is None else list(pairs[there]),
                truncation=True,
                max_length=longest,
                padding=True,
                padding_side="right",  # as in training, whatever the tokenizer's own
                return_token_type_ids=pairs is not None,
                return_tensors="pt",
            )
            read += self._read({name: ids.to(self.device) for name, ids in encoded.items()})
        self.network.train(mode)
        return read

    @property
    def _labels(self) -> list[str]:
        return label_list(self.network.config)

    def _logits(self, batch: Batch) -> Tensor:
        if self.network.config.pad_token_id is None and self.tokenizer is not None:
            # The head of a decoder looks for the last token that is no padding.
            self.network.config.pad_token_id = self.tokenizer.pad_token_id
        return cast(Tensor, self.network(**network_inputs(self.network, batch)).logits)

    def _read(self, batch: Batch) -> list[dict[str, Any]]:
        logits = self._logits(batch)
        return read_classes(logits, self._labels, self.task, self.hparams["threshold"])

    def _counts(self) -> dict[str, Tensor]:
        tables = cast(Mapping[str, Metric], self.metrics["test_tables"])
        return {name: table.compute() for name, table in tables.items() if table.update_called}
