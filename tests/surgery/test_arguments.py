"""Numbers that are none, or not whole, are refused by the name of the argument."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lmkit.callbacks import AdapterCallback, LoRACallback, PrefixTuningCallback
from lmkit.surgery.arguments import check_finite, check_whole


@pytest.mark.parametrize("value", [2.0, 2.5, "8", True, None, torch.tensor(3)])
def test_what_is_no_whole_number_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="rank must be a whole number, got"):
        check_whole("rank", value, 1)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), "0.5", True, None])
def test_what_is_no_finite_number_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="alpha must be a finite number, got"):
        check_finite("alpha", value)


def test_the_callbacks_check_theirs() -> None:
    check_whole("rank", 1, 1)
    check_finite("alpha", 16)
    wrong: Any = "8"
    for make in (
        lambda: LoRACallback(rank=wrong),
        lambda: LoRACallback(alpha=float("inf")),
        lambda: LoRACallback(variant="adalora", rank_warmup=float("nan")),
        lambda: LoRACallback(variant="adalora", orthogonality=float("nan")),
        lambda: AdapterCallback(scale=float("nan")),
        lambda: PrefixTuningCallback(length=wrong),
    ):
        with pytest.raises(ValueError, match=r"must be a (whole|finite) number, got"):
            make()
