"""What prompts and prefixes share: learned tokens in front of the text, switched by name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "VirtualTokens",
    "check_mask",
    "lengthen",
    "named_arguments",
    "parameter_names",
    "position_table",
    "seeded",
    "seen_tokens",
]

_TABLE = re.compile(r"(?:.*\.)?(?:position_embeddings|embed_positions|wpe)")


class VirtualTokens(nn.Module):
    """Learned tokens of several names; the active ones stand one behind the other.

    It is registered on the module whose inputs it changes, and its hooks are its own methods, so
    that a copy of the network has hooks that find the copy.
    """

    def __init__(self) -> None:
        super().__init__()
        self.adapters = nn.ModuleDict()
        #: The surgeries that added them, by name.
        self.origins: dict[str, Any] = {}
        self._active: tuple[str, ...] = ()

    def add(self, name: str, part: nn.Module, origin: Any) -> None:
        """Add tokens, active from now on."""
        self.adapters[name] = part
        self.origins[name] = origin
        self._active = (*self._active, name)

    @property
    def adapter_names(self) -> tuple[str, ...]:
        """The names of all, active or not, in the order in which they were added."""
        return tuple(self.adapters)

    @property
    def active_adapters(self) -> dict[str, float]:
        """The names of the active ones, each with weight 1."""
        return dict.fromkeys(self._active, 1.0)

    @property
    def active(self) -> Iterator[nn.Module]:
        """The active ones, in the order in which they stand."""
        return (self.adapters[name] for name in self._active)

    @property
    def count(self) -> int:
        """How many tokens the active ones are together."""
        return sum(int(self.origins[name].length) for name in self._active)

    def use(self, weights: Mapping[str, float]) -> None:
        """Switch tokens on and off; names that are left out are off.

        Raises:
            ValueError: a weight is neither 0 nor 1: half a token there is not.
        """
        own = {name: float(weights.get(name, 0.0)) for name in self.adapters}
        for name, weight in own.items():
            if weight not in (0.0, 1.0):
                raise ValueError(
                    f"the weight of {name!r} must be 0 or 1, since tokens in front of a text are "
                    f"there or not, got {weight}"
                )
        self._active = tuple(name for name, weight in own.items() if weight)


def parameter_names(module: nn.Module) -> tuple[str, ...]:
    """Return the names of what a module takes in its forward.

    Example:
        >>> parameter_names(nn.Linear(2, 2))
        ('input',)
    """
    return _names(type(module).forward)[1:]


@cache
def _names(function: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


def named_arguments(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments of a call by name, those that were given without one too.

    Example:
        >>> named_arguments(nn.Linear(2, 2), (1,), {})
        {'input': 1}
    """
    names = parameter_names(module)
    return {**dict(zip(names, args, strict=False)), **kwargs}


def check_mask(mask: Any, technique: str) -> None:
    """Check that an attention mask tells real tokens from padding, and nothing more.

    Raises:
        ValueError: it says which token sees which, as that of packed rows and of a cache of fixed
            size does.
    """
    if mask is None or (isinstance(mask, Tensor) and mask.dim() == 2):
        return
    came = f"of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
    raise ValueError(
        f"{technique} needs one text in a row and an attention mask [batch, length], got one "
        f"{came}; pass batching='bucket' to the data module, and generate with a cache that grows"
    )


def lengthen(mask: Tensor, count: int) -> Tensor:
    """Put tokens that are seen in front of a mask.

    Args:
        mask: `[B, L]`, of any type.
        count: $P$, at least 0.

    Returns:
        `[B, P + L]`.

    Example:
        >>> lengthen(torch.tensor([[1, 0]]), 1).tolist()
        [[1, 1, 0]]
    """
    return torch.cat([mask.new_ones(mask.shape[0], count), mask], dim=1)


def seen_tokens(past: Any) -> int:
    """Return how many tokens a cache of keys and values holds; 0 if there is none."""
    return 0 if past is None else int(past.get_seq_length())


def position_table(stack: nn.Module) -> nn.Embedding | None:
    """Return the table of learned absolute positions of an encoder or decoder, if it has one."""
    for name, module in stack.named_modules():
        if isinstance(module, nn.Embedding) and _TABLE.fullmatch(name):
            return module
    return None


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let the CPU draw from a seed of its own in a block, and behind it as before.

    Example:
        >>> with seeded(3):
        ...     first = torch.rand(())
        >>> with seeded(3):
        ...     bool(torch.rand(()) == first)
        True
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
