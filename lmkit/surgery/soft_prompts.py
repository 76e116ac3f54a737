"""How prompts come in front of the embeddings of a text, and out of what is made of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from .virtual_tokens import (
    VirtualTokens,
    check_mask,
    lengthen,
    named_arguments,
    parameter_names,
    position_table,
    seen_tokens,
)

__all__ = ["SoftPrompts"]


class SoftPrompts(VirtualTokens):
    """Puts prompts in front of what an encoder or decoder reads, and drops them from its result.

    Before the module runs, `input_ids` `[B, L]` become `inputs_embeds` `[B, P + L, d]`, the mask
    gets ones and the token types zeros in front, and the positions of the text stay what they are.
    Behind it hidden states are those of the text alone, and so is what a pooler in it sees; the
    rows of attention weights too, while their columns are all $P + L$.

    With a cache of keys and values that is not empty, the prompts are in it: later tokens get
    their own positions and a longer mask.

    Args:
        stack: the encoder or decoder that the prompts are for; takes `inputs_embeds`.
        decoder: of an encoder-decoder whose `stack` is the encoder. It attends to the prompts, so
            the encoder's states keep them.

    Raises:
        ValueError: the architecture does not take what the prompts need.
    """

    def __init__(self, stack: nn.Module, decoder: nn.Module | None = None) -> None:
        super().__init__()
        self.stays = decoder is not None
        self._added = 0  # in the call that runs
        table = position_table(stack)
        self._takes_positions = "position_ids" in parameter_names(stack)
        self._rows: int | None = None
        self._first, self._from_ids = 0, False
        if table is not None and self._takes_positions:
            # RoBERTa and its kin leave padding out when they number, and start behind its id.
            self._from_ids = table.padding_idx is not None
            self._first = 0 if table.padding_idx is None else table.padding_idx + 1
            self._rows = table.num_embeddings - int(getattr(table, "offset", 0))
            kernel = str(getattr(getattr(stack, "config", None), "_attn_implementation", ""))
            if "flash" in kernel:
                raise ValueError(
                    f"attn_implementation={kernel!r} takes positions that start anew for a second "
                    "text, and those behind a prompt do; load the network with 'sdpa'"
                )

    def attach(self, stack: nn.Module, decoder: nn.Module | None = None) -> None:
        """Register on the stack, and hook into it, its pooler, its positions and the decoder."""
        stack.soft_prompts = self
        # Before a prefix, which fills the cache that tells the first call from later ones.
        stack.register_forward_pre_hook(self.before, with_kwargs=True, prepend=True)
        stack.register_forward_hook(self.after)
        pooler = getattr(stack, "pooler", None)
        if isinstance(pooler, nn.Module) and _of_first(stack) is None:
            pooler.register_forward_pre_hook(self.before_pooler)
        if not self._takes_positions and isinstance(positions := _indexed(stack), nn.Module):
            positions.register_forward_pre_hook(self.before_positions, with_kwargs=True)
            positions.register_forward_hook(self.after_positions)
        if decoder is not None:
            decoder.register_forward_pre_hook(self.before_decoder, with_kwargs=True)

    def before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Put the prompts in front, unless the cache has them."""
        self._added = 0
        count = self.count
        if not count:
            return None
        inputs = named_arguments(module, args, kwargs)
        mask = inputs.get("attention_mask")
        check_mask(mask, "prompt tuning")
        seen = seen_tokens(inputs.get("past_key_values"))
        ids, embeds = inputs.get("input_ids"), inputs.get("inputs_embeds")
        if (ids is None) == (embeds is None):
            return None  # the network says what is wrong
        self._place(module, inputs, seen, count)
        if seen:
            if mask is not None:
                inputs["attention_mask"] = lengthen(mask, count)
            return (), inputs
        if embeds is None:
            embeds = cast(PreTrainedModel, module).get_input_embeddings()(ids)
        rows, length = embeds.shape[:2]
        prompts = torch.cat([part() for part in self.active]).to(embeds.dtype)
        inputs["input_ids"] = None
        inputs["inputs_embeds"] = torch.cat([prompts.expand(rows, -1, -1), embeds], dim=1)
        if mask is None:
            # Without one, transformers would take the positions for those of packed texts.
            mask = torch.ones(rows, length, dtype=torch.int64, device=embeds.device)
        inputs["attention_mask"] = lengthen(mask, count)
        if inputs.get("token_type_ids") is not None:
            inputs["token_type_ids"] = functional.pad(inputs["token_type_ids"], (count, 0))
        self._added = count
        return (), inputs

    def after(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Drop the prompts from hidden states, and from the rows of attention weights."""
        if not self._added or self.stays:
            return None
        if not isinstance(output, ModelOutput):
            return tuple(_drop(value, self._added) for value in output)
        for name in ("last_hidden_state", "hidden_states", "attentions"):
            if output.get(name) is not None:
                output[name] = _drop(output[name], self._added)
        activation = _of_first(module)
        if activation is not None and output.get("pooler_output") is not None:
            pooled = cast(Any, module).pooler(output["last_hidden_state"][:, 0])
            output["pooler_output"] = activation(pooled)
        return output

    def before_pooler(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Let a pooler see the text alone, whose first token it summarises."""
        return (args[0][:, self._added :], *args[1:]) if self._added else None

    def before_positions(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Let a module that numbers what it is given number the text alone."""
        if not self._added:
            return None
        short = {name: _shorten(value, self._added) for name, value in kwargs.items()}
        return tuple(_shorten(value, self._added) for value in args), short

    def after_positions(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        """Give the prompts no position: they learn what they need."""
        return functional.pad(output, (0, 0, self._added, 0)) if self._added else None

    def before_decoder(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Let the decoder attend to the prompts: its mask of the source has the text alone."""
        inputs = named_arguments(module, args, kwargs)
        mask, states = (inputs.get(f"encoder_{n}") for n in ("attention_mask", "hidden_states"))
        if mask is None or states is None:
            return None
        check_mask(mask, "prompt tuning")
        inputs["encoder_attention_mask"] = lengthen(mask, states.shape[1] - mask.shape[1])
        return (), inputs

    def _place(self, module: nn.Module, inputs: dict[str, Any], seen: int, count: int) -> None:
        """Number the tokens, where the architecture lets itself be told."""
        if not self._takes_positions:
            return
        own, adding = inputs.get("position_ids"), not seen
        if self._rows is None:
            # Only differences count: the text moves to behind the prompts.
            if own is not None:
                first = torch.arange(count, device=own.device).expand(own.shape[0], -1)
                own = own + count
                inputs["position_ids"] = torch.cat([first, own], dim=1) if adding else own
            return
        if own is None:
            own = self._positions(inputs, seen and seen - count - _prefix(module))
        if adding:
            # They share a table of limited length with the text, whose every row may be taken.
            last = self._rows - 1 - self._first
            first = torch.arange(count, device=own.device).clamp(max=last) + self._first
            own = torch.cat([first.expand(own.shape[0], -1), own], dim=1)
        inputs["position_ids"] = own

    def _positions(self, inputs: Mapping[str, Any], seen: int) -> Tensor:
        """Number the text as its architecture does when it is not told."""
        ids = inputs.get("input_ids")
        if ids is not None and self._from_ids:
            real: Tensor = (ids != self._first - 1).long()
            return (real.cumsum(1) + seen) * real + self._first - 1
        text = cast(Tensor, inputs["inputs_embeds"] if ids is None else ids)
        first = seen + self._first
        return torch.arange(first, first + text.shape[1], device=text.device).unsqueeze(0)


def _prefix(module: nn.Module) -> int:
    return int(getattr(getattr(module, "prefixes", None), "count", 0))


def _of_first(stack: Any) -> Any:
    """Return the activation of a pooler that is given the first position, ALBERT's or BigBird's.

    In front of it there is a prompt.
    """
    name = "pooler_activation" if hasattr(stack, "pooler_activation") else "activation"
    return getattr(stack, name, None) if hasattr(stack, "pooler") else None


def _indexed(stack: nn.Module) -> nn.Module | None:
    """Return what numbers the inputs of BART's kin, which take no positions."""
    return getattr(stack, "embed_positions", None)


def _drop(value: Any, count: int) -> Any:
    """Cut the first positions off hidden states `[B, L, d]` and attentions `[B, H, L, M]`."""
    if isinstance(value, tuple):
        return tuple(_drop(each, count) for each in value)
    if isinstance(value, Tensor) and value.dim() in (3, 4):
        return value[..., count:, :]
    return value


def _shorten(value: Any, count: int) -> Any:
    if isinstance(value, torch.Size):
        return torch.Size([value[0], value[1] - count, *value[2:]])
    if isinstance(value, Tensor) and value.dim() > 1:
        return value[:, count:]
    return value
