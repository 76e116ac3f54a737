"""The embedding layers of a network, whose output a technique changes while the network runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from ..functional import mix
from ..modules import LMModule
from ..modules.multi_task import MultiTaskModule
from ..modules.scores import real_tokens
from ..surgery import NothingMatchedError, match_modules
from ..surgery.token_tables import token_tables

__all__ = ["Move", "PerturbedEmbedding", "Tokens", "embedding_layers", "special_ids", "tokens_of"]

# Positions of a text have as many numbers before those of the next begin.
_PLACES = 20
_SEGMENTS = 10
_ROWS = 6  # of an example, such as the answers to choose from


class Tokens(NamedTuple):
    """What an embedding layer reads in one call, in `R` rows of `T` tokens.

    Attributes:
        free: bool `[R, T, 1]`, which tokens may be changed: no padding, no special token.
        segments: int64 `[R, T]`, which tokens of a row are one text; `None` where each row is.
        text: int64 `[R, T]`, the number of each token's text, the same in every batch.
        place: int64 `[R, T]`, where in its text a token stands.
    """

    free: Tensor
    segments: Tensor | None
    text: Tensor
    place: Tensor

    def keys(self, stream: int) -> Tensor:
        """Return what random numbers of each token are drawn by, int64 `[R, T]`."""
        return (self.text << _PLACES) + self.place + stream

    def text_keys(self, stream: int) -> Tensor:
        """Return what random numbers of each token's text are drawn by, int64 `[R, T]`."""
        return self.text + mix(stream, 1)


#: From the number of a call, its tokens and the embeddings `[R, T, H]` to what takes their place.
Move = Callable[[int, Tokens, Tensor], Tensor]


def tokens_of(
    ids: Tensor, batch: Mapping[str, Any] | None, ignored: Tensor, offset: int = 0
) -> Tokens:
    """Describe the tokens that an embedding layer reads.

    The batch tells of padding, of texts that share a row, and of their numbers, where these are its
    own `input_ids` and not, say, the inputs of a decoder: there special ids alone tell.

    Args:
        ids: int64 `[..., T]`.
        batch: of the step, if it is a mapping.
        ignored: int64, ids of special tokens.
        offset: begins the numbers of texts, where the batch has no `index`.

    Example:
        >>> batch = {"input_ids": torch.tensor([[2, 7, 3, 0]]), "index": torch.tensor([5]),
        ...     "attention_mask": torch.tensor([[1, 1, 1, 0]])}
        >>> made = tokens_of(batch["input_ids"], batch, torch.tensor([2, 3]))
        >>> made.free.flatten().tolist(), made.text[0, 0].item()
        ([False, True, False, False], 327680)
    """
    flat = ids.reshape(-1, ids.shape[-1])
    rows, length = flat.shape
    free = ~torch.isin(flat, ignored)
    place = torch.arange(length, device=ids.device).expand(rows, -1)
    text = (_row_numbers(batch, rows, offset, ids.device) << _SEGMENTS).unsqueeze(1)
    text, segments = text.expand(rows, length), None
    if batch is not None and _is_same(ids, batch.get("input_ids")):
        if "attention_mask" in batch or "segment_ids" in batch:
            free = free & real_tokens(dict(batch)).reshape(flat.shape)
        if "segment_ids" in batch:
            segments = batch["segment_ids"]
            text = text + segments
            if "segment_index" in batch:
                # The texts that share a row are others in each batch; their numbers stay.
                text = batch["segment_index"].gather(1, (segments - 1).clamp(min=0))
                text = text << (_ROWS + _SEGMENTS)
                place = batch["position_ids"]
    return Tokens(free.unsqueeze(-1), segments, text, place)


def special_ids(
    module: LightningModule, datamodule: Any, ignore_ids: Sequence[int] | None
) -> list[int]:
    """Return the ids of special tokens: those of the tokenizer, of the configs, and given ones.

    Args:
        module: its `tokenizer` is asked, if it has one, else the data module's; and the configs of
            the networks in it.
        datamodule: of the run, or `None`.
        ignore_ids: further ids.
    """
    tokenizer = getattr(module, "tokenizer", None) or getattr(datamodule, "tokenizer", None)
    known = getattr(tokenizer, "all_special_ids", None)
    found = set(known or ()) | set(ignore_ids or ())
    if known is None:
        for network in (m for m in module.modules() if isinstance(m, PreTrainedModel)):
            for name in ("pad", "bos", "eos", "cls", "sep", "mask", "decoder_start"):
                value = getattr(network.config, f"{name}_token_id", None)
                found |= set(value) if isinstance(value, list | tuple) else {value}
    return sorted(each for each in found if each is not None)


def embedding_layers(module: LightningModule, name: str | None = None) -> list[nn.Module]:
    """Find the layers that turn the ids of tokens into embeddings.

    Args:
        module: any LightningModule, its networks built.
        name: of the layers, or a pattern, as `match_modules` takes it; by default those that the
            networks of transformers name, of an encoder-decoder both; or the only `nn.Embedding`.

    Raises:
        NothingMatchedError: there is none, or it is not clear which; names what there is.

    Example:
        >>> class Plain(LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.table = nn.Embedding(9, 2)
        >>> embedding_layers(Plain())
        [Embedding(9, 2)]
    """
    if name is not None:
        return list(match_modules(module, [name]).values())
    # Of a module of lmkit its own network, not that of a teacher or a generator.
    owner = module.network if isinstance(module, LMModule) else module
    if found := list(token_tables(owner).values()):
        return found
    tables = {n: m for n, m in module.named_modules() if isinstance(m, nn.Embedding)}
    if len(tables) == 1:
        return list(tables.values())
    raise NothingMatchedError(
        f"{type(module).__name__} does not say which layer turns tokens into embeddings: it has "
        f"{', '.join(tables) or 'no nn.Embedding'}; set embedding to the name of that layer"
    )


class PerturbedEmbedding:
    """Hooks on the embedding layers of a module, through which a technique changes what they give.

    Outside of `moved`, and where no gradient is computed, they do nothing. Of a module of lmkit
    only calls inside its `network` count: a generator that shares the layer keeps its embeddings.

    Args:
        module: its networks built.
        datamodule: of the run, or `None`.
        name: as of `embedding_layers`.
        ignore_ids: ids of tokens that stay as they are, beside special ones.

    Raises:
        NothingMatchedError: there is no such layer.
    """

    def __init__(
        self,
        module: LightningModule,
        datamodule: Any = None,
        name: str | None = None,
        ignore_ids: Sequence[int] | None = None,
    ) -> None:
        self.layers = embedding_layers(module, name)
        self._special = torch.tensor(
            special_ids(module, datamodule, ignore_ids), dtype=torch.int64, device=module.device
        )
        self._gates: list[nn.Module] = []
        if isinstance(module, LMModule) and name is None:
            tasks = module.tasks.values() if isinstance(module, MultiTaskModule) else [module]
            self._gates = [task.network for task in tasks]
        self._is_ours = isinstance(module, LMModule)
        self._inside = 0
        self._move: Move | None = None
        self._batch: Mapping[str, Any] | None = None
        self._offset = self.calls = 0
        self._handles: list[RemovableHandle] = []

    @property
    def special(self) -> Tensor:
        """The ids of tokens that stay as they are, int64 `[S]`."""
        return self._special

    def attach(self, first: bool = False) -> None:
        """Hook into the layers, perhaps before those that are hooked into them already."""
        self.detach()
        self._handles = [
            layer.register_forward_hook(self._changed, prepend=first) for layer in self.layers
        ]
        for gate in self._gates:
            self._handles += [
                gate.register_forward_pre_hook(self._entered),
                gate.register_forward_hook(self._left, always_call=True),
            ]

    def detach(self) -> None:
        """Leave the layers as they were."""
        while self._handles:
            self._handles.pop().remove()
        self._inside = 0

    @contextmanager
    def moved(self, move: Move, batch: Any, offset: int = 0) -> Iterator[None]:
        """Let a function change the embeddings while the network runs inside the block.

        Args:
            move: called with the number of the call in this block, from 0.
            batch: of the step.
            offset: as of `tokens_of`.
        """
        before = self._move, self._batch, self._offset, self.calls
        self._move, self._offset, self.calls = move, offset, 0
        self._batch = batch if isinstance(batch, Mapping) else None
        try:
            yield
        finally:
            self._move, self._batch, self._offset, _ = before

    def _changed(self, layer: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Any:
        if self._move is None or not torch.is_grad_enabled():
            return None
        if self._gates and not self._inside:
            return None
        ids = arguments[0]
        if ids.is_floating_point():
            raise TypeError(
                f"{type(layer).__name__} reads {ids.dtype} and no ids of tokens, so it is no "
                "embedding of words; set embedding to the name of one"
            )
        batch = _part_of(self._batch, ids) if self._is_ours else _plain_part(self._batch, ids)
        tokens = tokens_of(ids, batch, self._special, self._offset)
        number, self.calls = self.calls, self.calls + 1
        rows = output.reshape(*tokens.free.shape[:2], output.shape[-1])
        return self._move(number, tokens, rows).reshape(output.shape)

    def _entered(self, *_: Any) -> None:
        self._inside += 1

    def _left(self, *_: Any) -> None:
        self._inside -= 1


def _part_of(batch: Mapping[str, Any] | None, ids: Tensor) -> Mapping[str, Any] | None:
    """Return of a batch of several tasks the part that ids are of."""
    for name in (name for name in batch or {} if name.endswith("/input_ids")):
        if batch is not None and _is_same(ids, batch.get(name)):
            prefix = name.removesuffix("input_ids")
            return {k.removeprefix(prefix): v for k, v in batch.items() if k.startswith(prefix)}
    return batch


def _plain_part(batch: Mapping[str, Any] | None, ids: Tensor) -> Mapping[str, Any]:
    """Return of a batch of another module what means the same everywhere: ids, padding, numbers."""
    known: dict[str, Any] = {}
    if batch is not None and _is_same(ids, batch.get("input_ids")):
        known["input_ids"], mask = batch["input_ids"], batch.get("attention_mask")
        if isinstance(mask, Tensor) and mask.shape == known["input_ids"].shape:
            # Where it is added to scores, what counts is 0 and the rest far below.
            is_added = mask.is_floating_point() and bool((mask < 0).any())
            known["attention_mask"] = mask >= 0 if is_added else mask > 0
    if batch is not None and isinstance(index := batch.get("index"), Tensor) and index.dim() == 1:
        known["index"] = index
    return known


def _is_same(ids: Tensor, other: Any) -> bool:
    """Whether two tensors are the same numbers in memory, perhaps in another shape."""
    return (
        isinstance(other, Tensor)
        and ids.numel() == other.numel()
        and ids.data_ptr() == other.data_ptr()
    )


def _row_numbers(
    batch: Mapping[str, Any] | None, rows: int, offset: int, device: torch.device
) -> Tensor:
    """Number the rows, int64 `[R]`, by the index of their example, which may have several."""
    index = None if batch is None else batch.get("index")
    if not isinstance(index, Tensor) or index.dim() != 1 or rows % len(index):
        return torch.arange(rows, device=device) + offset
    each = rows // len(index)
    return ((index << _ROWS).unsqueeze(1) + torch.arange(each, device=device)).flatten()
