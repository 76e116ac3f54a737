"""Replaced-token detection."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from transformers import AutoModelForPreTraining, PreTrainedModel
from transformers.models.auto.auto_factory import _BaseAutoModelClass

from ..functional import accuracy, mix, token_cross_entropy, uniform
from ..functional.replaced_token import replace_tokens, sample_tokens, token_binary_cross_entropy
from ..types import IGNORE_INDEX, Batch, StepOutput
from .base import LMModule
from .checks import require_tokenizer
from .detection_metrics import detection_metrics, token_shares, update_detection_metrics
from .detection_networks import (
    build_generator,
    check_labels,
    discriminator_class,
    share_embeddings,
)
from .network import check_fit
from .network_inputs import network_inputs
from .sparse_head import labelled, logits_at
from .speed import set_dropout

__all__ = ["ReplacedTokenModule"]

# The samples' own stream of random numbers, beside those of masks and order.
_SAMPLES = 0x1B873593
_MASK_RATE = 0.15  # where no data module says


class ReplacedTokenModule(LMModule):
    r"""Find the tokens that a small generator has replaced (ELECTRA, arXiv:2003.10555).

    A generator fills the masked positions $C$ of a text by samples from its softmax; the network,
    a discriminator, tells for each of the $n$ real tokens whether it is still the original:

    $\mathcal{L} = \frac{1}{n} \left[ \frac{1}{p} \sum_{i \in C} -\log p_G(x_i \mid \tilde x)
    + \lambda \sum_{i=1}^{n} \mathrm{BCE}(D(\hat x)_i, \hat x_i \ne x_i) \right]$,

    with $p$ the share of tokens that the data choose. ELECTRA divides the first sum by $|C|$; to
    divide by its expectation makes both terms sums over the same $n$ tokens, so that batches of an
    accumulation window and ranks add up to one large batch exactly. No gradient flows through the
    samples. The embeddings are shared, as in ELECTRA: both terms train those, and apart from them
    the discriminator's trains nothing of the generator.

    A sample is a pure function of (seed, epoch, row, position), in evaluation of (row, position).
    `network` is the discriminator: it alone is exported, and surgeries act on it alone. A
    checkpoint holds both.

    Logs `train/loss` and `val/loss` (there the mean over $C$ plus $\lambda$ times that over all),
    under both names `generator_loss` and `_accuracy`, `discriminator_loss` and `_accuracy`, and
    `replaced_share` of the real tokens; and `val/generator_perplexity`, and of the replaced tokens
    `val/precision`, `val/recall` and `val/f1`. All are weighted by tokens.

    Args:
        model: hub name, folder, or config with a `model_type`, of the discriminator: ELECTRA, or
            another encoder (BERT, RoBERTa, ModernBERT ...) with a token classifier of two labels.
        pretrained: whether a name or folder, here and in `generator`, brings its weights.
        learning_rate: the peak of the schedule.
        weight_decay: of weight matrices; biases and normalizations have none.
        warmup: optimizer steps (int) or share of the run (float below 1).
        schedule: `"linear"`, `"cosine"` or `"constant"` after the warm-up.
        optimizer: `{"class_path": ..., "init_args": {...}}` in place of AdamW.
        dropout: of every layer of both networks, in `[0, 1)`; `None` leaves that of the config.
        compile: whether the layers are compiled; `None` decides by device and length of the run.
        generator: hub name, folder, or config with a `model_type`: any masked language model of
            the same vocabulary. `None` for an ELECTRA generator as deep as the discriminator.
        generator_size: its width as a share of the discriminator's, in `(0, 1]`; rounded to whole
            attention heads. ELECTRA has 1/4 to 1/3.
        share_embeddings: whether both have one table of tokens, and of positions and types where
            both are of one architecture.
        discriminator_weight: $\lambda$, at least 0.

    Raises:
        ValueError: a setting lies outside its range; in `configure_model`: the architecture has no
            token classifier, or generator and discriminator have vocabularies of different sizes.

    Example:
        >>> module = ReplacedTokenModule({"model_type": "electra", "vocab_size": 99,
        ...     "embedding_size": 8, "hidden_size": 16, "num_hidden_layers": 1,
        ...     "num_attention_heads": 4, "intermediate_size": 16})
        >>> module.configure_model()
        >>> module.generator.config.hidden_size
        4
        >>> ids = torch.tensor([[2, 7, 4, 3]])
        >>> batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids),
        ...     "labels": torch.tensor([[-100, -100, 9, -100]])}
        >>> module.step(batch).items.item()
        4
    """

    auto_class: ClassVar[type[_BaseAutoModelClass]] = AutoModelForPreTraining
    generator: PreTrainedModel

    def __init__(
        self,
        model: str | dict[str, Any],
        pretrained: bool = True,
        learning_rate: float = 5e-4,
        weight_decay: float = 0.01,
        warmup: int | float = 0.06,
        schedule: str = "linear",
        optimizer: dict[str, Any] | None = None,
        dropout: float | None = 0.0,
        compile: bool | None = None,
        generator: str | dict[str, Any] | None = None,
        generator_size: float = 0.25,
        share_embeddings: bool = True,
        discriminator_weight: float = 50.0,
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
        )
        if not 0.0 < generator_size <= 1.0:
            raise ValueError(f"generator_size must lie in (0, 1], got {generator_size}")
        if discriminator_weight < 0:
            raise ValueError(f"discriminator_weight must be at least 0, got {discriminator_weight}")
        #: Share of the tokens that the data choose in training; the data module's, if it says.
        self.mask_rate = _MASK_RATE

    def configure_model(self) -> None:
        """Build both networks; when they are built, do nothing."""
        if getattr(self, "generator", None) is not None:
            return
        # Of an architecture that is not ELECTRA it is another than the class's.
        self.auto_class = discriminator_class(self.hparams["model"])  # type: ignore[misc]
        super().configure_model()
        check_labels(self.network)
        generator, size = self.hparams["generator"], self.hparams["generator_size"]
        pretrained = self.hparams["pretrained"]
        built = build_generator(self.network, generator, size, pretrained, self.tokenizer)
        if self.hparams["share_embeddings"]:
            share_embeddings(built, self.network)
        if self.hparams["dropout"] is not None:
            set_dropout(built, self.hparams["dropout"])
        self.generator = built

    def setup(self, stage: str) -> None:
        """Check that the data fit both networks, and ask them for the share of chosen tokens."""
        super().setup(stage)
        datamodule = getattr(self.trainer, "datamodule", None)
        check_fit(self.generator, self.tokenizer, getattr(datamodule, "max_length", None))
        self.mask_rate = getattr(datamodule, "mask_rate", None) or _MASK_RATE

    @property
    def networks(self) -> list[PreTrainedModel]:
        """The networks that a step runs."""
        return [self.network, self.generator]

    def prepare(self, batch: Batch) -> Batch:
        """Add `draws`, float64 `[B, L]` in `[0, 1)`: what the samples are drawn by."""
        rows, length = batch["input_ids"].shape
        index = batch.get("index", torch.arange(rows, device=batch["input_ids"].device))
        training = self.training and self.seed is not None
        stream = mix(_SAMPLES, self.seed or 0, self.current_epoch) if training else mix(_SAMPLES)
        # On the device of the batch, for which no number has to leave it.
        return {**super().prepare(batch), "draws": uniform(index + stream, length)}

    def step(self, batch: Batch) -> StepOutput:
        """Compute the loss of both networks.

        Args:
            batch: `input_ids`, `attention_mask` and `labels`, each int64 `[B, L]`; perhaps
                `label_positions`, `draws` of `prepare`, `index`, and `segment_ids` and
                `position_ids` of packed rows.

        Returns:
            Loss, the number $n$ of real tokens, and the discriminator's scores `[B, L]`, above 0
            where it takes a token for replaced. Logs are what the metrics are made of.
        """
        text = self._replace(batch)
        generator_loss, chosen = token_cross_entropy(text.guesses, text.originals)
        scores = self._scores({**batch, "input_ids": text.corrupted})
        real = _real_tokens(batch)
        discriminator_loss, items = token_binary_cross_entropy(scores, text.replaced, real)
        first = generator_loss * chosen / (items.clamp(min=1) * self.mask_rate)
        loss = first + self.hparams["discriminator_weight"] * discriminator_loss
        logs = {
            "generator_loss": generator_loss,
            "generator_accuracy": accuracy(text.guesses, text.originals),
            "discriminator_loss": discriminator_loss,
            **token_shares(scores > 0, text.replaced, real, chosen),
        }
        return StepOutput(loss, items, scores, logs)

    def _replace(self, batch: Batch) -> _Corruption:
        positions, originals = labelled(batch)
        inputs = network_inputs(self.generator, batch)
        guesses = logits_at(self.generator, positions, **inputs)
        draws = (batch if "draws" in batch else self.prepare(batch))["draws"]
        sampled = sample_tokens(guesses, draws.flatten()[positions])
        corrupted, replaced = replace_tokens(batch["input_ids"], positions, sampled, originals)
        return _Corruption(guesses, originals, corrupted, replaced)

    def _scores(self, batch: Batch) -> Tensor:
        logits: Tensor = self.network(**network_inputs(self.network, batch)).logits
        # Of two labels the difference is the logit of the second.
        return logits if logits.ndim == 2 else logits[..., 1] - logits[..., 0]

    def build_metrics(self) -> dict[str, Metric]:
        """Make the losses, and how well each network does its part."""
        return detection_metrics()

    def update_metrics(
        self, metrics: Mapping[str, Metric], output: StepOutput, batch: Batch
    ) -> None:
        """Give the metrics the result of one batch."""
        update_detection_metrics(metrics, output, self.hparams["discriminator_weight"])

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """Tell of each token of each text how probable it is that it was replaced.

        Returns:
            For each row its `text` and `tokens`: a list of `token` and `replaced`, the
            probability, without special tokens.
        """
        probabilities = self._scores(batch).float().sigmoid()
        rows = []
        for row, ids in enumerate(batch["input_ids"]):
            if "index" in batch and batch["index"][row] < 0:
                continue  # a filler, so that each rank has as many rows
            real = batch["attention_mask"][row].bool() & ~self._special(ids)
            tokens = [
                {"token": self._text(ids[i : i + 1]), "replaced": float(probabilities[row, i])}
                for i in real.nonzero().flatten().tolist()
            ]
            rows.append({"text": self._text(ids[real]), "tokens": tokens})
        return rows

    @torch.no_grad()
    def sample(self, batch: Batch, rows: int) -> list[dict[str, Any]]:
        """Show what becomes of the first rows of a batch with labels.

        Returns:
            For each row the `original`, the `corrupted` text, the tokens that were `replaced`, and
            those that the discriminator `flagged`.
        """
        head = {name: tensor[:rows] for name, tensor in batch.items()}
        mode = self.training
        self.eval()
        text = self._replace(head)
        flagged = self._scores({**head, "input_ids": text.corrupted}) > 0
        self.train(mode)
        ids, labels = text.corrupted, head["labels"]
        original = torch.where(labels == IGNORE_INDEX, ids, labels)
        return [
            {
                "original": self._text(original[row][real]),
                "corrupted": self._text(ids[row][real]),
                "replaced": self._text(ids[row][real & text.replaced[row]]),
                "flagged": self._text(ids[row][real & flagged[row]]),
            }
            for row, real in enumerate(_real_tokens(head) & ~self._special(original))
        ]

    def _special(self, ids: Tensor) -> Tensor:
        special = require_tokenizer(self).all_special_ids
        return torch.isin(ids, torch.tensor(special, device=ids.device))

    def _text(self, ids: Tensor) -> str:
        return str(require_tokenizer(self).decode(ids.tolist())).strip()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what a checkpoint needs to be loaded alone, the generator's config among it."""
        super().on_save_checkpoint(checkpoint)
        if isinstance(self.hparams["generator"], str):
            config = self.generator.config.to_json_string(use_diff=False)
            checkpoint["hyper_parameters"]["generator"] = json.loads(config)


class _Corruption(NamedTuple):
    """What the generator made of a batch."""

    guesses: Tensor  # float [K, V], at the chosen positions
    originals: Tensor  # int64 [K]
    corrupted: Tensor  # int64 [B, L]
    replaced: Tensor  # bool [B, L]


def _real_tokens(batch: Batch) -> Tensor:
    """Return where there is a token, bool `[B, L]`: not padding, and not a filler row."""
    real = (batch["segment_ids"] > 0) if "segment_ids" in batch else batch["attention_mask"].bool()
    return real & (batch["index"] >= 0).unsqueeze(1) if "index" in batch else real
