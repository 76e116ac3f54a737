"""Mixup: mixtures of two texts, which have the labels of both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, ClassVar, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.functional import pad

from ..functional import mix
from ..functional.mixing import mixed, mixing_share, neighbours
from ..modules import SequenceClassificationModule
from ..modules.captures import stack_of
from ..types import Batch, Objective, StepOutput
from .perturbed_embedding import PerturbedEmbedding, Tokens, embedding_layers

__all__ = ["MixupCallback"]

_SHARES, _LAYERS = 0x2545F491, 0x4F6CDD1D


class MixupCallback(Callback):
    r"""Trains on mixtures of two texts of a batch, with the labels of both.

    $\lambda h_i + (1 - \lambda) h_j$ in the place of the states $h_i$ of text $i$, and the loss
    $\lambda \ell(z, y_i) + (1 - \lambda) \ell(z, y_j)$ of what the network makes of it (mixup,
    Zhang et al. 2017, arXiv:1710.09412). $\lambda = \max(b, 1 - b)$ with
    $b \sim \mathrm{Beta}(a, a)$, one for each optimizer step. $h$ are the word embeddings
    (arXiv:1905.08941), or what leaves a layer, one of several drawn for each step (TMix,
    arXiv:2004.12239). $j$ is the neighbour of $i$ in the batch, which is drawn at random. Padding
    counts as 0, and from there on both texts are attended to; where states of a layer are mixed,
    what pools them at the end still sees the tokens of text $i$ alone.

    It costs next to nothing: the network runs once. It is the innermost of several callbacks, which
    compare predictions of the mixtures then. Logs `mixup/share`. For
    `SequenceClassificationModule`: classes, labels and values.

    Args:
        alpha: $a$, over 0; 0.2 mixes little, 1 any two parts.
        layers: where to mix: 0 the word embeddings, $m$ what leaves layer $m$.

    Raises:
        ValueError: a number lies outside its range; in `setup`, the module is of another task, has
            not as many layers, optimizes by hand, or the callback is given twice.
        TypeError: in `setup`, the module is not lmkit's.

    Example:
        >>> MixupCallback(alpha=0.4, layers=[7, 9, 12]).layers
        [7, 9, 12]
    """

    word: ClassVar[str] = "mixup"

    def __init__(self, alpha: float = 0.2, layers: Sequence[int] = (0,)) -> None:
        super().__init__()
        if not alpha > 0:
            raise ValueError(f"alpha must be over 0, got {alpha}")
        if not layers or any(not isinstance(m, int) or m < 0 for m in layers):
            raise ValueError(
                f"layers must be a list of numbers from 0, which is the embeddings; got {layers!r}"
            )
        self.alpha, self.layers = alpha, list(layers)
        self.embedding: PerturbedEmbedding | None = None
        self._module: SequenceClassificationModule | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that there are examples with one label, and layers to mix them in."""
        if stage != "fit":
            return
        if not isinstance(pl_module, SequenceClassificationModule):
            raise TypeError(
                "MixupCallback mixes examples that have one label for the whole text, those of "
                f"SequenceClassificationModule, and this is a {type(pl_module).__name__}; for "
                "other tasks take CutoffCallback or RDropCallback"
            )
        if not pl_module.automatic_optimization:
            raise ValueError("MixupCallback is for modules that optimize automatically")
        callbacks: list[Callback] = cast(Any, trainer).callbacks
        if sum(isinstance(each, MixupCallback) for each in callbacks) > 1:
            raise ValueError("MixupCallback is given twice: give it once")
        pl_module.configure_model()
        embedding_layers(pl_module)
        depth = len(self._stack(pl_module)) if any(self.layers) else 0
        if max(self.layers) > depth:
            raise ValueError(
                f"layers has {max(self.layers)}, and the network has {depth} layers: give numbers "
                f"from 0 to {depth}"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wrap the step itself, inside of all other wrappers."""
        self._release()
        module = cast(SequenceClassificationModule, pl_module)
        if getattr(getattr(trainer, "datamodule", None), "batch_size", 2) == 1:
            raise ValueError("MixupCallback mixes texts of one batch: give a batch_size over 1")
        self._module = module
        self.embedding = PerturbedEmbedding(module, getattr(trainer, "datamodule", None))
        self.embedding.attach(first=True)
        module.objective_wrappers.insert(0, self._objective)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the module as it was."""
        self._release()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave the module as it was."""
        self._release()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the module as it was."""
        self._release()

    def _objective(self, objective: Objective, batch: Batch) -> StepOutput:
        module = cast(SequenceClassificationModule, self._module)
        seed, step = module.seed or 0, module.trainer.global_step
        share = mixing_share(mix(_SHARES, seed, step), self.alpha)
        layer = self.layers[mix(_LAYERS, seed, step) % len(self.layers)]
        return self.mixed(objective, batch, share, layer)

    def mixed(self, objective: Objective, batch: Batch, share: float, layer: int) -> StepOutput:
        r"""Return the result for the mixtures of a batch.

        Args:
            objective: the step of the module.
            batch: with `labels`.
            share: $\lambda$; at 1 the batch is what it was.
            layer: where to mix.
        """
        if "segment_ids" in batch:
            raise ValueError(
                "MixupCallback mixes rows that hold one text each, and these hold several: pass "
                "batching='bucket' to the data module"
            )
        if share == 1.0:
            return objective(batch)
        module = cast(SequenceClassificationModule, self._module)
        partner = neighbours(len(batch["input_ids"]), batch["input_ids"].device)
        outputs: list[Any] = []
        with ExitStack() as hooks:
            keep = module.network.register_forward_hook(lambda m, a, out: outputs.append(out))
            hooks.callback(keep.remove)
            if layer == 0:
                hooks.enter_context(self._in_embeddings(batch, partner, share))
                first = objective(_lengthened(batch, partner))
            else:
                hooks.enter_context(self._in_layer(module, batch, partner, share, layer))
                first = objective(batch)
        with _answering(module.network, outputs[0]):
            other = objective({**batch, "labels": batch["labels"][partner]})
        # Rows without a label have no part, and neither has what is mixed into another of them.
        own, theirs = share * first.items.float(), (1.0 - share) * other.items.float()
        items = own + theirs
        loss = (own * first.loss + theirs * other.loss) / items.clamp(min=1e-12)
        logs = {**first.logs, "mixup/share": torch.tensor(share, device=loss.device)}
        return StepOutput(loss, items, first.logits, logs)

    @contextmanager
    def _in_embeddings(self, batch: Batch, partner: Tensor, share: float) -> Iterator[None]:
        real = batch["attention_mask"].bool()

        def move(number: int, tokens: Tokens, embedded: Tensor) -> Tensor:
            return mixed(embedded, partner, share, real)

        with cast(PerturbedEmbedding, self.embedding).moved(move, batch):
            yield

    @contextmanager
    def _in_layer(
        self, module: LightningModule, batch: Batch, partner: Tensor, share: float, layer: int
    ) -> Iterator[None]:
        real = batch["attention_mask"].bool()

        def change(layer: nn.Module, arguments: Any, output: Any) -> Any:
            hidden = output if isinstance(output, Tensor) else output[0]
            # Virtual tokens may stand in front.
            more = hidden.shape[1] - real.shape[1]
            made = mixed(hidden, partner, share, pad(real, (more, 0), value=True))
            return made if isinstance(output, Tensor) else (made, *output[1:])

        stack = self._stack(module)
        handles = [stack[layer - 1].register_forward_hook(change)]
        see = partial(_see_both, partner)
        handles += [each.register_forward_pre_hook(see, with_kwargs=True) for each in stack[layer:]]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _stack(self, module: Any) -> list[nn.Module]:
        return stack_of(module.network)[1]

    def _release(self) -> None:
        if self.embedding is not None:
            self.embedding.detach()
            self.embedding = None
        if self._module is not None:
            self._module.objective_wrappers = [
                each for each in self._module.objective_wrappers if each != self._objective
            ]
            self._module = None


@contextmanager
def _answering(network: nn.Module, output: Any) -> Iterator[None]:
    """Let a network give one answer inside the block, whatever it is asked."""
    object.__setattr__(network, "forward", lambda *_, **__: output)
    try:
        yield
    finally:
        object.__delattr__(network, "forward")


def _see_both(
    partner: Tensor, layer: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Let a layer attend to the tokens of both texts of a mixture."""
    given = tuple(
        _union(value, partner) if isinstance(value, Tensor) and value.dim() == 4 else value
        for value in arguments
    )
    masks = {n: _union(v, partner) for n, v in named.items() if "mask" in n}
    return given, {**named, **masks}


def _union(mask: Any, partner: Tensor) -> Any:
    """Join masks of two texts: of bool or 1 and 0, or what is added to the scores."""
    if not isinstance(mask, Tensor) or mask.shape[0] != len(partner):
        return mask
    if mask.is_floating_point():
        return torch.maximum(mask, mask[partner])
    return mask | mask[partner]


def _lengthened(batch: Batch, partner: Tensor) -> Batch:
    """Let a text attend to all tokens of its partner, at whose places it has none of its own."""
    real = batch["attention_mask"].bool()
    made = {**batch, "attention_mask": batch["attention_mask"] | batch["attention_mask"][partner]}
    # Some networks number positions by where there is padding, or end a text where it begins.
    for name in {"input_ids", "token_type_ids"} & batch.keys():
        made[name] = torch.where(real, batch[name], batch[name][partner])
    return made
