"""Prefix tuning: a frozen network, and keys and values that are learned for each layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.utils.generic import ModelOutput

from .adapter import check_name
from .arguments import check_whole
from .plain_config import unsaid
from .tuning import freeze_base
from .virtual_tokens import (
    VirtualTokens,
    check_mask,
    lengthen,
    named_arguments,
    parameter_names,
    position_table,
    seeded,
    seen_tokens,
)

__all__ = ["PrefixTuning", "Prefixes"]


@dataclass(frozen=True)
class PrefixTuning:
    r"""Freeze a network, and let each layer attend to $P$ keys and values that are learned.

    $K' = [P_K; K]$ and $V' = [P_V; V]$ in each of $L$ layers (Li and Liang 2021, arXiv:2101.00190;
    for encoders P-tuning v2, arXiv:2110.07602): $2 L d P$ parameters, with $d$ the width of all
    keys of a layer. They are the `PrefixEncoder` of peft, and the network computes what peft's
    `PeftModel` computes: positions are counted from behind the prefix. Prefixes of several names
    stand one behind the other.

    Attributes:
        name: of the prefix; without a dot.
        length: $P$, at least 1.
        projection: whether the prefix is computed by a perceptron of two layers from $P$ vectors of
            width $d$, which trains more steadily; `prefix_states` gives what it computes.
        hidden: width of the perceptron; 0 for $d$.
        seed: what is drawn depends on it alone.
        head: whether the head of the task learns.

    Raises:
        ValueError: an attribute lies outside its range; when called, the layers of the architecture
            take no keys and values from outside, gradients are checkpointed, another prefix has the
            name, or heads were removed of which the config says nothing.
        ImportError: when called, peft is not installed.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> network = BertForSequenceClassification(BertConfig(vocab_size=9, hidden_size=8,
        ...     num_hidden_layers=2, num_attention_heads=2, intermediate_size=8))
        >>> PrefixTuning(length=3, head=False)(network)
        >>> [p.numel() for p in network.parameters() if p.requires_grad]
        [96]
    """

    name: str = "default"
    length: int = 10
    projection: bool = False
    hidden: int = 0
    seed: int = 0
    head: bool = True

    def __post_init__(self) -> None:
        """Check the attributes."""
        check_name(self.name)
        check_whole("length", self.length, 1)
        check_whole("hidden", self.hidden, 0)

    def __call__(self, network: nn.Module) -> None:
        """Freeze all weights, and add the prefix; when it is there, do nothing."""
        stack = _stack(network)
        prefixes: Any = getattr(stack, "prefixes", None)
        there = prefixes is not None and prefixes.origins.get(self.name)
        if there == self:
            return
        if there:
            raise ValueError(
                f"there is a prefix {self.name!r} already, {there}; give this one another name"
            )
        if why := [reason for reason in unsaid(network) if "heads" in reason]:
            raise ValueError(f"a prefix has keys for the heads that the config says, and {why[0]}")
        prefixes = prefixes or Prefixes(stack)
        prefixes.check_room(self.length)
        _check_checkpointing(stack)
        made = self._encoder(prefixes)
        freeze_base(network, self.head)
        if not hasattr(stack, "prefixes"):
            stack.prefixes = prefixes
            stack.register_forward_pre_hook(prefixes.before, with_kwargs=True)
            stack.register_forward_hook(prefixes.after)
        weight = next(stack.parameters())
        prefixes.add(self.name, made.to(weight.device, weight.dtype), self)
        prefixes.train(stack.training)

    def _encoder(self, prefixes: Prefixes) -> nn.Module:
        try:
            from peft import PrefixEncoder, PrefixTuningConfig
        except ImportError as error:
            raise ImportError("prefix tuning needs the extra: pip install 'lmkit[peft]'") from error
        width = prefixes.heads * prefixes.size
        config = PrefixTuningConfig(
            num_virtual_tokens=self.length,
            num_layers=prefixes.layers,
            token_dim=width,
            num_attention_heads=prefixes.heads,
            prefix_projection=self.projection,
            encoder_hidden_size=self.hidden or width,
        )
        with seeded(self.seed):
            return cast(nn.Module, PrefixEncoder(config))


class Prefixes(VirtualTokens):
    """Gives an encoder or decoder a cache that holds learned keys and values.

    Its attention mask gets ones in front. A cache that is given and empty is filled; one that is
    not empty has the prefix in it.

    Args:
        stack: the encoder or decoder; takes `past_key_values`.
    """

    def __init__(self, stack: PreTrainedModel) -> None:
        super().__init__()
        self._lent = False  # in the call that runs
        config: Any = stack.config.get_text_config()
        heads = config.num_attention_heads
        #: Of the stack: number of layers, heads of keys, and width of a head.
        self.layers = int(config.num_hidden_layers)
        self.heads = int(getattr(config, "num_key_value_heads", None) or heads)
        self.size = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
        table = position_table(stack)
        self._places: int | None = None
        if table is not None:
            before = 0 if table.padding_idx is None else table.padding_idx + 1
            self._places = table.num_embeddings - before - int(getattr(table, "offset", 0))

    def states(self) -> Tensor:
        """Compute keys and values of all active prefixes: `[P, 2 * layers, heads, size]`.

        Keys and values of a layer follow each other.
        """
        parts = []
        for name in self._active:
            encoder = self.adapters[name]
            device = next(encoder.parameters()).device
            parts.append(encoder(torch.arange(self.origins[name].length, device=device)))
        return torch.cat(parts).reshape(-1, 2 * self.layers, self.heads, self.size)

    def before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Put the prefix into the cache, unless it is there."""
        self._lent, count = False, self.count
        if not count:
            return None
        inputs = named_arguments(module, args, kwargs)
        mask, past = inputs.get("attention_mask"), inputs.get("past_key_values")
        text = inputs.get("input_ids")
        text = inputs.get("inputs_embeds") if text is None else text
        if text is None:
            return None  # the network says what is wrong
        check_mask(mask, "prefix tuning")
        _check_checkpointing(module)
        seen = seen_tokens(past)
        if not torch.compiler.is_compiling():
            self.check_length(text.shape[1] + (seen and seen - count))
        if mask is not None:
            inputs["attention_mask"] = lengthen(mask, count)
        if inputs.get("position_ids") is not None:
            inputs["position_ids"] = inputs["position_ids"] + count
        if not seen:
            if past is None:
                wanted, config = inputs.get("use_cache"), cast(PreTrainedModel, module).config
                self._lent = not (getattr(config, "use_cache", True) if wanted is None else wanted)
                past = DynamicCache()
            self._fill(getattr(past, "self_attention_cache", past), text.shape[0], text.device)
            inputs["past_key_values"] = past
        return (), inputs

    def after(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Keep a cache that nobody asked for: who finds one in the result goes on from it."""
        if not (self._lent and isinstance(output, ModelOutput) and "past_key_values" in output):
            return None
        return type(output)(**{k: value for k, value in output.items() if k != "past_key_values"})

    def _fill(self, cache: Any, rows: int, device: torch.device) -> None:
        states = self.states()
        if torch.is_autocast_enabled(device.type):
            states = states.to(torch.get_autocast_dtype(device.type))
        # [2 * layers, rows, heads, P, size]
        layers = states.permute(1, 2, 0, 3).unsqueeze(1).expand(-1, rows, -1, -1, -1)
        for number in range(self.layers):
            cache.update(layers[2 * number], layers[2 * number + 1], number)

    def check_room(self, count: int) -> None:
        """Check that a prefix leaves the text a position.

        Raises:
            ValueError: it does not.
        """
        if self._places is not None and count >= self._places:
            raise ValueError(
                f"a prefix of {count} is too long for the network's {self._places} positions, of "
                "which the text needs some; give a smaller length"
            )

    def check_length(self, length: int) -> None:
        """Check that the network has a position for each token of a text behind the prefix.

        Raises:
            ValueError: it has learned fewer.
        """
        self.check_room(self.count)
        if self._places is not None and length > self._places - self.count:
            raise ValueError(
                f"a text of {length} tokens behind a prefix of {self.count} needs more than the "
                f"{self._places} positions of the network; set max_length of the data to at most "
                f"{self._places - self.count}"
            )


def _stack(network: nn.Module) -> PreTrainedModel:
    """Return what reads the text."""
    if not isinstance(network, PreTrainedModel):
        raise ValueError(
            f"prefix tuning needs a network of transformers, got {type(network).__name__}"
        )
    base = cast(PreTrainedModel, network.base_model)
    names = parameter_names(base)
    if "decoder_input_ids" in names:
        raise ValueError(
            f"prefix tuning is for one stack of layers, and {type(network).__name__} is an "
            "encoder-decoder, whose encoder takes no keys and values from outside; take prompt "
            "tuning, LoRA or adapters"
        )
    if "past_key_values" not in names or "attention_mask" not in names:
        raise ValueError(
            f"prefix tuning gives each layer keys and values, and {type(base).__name__} takes none "
            "(no past_key_values); take an architecture that does, such as bert, roberta, electra, "
            "gpt2 or llama, or prompt tuning"
        )
    return base


def _check_checkpointing(stack: nn.Module) -> None:
    # transformers drops the cache then, and with it the prefix; it only warns.
    if any(getattr(module, "gradient_checkpointing", False) for module in stack.modules()):
        raise ValueError(
            "gradient checkpointing drops the keys and values of prefix tuning; call "
            "network.gradient_checkpointing_disable(), or take prompt tuning or LoRA"
        )
