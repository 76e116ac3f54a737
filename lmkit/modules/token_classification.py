"""Token classification: a tag for each word, such as of named entities or parts of speech."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torchmetrics import Metric
from transformers import AutoModelForTokenClassification
from transformers.models.auto.auto_factory import _BaseAutoModelClass

from ..functional import token_cross_entropy
from ..tokenization.word_pieces import join_words, piece_encoder, split_words
from ..tokenization.word_windows import WordLayout
from ..types import Batch, StepOutput
from .base import LMModule
from .checks import require_tokenizer
from .entity_metrics import (
    EntityF1,
    EntityPrecision,
    EntityRecall,
    EntityTypes,
    WordAccuracy,
    WordConfusion,
    confusion_rows,
    entity_rows,
)
from .network import usable_positions
from .network_inputs import check_packing, network_inputs
from .scores import Scores, token_scores
from .token_metrics import TokenMean
from .word_predictions import label_list, outside_label, read_rows, row_record, word_choices
from .word_samples import tagged_samples

__all__ = ["TokenClassificationModule"]

# Of raw text: sentences at a time, and tokens of a window where the network sets no bound.
_AT_ONCE = 32
_LONGEST = 512


class TokenClassificationModule(LMModule):
    r"""Tag the words of a text: named entities, parts of speech and the like.

    $\mathcal{L} = -\frac{1}{|P|} \sum_{i \in P} \log p_\theta(y_i \mid x)$, where $P$ are the
    labelled pieces: by default the first of each word, as in BERT (arXiv:1810.04805). The labels
    are the data module's, and stand in the config of the export.

    A word is tagged by its first piece, in training, evaluation and prediction. Logs `train/loss`
    and of the validation `val/loss` and `val/accuracy` (share of words); where the tags spell
    entities also `val/f1`, `val/precision` and `val/recall` of entities (CoNLL-2003,
    arXiv:cs/0306050), equal to `seqeval`'s over the whole data set. A word that the tokenizer makes
    nothing of counts as predicted `O`, and where there is none as wrong. A test also gives a table
    and a figure of each type of entity, or of each tag.

    Args:
        model: hub name, folder, or config with a `model_type`: any encoder.
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

    Example:
        >>> module = TokenClassificationModule({"model_type": "bert", "vocab_size": 99,
        ...     "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        ...     "intermediate_size": 8, "id2label": {0: "O", 1: "B-PER", 2: "I-PER"}})
        >>> module.configure_model()
        >>> ids = torch.tensor([[2, 7, 4, 3]])
        >>> batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids),
        ...     "labels": torch.tensor([[-100, 1, 0, -100]])}
        >>> module.step(batch).items.item()
        2
    """

    auto_class: ClassVar[type[_BaseAutoModelClass]] = AutoModelForTokenClassification

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
        """Compute the loss at the labelled pieces.

        Args:
            batch: `input_ids`, `attention_mask` and `labels`, each int64 `[B, L]`, or `[B, K, L]`
                where sentences have several windows.

        Returns:
            Loss, number of labelled pieces, and logits `[B, L, C]` or `[B, K, L, C]`.
        """
        logits = self._logits(batch)
        loss, count = token_cross_entropy(logits, batch["labels"])
        return StepOutput(loss, count, logits)

    def scores(self, output: StepOutput, batch: Batch) -> Scores:
        """Return one item for each labelled piece; of a text without labels all its pieces."""
        assert output.logits is not None
        if batch["input_ids"].dim() == 2:
            return token_scores(output.logits, batch)
        names = ("input_ids", "attention_mask", "labels")
        flat = {name: batch[name].flatten(0, 1) for name in names}
        if "index" in batch:
            flat["index"] = batch["index"].repeat_interleave(batch["input_ids"].shape[1])
        return token_scores(output.logits.flatten(0, 1), flat)

    def keeps_apart(self, longest: int) -> bool:
        """Whether sentences may share a row of up to `longest` tokens, each as if it were alone."""
        try:
            check_packing(self.network, longest, causal=self.is_causal)
        except ValueError:
            return False
        return True

    def build_metrics(self) -> dict[str, Metric]:
        """Make loss and accuracy, and where labels spell entities their scores."""
        outside = outside_label(self._labels)
        metrics: dict[str, Metric] = {"loss": TokenMean(), "accuracy": WordAccuracy(outside)}
        if outside is not None:
            metrics |= {
                "f1": EntityF1(self._labels),
                "precision": EntityPrecision(self._labels),
                "recall": EntityRecall(self._labels),
            }
        return metrics

    def build_tables(self) -> dict[str, Metric]:
        """Make counts of entities by type, or of words by tag."""
        if outside_label(self._labels) is not None:
            return {"entities": EntityTypes(self._labels)}
        return {"tags": WordConfusion(len(self._labels))}

    def update_metrics(
        self, metrics: Mapping[str, Metric], output: StepOutput, batch: Batch
    ) -> None:
        """Give the metrics the result of one batch: words against their labels."""
        assert output.logits is not None
        choices = word_choices(output.logits, batch["word_positions"])
        for name, metric in metrics.items():
            if name == "loss":
                metric.update(output.loss, output.items)
            else:
                metric.update(choices, batch["word_labels"])

    def update_tables(self, tables: Mapping[str, Metric], output: StepOutput, batch: Batch) -> None:
        """Give the counts the result of one batch."""
        assert output.logits is not None
        choices = word_choices(output.logits, batch["word_positions"])
        for table in tables.values():
            table.update(choices, batch["word_labels"])

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """Return precision, recall, F1 and numbers of each type of entity, or of each tag."""
        made: dict[str, list[dict[str, Any]]] = {}
        for name, metric in self._counts():
            if isinstance(metric, EntityTypes):
                made[name] = entity_rows(metric.types, metric.compute())
            else:
                made[name] = confusion_rows(self._labels, metric.compute())
        return made

    def figures(self) -> dict[str, Any]:
        """Return bars of each type of entity, or bars and the confusion of tags."""
        from ..figures import bar_figure, confusion_figure

        made: dict[str, Any] = {}
        for name, rows in self.tables().items():
            key = "type" if name == "entities" else "tag"
            shown = ("precision", "recall", "f1")
            bars = {row[key]: {score: row[score] for score in shown} for row in rows}
            made[name] = bar_figure(bars)
        for _, metric in self._counts():
            if isinstance(metric, WordConfusion):
                made["confusion"] = confusion_figure(metric.compute()[:, :-1].cpu(), self._labels)
        return made

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """Tag the words of each sentence.

        Returns:
            What `row_record` makes of each row, fillers included: `entities` or `words`.
        """
        datamodule = getattr(self._trainer, "datamodule", None) if self._trainer else None
        places = batch.get("word_places")
        words = batch["word_labels"] >= 0 if places is None else places[..., 0] >= 0
        rows = read_rows(
            self._logits(batch), batch["word_positions"], words.sum(1).tolist(), self._labels
        )
        records = []
        for number, row in enumerate(rows):
            text = None
            if places is not None and datamodule is not None and batch["index"][number] >= 0:
                text = datamodule.inputs(int(batch["index"][number])).get("text")
            spans = None if places is None else [(s, e) for s, e in places[number].tolist()]
            records.append(row_record(row, self._labels, spans, text))
        return records

    @torch.no_grad()
    def forward(self, texts: str | Sequence[str | Sequence[str]]) -> Any:
        """Tag raw text.

        Args:
            texts: a text, or a list of texts, each of which may be a list of words. A text is split
                into words at spaces and around punctuation; one that is too long for the network is
                read in overlapping windows.

        Returns:
            Of a text a dictionary as of `row_record`, of a list a list of these.

        Raises:
            ValueError: the module has no tokenizer.
        """
        if isinstance(texts, str):
            return self.forward([texts])[0]
        tokenizer = require_tokenizer(self)
        longest = usable_positions(self.network) or _LONGEST
        layout = WordLayout.of(tokenizer, min(longest, tokenizer.model_max_length, _LONGEST))
        encode = piece_encoder(tokenizer)
        records = []
        mode = self.network.training
        self.network.train(False)
        for first in range(0, len(texts), _AT_ONCE):
            asked = [_words_of(text) for text in texts[first : first + _AT_ONCE]]
            pieces = encode([[text[s:e] for s, e in places] for text, places in asked])
            laid = layout.lay([layout.limited(words)[0] for words in pieces])
            ids, mask, positions = (torch.from_numpy(a).to(self.device) for a in laid)
            logits = self._logits({"input_ids": ids, "attention_mask": mask})
            rows = read_rows(logits, positions, [len(p) for _, p in asked], self._labels)
            for row, (text, places) in zip(rows, asked, strict=True):
                records.append(row_record(row, self._labels, places, text))
        self.network.train(mode)
        return records

    @torch.no_grad()
    def sample(self, batch: Batch, rows: int) -> list[dict[str, Any]]:
        """Show how the network tags the first sentences of a batch with labels.

        Returns:
            For each its `text`, and what is `tagged` and should be (`gold`).
        """
        head = {name: tensor[:rows] for name, tensor in batch.items()}
        mode = self.network.training
        self.network.train(False)
        choices = word_choices(self._logits(head), head["word_positions"])
        self.network.train(mode)
        return tagged_samples(head, choices, self._labels, require_tokenizer(self))

    @property
    def _labels(self) -> list[str]:
        return label_list(self.network.config)

    def _logits(self, batch: Batch) -> Tensor:
        ids = batch["input_ids"]
        if ids.dim() == 2:
            return cast(Tensor, self.network(**network_inputs(self.network, batch)).logits)
        flat = {name: batch[name].flatten(0, 1) for name in ("input_ids", "attention_mask")}
        # Most sentences have fewer windows than the longest.
        used = flat["attention_mask"].any(1).nonzero().flatten()
        inputs = network_inputs(self.network, {k: v[used] for k, v in flat.items()})
        logits: Tensor = self.network(**inputs).logits
        every = logits.new_zeros(len(flat["input_ids"]), *logits.shape[1:])
        every = every.index_copy(0, used, logits)
        return cast(Tensor, every.unflatten(0, ids.shape[:2]))

    def _counts(self) -> list[tuple[str, Metric]]:
        tables = cast(Mapping[str, Metric], self.metrics["test_tables"])
        return [(name, metric) for name, metric in tables.items() if metric.update_called]


def _words_of(text: str | Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    return (text, split_words(text)) if isinstance(text, str) else join_words(text)
