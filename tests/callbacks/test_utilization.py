"""Model FLOPs utilization: operations that real tokens need over those a device can do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from lmkit.callbacks import EfficiencyCallback, utilization
from lmkit.callbacks.utilization import attended_context, flops_per_second, matrix_flops, peak_flops
from lmkit.functional.flops import training_flops_per_token
from lmkit.modules import CausalLMModule, MaskedLMModule
from lmkit.surgery.lora import LoRA
from lmkit.surgery.prefix_tuning import PrefixTuning
from lmkit.surgery.selection import Selection
from lmkit.types import Surgery
from tests import tiny
from tests.cases import CASES, make_trainer
from tests.modules.language_model import make


def test_the_formula_is_that_of_bert_base() -> None:
    # 545, 567 and 668 million operations a token, at 15 %, 30 % and all tokens labelled.
    layers, head = 12 * (4 * 768**2 + 2 * 768 * 3072), 768**2 + 768 * 30522
    for share, millions in ((0.15, 545), (0.30, 567), (1.0, 668)):
        each = training_flops_per_token(layers, head, 12, 768, 128, share)
        assert round(each / 1e6) == millions


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "modernbert"])
def test_a_network_is_counted_as_torch_counts_it(name: str) -> None:
    cls = MaskedLMModule if name in tiny.MASKED else CausalLMModule
    module = make(cls, (tiny.MASKED | tiny.CAUSAL)[name])
    module.network.set_attn_implementation("eager")
    ids = torch.randint(5, 99, (2, 8))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        module.network(**{k: batch[k] for k in ("input_ids", "attention_mask")})
    ours = flops_per_second(module, batch, context=8.0, tokens_per_second=1.0)
    assert ours is not None
    # Rotary positions and the like are matrix products too, tiny ones.
    assert ours * ids.numel() / 3 == pytest.approx(counter.get_total_flops(), rel=0.02)


def counted(*surgeries: Surgery) -> tuple[float, float]:
    """Count operations a token of training, ours and those that torch does."""
    from torch.utils.flop_counter import FlopCounterMode

    module = make(MaskedLMModule, tiny.MASKED["bert"] | {"num_hidden_layers": 4})
    module.network.set_attn_implementation("eager")
    for surgery in surgeries:
        surgery(module.network)
    ids = torch.randint(5, 99, (2, 8))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    with FlopCounterMode(display=False) as counter:
        module.network(**batch).loss.backward()
    ours = flops_per_second(module, batch, context=8.0, tokens_per_second=1.0)
    assert ours is not None
    return ours * ids.numel(), counter.get_total_flops()


@pytest.mark.parametrize(
    "surgeries",
    [
        (),
        (LoRA(rank=1, targets=["all"]),),
        (Selection(layers=1),),
        (Selection(layers=2),),
        (PrefixTuning(length=1),),
        (PrefixTuning(length=1, projection=True),),
    ],
    ids=["full", "lora", "one layer", "two layers", "prefix", "projected prefix"],
)
def test_a_network_that_is_frozen_in_part_is_counted_as_torch_counts_it(
    surgeries: tuple[Surgery, ...],
) -> None:
    ours, theirs = counted(*surgeries)
    assert ours == pytest.approx(theirs, rel=0.1)
    assert (ours < 0.85 * counted()[0]) == bool(surgeries)


def test_context_is_the_mean_over_tokens() -> None:
    segments = torch.tensor([[1, 1, 1, 2], [1, 0, 0, 0]])
    assert attended_context({"segment_ids": segments}) == (3 * 3 + 1 + 1) / 5
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    assert attended_context({"attention_mask": mask}) == (16 + 4) / 6
    assert attended_context([mask]) is None


def test_the_processor_is_measured_once() -> None:
    first = matrix_flops(torch.float32, 1, 0.05)
    assert first > 1e8 and matrix_flops(torch.float32, 1, 0.05) == first


def test_the_precision_of_the_run_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utilization, "matrix_flops", lambda dtype, threads: dtype)
    assert peak_flops(make_trainer(precision="bf16-mixed")) is torch.bfloat16  # type: ignore[comparison-overlap]
    assert peak_flops(make_trainer()) is torch.float32  # type: ignore[comparison-overlap]


def test_a_fit_logs_its_shares(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmkit.callbacks.efficiency.peak_flops", lambda trainer: 1e12)
    case = CASES[0]
    seen: list[dict[str, float]] = []

    class Look(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            seen.append({k: float(v) for k, v in trainer.callback_metrics.items()})

    trainer = make_trainer(EfficiencyCallback(), Look(), log_every_n_steps=1, max_steps=3)
    trainer.fit(case.make_module(), case.make_data(tmp_path))
    last = seen[-1]
    assert 0 <= last["efficiency/padding_share"] < 0.5
    assert 0 <= last["efficiency/data_wait_share"] < 1
    assert 0 < last["efficiency/mfu"] < 1
