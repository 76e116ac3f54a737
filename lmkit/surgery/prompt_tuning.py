"""Prompt tuning and P-tuning: a frozen network, and a prompt of vectors that are learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .adapter import check_name
from .arguments import check_whole
from .prompt_encoder import ENCODERS, SoftPrompt
from .soft_prompts import SoftPrompts
from .tuning import freeze_base
from .virtual_tokens import parameter_names, seeded

__all__ = ["INITS", "PromptTuning", "bake"]

#: Where prompts start.
INITS = ("random", "vocabulary", "text")

_NEEDED = ("input_ids", "attention_mask", "inputs_embeds")


@dataclass(frozen=True)
class PromptTuning:
    r"""Freeze a network, and put $P$ learned vectors in front of the embeddings of each text.

    Prompt tuning (Lester et al. 2021, arXiv:2104.08691); with an `encoder` P-tuning (Liu et al.
    2021, arXiv:2103.10385), which learns the prompts as the outputs of a small network. $P d$
    parameters without an encoder, with $d$ the width of the embeddings. Whatever reads the network
    sees the text alone, see `SoftPrompts`; the decoder of an encoder-decoder attends to the prompts
    of its encoder. Prompts of several names stand one behind the other.

    Attributes:
        name: of the prompt; without a dot.
        length: $P$, at least 1.
        init: where the vectors start: `random`, normal with the deviation of the embeddings;
            `vocabulary`, the embeddings of $P$ tokens, drawn without special ones; `text`, the
            embeddings of `token_ids`. With an encoder `random`, standard normal.
        token_ids: of the text, repeated or cut to $P$.
        encoder: `none`, `mlp` (two layers) or `lstm` (two layers in both directions, and a
            perceptron behind them).
        hidden: width of the encoder; 0 for that of the embeddings.
        seed: what is drawn depends on it alone.
        head: whether the head of the task learns.

    Raises:
        ValueError: an attribute lies outside its range; when called, the architecture does not take
            embeddings in place of tokens, another prompt has the name, or a token is unknown.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> network = BertForSequenceClassification(BertConfig(vocab_size=9, hidden_size=8,
        ...     num_hidden_layers=1, num_attention_heads=2, intermediate_size=8))
        >>> PromptTuning(length=3, head=False)(network)
        >>> [(name, p.numel()) for name, p in network.named_parameters() if p.requires_grad]
        [('bert.soft_prompts.adapters.default.vectors', 24)]
    """

    name: str = "default"
    length: int = 10
    init: str = "random"
    token_ids: Sequence[int] = ()
    encoder: str = "none"
    hidden: int = 0
    seed: int = 0
    head: bool = True

    def __post_init__(self) -> None:
        """Check the attributes."""
        object.__setattr__(self, "token_ids", tuple(self.token_ids))
        check_name(self.name)
        check_whole("length", self.length, 1)
        check_whole("hidden", self.hidden, 0)
        for word, known in (("init", INITS), ("encoder", ENCODERS)):
            if getattr(self, word) not in known:
                raise ValueError(
                    f"{word} must be one of {', '.join(known)}, got {getattr(self, word)!r}"
                )
        if self.encoder != "none" and self.init != "random":
            raise ValueError(
                f"init={self.init!r} goes with encoder='none': what an encoder computes does not "
                "start at the embeddings that go into it"
            )
        if (self.init == "text") != bool(self.token_ids):
            raise ValueError("init='text' and token_ids go together: give both or neither")

    def __call__(self, network: nn.Module) -> None:
        """Freeze all weights, and add the prompt; when it is there, do nothing."""
        stack, decoder = _stack(network)
        prompts: Any = getattr(stack, "soft_prompts", None)
        there = prompts is not None and prompts.origins.get(self.name)
        if there == self:
            return
        if there:
            raise ValueError(
                f"there is a prompt {self.name!r} already, {there}; give this one another name"
            )
        if prompts is None:
            prompts = SoftPrompts(stack, decoder)
        with seeded(self.seed):
            start = self._start(stack)
            made = SoftPrompt(start, self.encoder, self.hidden or start.shape[1])
        freeze_base(network, self.head)
        if not hasattr(stack, "soft_prompts"):
            prompts.attach(stack, decoder)
        prompts.add(self.name, made, self)
        prompts.train(stack.training)

    @torch.no_grad()
    def _start(self, stack: PreTrainedModel) -> Tensor:
        """Return the vectors at the start, `[P, d]`."""
        table: Any = stack.get_input_embeddings()
        size, device = len(table.weight), table.weight.device
        if self.init == "random":
            known: Tensor = table(torch.arange(min(size, 4096), device=device))
            spread = 1.0 if self.encoder != "none" else float(known.float().std())
            return (torch.randn(self.length, known.shape[1]) * spread).to(known)
        if self.init == "text":
            if wrong := [i for i in self.token_ids if not 0 <= i < size]:
                raise ValueError(f"token_ids must lie in [0, {size}), got {wrong[:5]}")
            ids = torch.tensor(self.token_ids)
        else:
            order = torch.randperm(size)
            ids = order[~torch.isin(order, torch.tensor(_special_ids(stack)))]
        ids = ids.repeat(-(-self.length // len(ids)))[: self.length]
        return cast(Tensor, table(ids.to(device)))


def bake(network: nn.Module) -> None:
    """Replace each encoder of prompts by what it computes; no logit changes.

    What is left is a network with prompts of the same names and `encoder="none"`, as if these had
    been learned directly: $P d$ numbers each.

    Args:
        network: changed in place.

    Raises:
        ValueError: it has no prompts.
    """
    found = [module for module in network.modules() if isinstance(module, SoftPrompts)]
    if not found:
        raise ValueError("the network has no prompts to bake; PromptTuning adds some")
    for prompts in found:
        for name in prompts.adapter_names:
            cast(SoftPrompt, prompts.adapters[name]).bake()
            prompts.origins[name] = replace(prompts.origins[name], encoder="none")


def _stack(network: nn.Module) -> tuple[PreTrainedModel, nn.Module | None]:
    """Find what reads the text, and the decoder if that is an encoder with one."""
    if not isinstance(network, PreTrainedModel):
        raise ValueError(
            f"prompt tuning needs a network of transformers, got {type(network).__name__}"
        )
    known: Any = network
    base = known.base_model
    both = "decoder_input_ids" in parameter_names(base)
    stack, decoder = (known.get_encoder(), known.get_decoder()) if both else (base, None)
    inner = getattr(base, "decoder", None)
    if not both and isinstance(inner, PreTrainedModel):
        stack = inner  # OPT's head calls it past the base model
    if missing := [name for name in _NEEDED if name not in parameter_names(stack)]:
        raise ValueError(
            f"prompt tuning puts vectors in front of the embeddings of tokens, and "
            f"{type(stack).__name__} takes no {', '.join(missing)}; take another technique, such "
            "as LoRA"
        )
    return stack, decoder


def _special_ids(stack: PreTrainedModel) -> list[int]:
    settings = stack.config.to_dict()
    return [
        value
        for name, value in settings.items()
        if name.endswith("_token_id") and isinstance(value, int)
    ]
