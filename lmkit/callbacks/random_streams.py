"""The state of torch's random generators, to be put back."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Streams"]


class Streams(NamedTuple):
    """Where the generators stand that dropout draws from.

    To run a network again from the same state gives it the same dropout; to put back the state
    behind a run leaves what follows as if nothing else had been drawn.

    Attributes:
        device: of the network.
        host: state of the generator of the processor.
        there: state of that of the device, if it is another.

    Example:
        >>> before = Streams.now(torch.device("cpu"))
        >>> first = torch.rand(2)
        >>> before.restore()
        >>> torch.equal(torch.rand(2), first)
        True
    """

    device: torch.device
    host: Tensor
    there: Tensor | None

    @classmethod
    def now(cls, device: torch.device) -> Streams:
        """Return where the generators stand now."""
        there = None if device.type == "cpu" else _backend(device).get_rng_state(device)
        return cls(device, torch.get_rng_state(), there)

    def restore(self) -> None:
        """Put the generators back to where they stood."""
        torch.set_rng_state(self.host)
        if self.there is not None:
            _backend(self.device).set_rng_state(self.there, self.device)


def _backend(device: torch.device) -> Any:
    return torch.get_device_module(device)
