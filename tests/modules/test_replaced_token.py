"""Replaced-token detection: a generator, a discriminator, and what they share."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor
from transformers import AutoModelForPreTraining

import lmkit
from lmkit.modules import replaced_token
from lmkit.modules.replaced_token import ReplacedTokenModule
from lmkit.types import Batch
from tests import tiny
from tests.modules.language_model import make, validate

ELECTRA = tiny.MASKED["electra"]


def electra(**kwargs: Any) -> ReplacedTokenModule:
    """Make a module of two small networks, with scores that tell tokens apart."""
    module = make(ReplacedTokenModule, {**ELECTRA, "initializer_range": 0.3}, **kwargs)
    assert isinstance(module, ReplacedTokenModule)
    return module


def halves(batch: Batch) -> list[Batch]:
    """Split a batch in two of different numbers of rows."""
    return [{k: v[part] for k, v in batch.items()} for part in (slice(0, 1), slice(1, None))]


def gradients(module: ReplacedTokenModule, loss: Tensor) -> dict[str, Tensor]:
    """Return the gradients of a loss that are not zero, by name."""
    module.zero_grad()
    loss.backward(retain_graph=True)
    found = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
    return {name: gradient for name, gradient in found.items() if gradient.any()}


def shared(module: ReplacedTokenModule) -> set[str]:
    """Names of the parameters that belong to both networks."""
    both = {id(p) for p in module.generator.parameters()}
    return {f"network.{n}" for n, p in module.network.named_parameters() if id(p) in both}


def test_both_losses_and_every_gradient_equal_those_of_transformers() -> None:
    module, batch = electra().eval(), tiny.masked_batch(rows=6)
    ours = module.step(batch)
    mine = gradients(module, ours.loss)
    text, mask = module._replace(batch), batch["attention_mask"]
    first = module.generator(
        input_ids=batch["input_ids"], attention_mask=mask, labels=batch["labels"]
    ).loss
    second = module.network(
        input_ids=text.corrupted, attention_mask=mask, labels=text.replaced.long()
    ).loss
    assert abs(ours.logs["generator_loss"] - first) <= 1e-6
    assert abs(ours.logs["discriminator_loss"] - second) <= 1e-6
    chosen, real = (batch["labels"] >= 0).sum(), mask.sum()
    theirs = gradients(module, first * chosen / (0.15 * real) + 50 * second)
    assert ours.items == real and text.replaced.sum() > 0
    assert mine.keys() == theirs.keys()
    for name in mine:
        assert torch.allclose(mine[name], theirs[name], rtol=1e-5, atol=1e-5), name


def test_the_discriminator_trains_nothing_of_the_generator_but_the_shared_embeddings() -> None:
    module = electra()
    output = module.step(tiny.masked_batch())
    from_discriminator = set(gradients(module, output.logs["discriminator_loss"]))
    from_generator = set(gradients(module, output.logs["generator_loss"]))
    assert shared(module) == {n for n in dict(module.named_parameters()) if ".embeddings." in n}
    assert from_discriminator & from_generator == shared(module)
    assert not any(name.startswith("generator.") for name in from_discriminator)
    assert all(name.startswith("generator.") for name in from_generator - shared(module))


def test_without_shared_embeddings_neither_trains_the_other() -> None:
    module = electra(share_embeddings=False)
    output = module.step(tiny.masked_batch())
    found = set(gradients(module, output.logs["discriminator_loss"]))
    assert all(name.startswith("network.") for name in found) and not shared(module)


def test_the_generators_head_writes_with_the_shared_table() -> None:
    module = electra()
    table = module.network.get_input_embeddings().weight
    assert module.generator.get_output_embeddings().weight is table
    assert module.generator.get_input_embeddings().weight is table


@pytest.mark.parametrize(("size", "hidden", "heads"), [(0.25, 8, 1), (0.5, 16, 2), (1.0, 32, 4)])
def test_the_generator_is_narrower_by_whole_heads(size: float, hidden: int, heads: int) -> None:
    config = {**ELECTRA, "hidden_size": 32, "num_attention_heads": 4}
    module = make(ReplacedTokenModule, config, generator_size=size)
    made = module.generator.config  # type: ignore[union-attr]
    assert (made.hidden_size, made.num_attention_heads) == (hidden, heads)
    assert (made.intermediate_size, made.num_hidden_layers) == (hidden, 2)


def test_an_oracle_leaves_nothing_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    module, batch = electra(), tiny.masked_batch()
    labels = batch["labels"].flatten()

    def oracle(network: Any, positions: Tensor, **inputs: Any) -> Tensor:
        return torch.nn.functional.one_hot(labels[positions], 99) * 100.0

    monkeypatch.setattr(replaced_token, "logits_at", oracle)
    text = module._replace(batch)
    assert not text.replaced.any() and module.step(batch).logs["replaced_share"] == 0
    originals = torch.where(batch["labels"] >= 0, batch["labels"], batch["input_ids"])
    assert torch.equal(text.corrupted, originals)


def test_only_chosen_tokens_are_replaced_and_each_that_differs_is_labelled() -> None:
    module, batch = electra(), tiny.masked_batch(rows=8)
    text, chosen = module._replace(batch), batch["labels"] >= 0
    originals = torch.where(chosen, batch["labels"], batch["input_ids"])
    assert torch.equal(text.replaced, text.corrupted != originals)
    assert not text.replaced[~chosen].any() and text.replaced.any()


def test_slots_without_a_label_change_nothing() -> None:
    module, batch = electra().eval(), tiny.masked_batch()
    chosen = batch["labels"] >= 0
    free = (~chosen).int().argmax(1)
    columns = [row.nonzero().flatten().tolist() for row in chosen]
    slots = [(c + [int(free[i])] * 12)[:12] for i, c in enumerate(columns)]
    one = module.step(batch)
    two = module.step({**batch, "label_positions": torch.tensor(slots)})
    assert one.loss.item() == pytest.approx(two.loss.item(), abs=1e-5)
    assert {k: v.item() for k, v in one.logs.items()} == pytest.approx(
        {k: v.item() for k, v in two.logs.items()}, abs=1e-6
    )


def test_batches_add_up_to_the_gradient_of_the_whole() -> None:
    module, batch = electra(), tiny.masked_batch(rows=5)
    whole = module.step(batch)
    expected = gradients(module, whole.loss)
    parts = [module.step(part) for part in halves(batch)]
    ratios = {float(p.logs["chosen_share"]) for p in parts}
    assert len(ratios) == 2, "the halves have other shares of chosen tokens"
    found = gradients(module, sum(p.loss * p.items for p in parts) / whole.items)
    for name in expected:
        assert torch.allclose(found[name], expected[name], rtol=1e-5, atol=1e-5), name


def test_samples_of_an_evaluation_depend_on_the_row_alone() -> None:
    module, batch = electra().eval(), tiny.masked_batch(rows=6)
    module.seed = 5
    whole = module._replace(batch).corrupted
    order = torch.tensor([3, 0, 5])
    assert torch.equal(
        module._replace({k: v[order] for k, v in batch.items()}).corrupted, whole[order]
    )
    padded = {k: torch.nn.functional.pad(v, (0, 3)) if v.ndim == 2 else v for k, v in batch.items()}
    padded["labels"][:, 12:] = -100
    assert torch.equal(module._replace(padded).corrupted[:, :12], whole)
    torch.manual_seed(99)
    assert torch.equal(module._replace(batch).corrupted, whole)


def test_samples_of_the_training_differ_by_seed_and_not_by_the_state_of_a_generator() -> None:
    module, batch = electra(), tiny.masked_batch(rows=6)

    def draws(seed: int) -> Tensor:
        module.seed = seed
        return module.prepare(batch)["draws"]

    assert torch.equal(draws(1), draws(1))
    assert not torch.equal(draws(1), draws(2))
    trained = draws(1)
    assert not torch.equal(module.eval().prepare(batch)["draws"], trained)


def test_packed_rows_have_the_loss_of_single_ones() -> None:
    module = electra().eval()
    alone = tiny.masked_batch(rows=2, length=8)
    alone["attention_mask"][:], alone["draws"] = 1, torch.rand(2, 8)
    alone["input_ids"][alone["input_ids"] == 0] = 9
    packed = {k: v.reshape(1, 16) for k, v in alone.items() if v.ndim == 2}
    packed["segment_ids"] = torch.tensor([[1] * 8 + [2] * 8])
    packed["position_ids"] = torch.arange(8).repeat(2).unsqueeze(0)
    one, two = module.step(alone), module.step(packed)
    assert one.items == two.items == 16
    assert one.loss.item() == pytest.approx(two.loss.item(), abs=5e-5)


def test_filler_rows_count_for_nothing() -> None:
    module, batch = electra().eval(), tiny.masked_batch(rows=4)
    filled = {name: torch.cat([v, v[:1]]) for name, v in batch.items()}
    filled["labels"][-1], filled["index"][-1] = -100, -1
    one, two = module.step(batch), module.step(filled)
    assert one.items == two.items and one.loss.item() == pytest.approx(two.loss.item(), rel=1e-6)


def test_no_chosen_token_leaves_the_discriminators_loss_alone() -> None:
    module, batch = electra(), tiny.masked_batch()
    batch["labels"] = torch.full_like(batch["labels"], -100)
    output = module.step(batch)
    found = gradients(module, output.loss)
    assert output.logs["generator_loss"] == 0 and output.logs["replaced_share"] == 0
    assert output.loss == 50 * output.logs["discriminator_loss"]
    assert not any(name.startswith("generator.") for name in found)


def test_metrics_are_those_of_all_tokens_for_any_batch_size_and_order() -> None:
    module, whole = electra(), tiny.masked_batch(rows=11)
    rows = [{name: tensor[i] for name, tensor in whole.items()} for i in range(11)]
    first = validate(module, rows, 1)
    for other in (validate(module, rows, 4), validate(module, rows[::-1], 11)):
        assert other == pytest.approx(first, rel=1e-5)
    with torch.no_grad():
        module.eval()
        output, text = module.step(whole), module._replace(whole)
    real = whole["attention_mask"].bool()
    flagged, replaced = (output.logits > 0)[real], text.replaced[real]  # type: ignore[operator]
    caught = (flagged & replaced).sum().item()
    precision, recall = caught / flagged.sum().item(), caught / replaced.sum().item()
    assert 0 < caught < replaced.sum() and caught < flagged.sum()
    logs = output.logs
    expected = {
        "loss": logs["generator_loss"] + 50 * logs["discriminator_loss"],
        "generator_loss": logs["generator_loss"],
        "generator_perplexity": logs["generator_loss"].exp(),
        "generator_accuracy": logs["generator_accuracy"],
        "discriminator_loss": logs["discriminator_loss"],
        "discriminator_accuracy": (flagged == replaced).float().mean(),
        "replaced_share": replaced.float().mean(),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall),
    }
    assert first == pytest.approx({f"val/{k}": float(v) for k, v in expected.items()}, rel=1e-5)


@pytest.mark.parametrize("name", tiny.MASKED)
def test_every_encoder_can_discriminate(name: str) -> None:
    module, batch = make(ReplacedTokenModule, tiny.MASKED[name]), tiny.masked_batch()
    assert isinstance(module, ReplacedTokenModule)
    output = module.step(batch)
    output.loss.backward()
    table = module.network.get_input_embeddings().weight
    assert module.generator.get_input_embeddings().weight is table
    assert output.logits is not None and output.logits.shape == batch["input_ids"].shape
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())


def test_two_labels_are_one_logit() -> None:
    module, batch = make(ReplacedTokenModule, tiny.MASKED["bert"]).eval(), tiny.masked_batch()
    assert isinstance(module, ReplacedTokenModule)
    text, mask = module._replace(batch), batch["attention_mask"]
    labels = text.replaced.long().masked_fill(mask == 0, -100)
    theirs = module.network(input_ids=text.corrupted, attention_mask=mask, labels=labels).loss
    assert module.step(batch).logs["discriminator_loss"].item() == pytest.approx(
        theirs.item(), abs=1e-6
    )
    assert module.network.config.id2label[1] == "replaced"


@pytest.mark.parametrize(
    ("config", "kwargs", "message"),
    [
        (tiny.CAUSAL["gpt2"], {}, r"'gpt2' cannot tell .* take electra"),
        (tiny.MASKED["bert"] | {"id2label": {"0": "a", "1": "b", "2": "c"}}, {}, r"has 3 labels"),
        (
            ELECTRA,
            {"generator": {**ELECTRA, "vocab_size": 77}},
            r"generator has a vocabulary of 77 tokens and the discriminator of 99",
        ),
        (
            ELECTRA,
            {"generator": {**ELECTRA, "embedding_size": 12}},
            r"12 wide and the discriminator's 8.* share_embeddings=False",
        ),
        (ELECTRA, {"generator": dict(tiny.CAUSAL["gpt2"])}, r"'gpt2' has no MaskedLM head"),
        (ELECTRA, {"generator_size": 0.0}, r"generator_size must lie in \(0, 1\], got 0.0"),
        (ELECTRA, {"discriminator_weight": -1.0}, r"must be at least 0, got -1.0"),
    ],
)
def test_networks_that_do_not_fit_are_refused(
    config: dict[str, Any], kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(ReplacedTokenModule, config, **kwargs)


def test_a_generator_of_another_architecture_shares_the_table_of_tokens() -> None:
    module = make(ReplacedTokenModule, ELECTRA, generator={**tiny.MASKED["bert"], "hidden_size": 8})
    assert isinstance(module, ReplacedTokenModule)
    assert shared(module) == {"network.electra.embeddings.word_embeddings.weight"}
    assert module.step(tiny.masked_batch()).loss.isfinite()


def test_dropout_is_off_in_both_networks_unless_asked_for() -> None:
    for dropout, expected in ((0.0, {0.0}), (0.3, {0.3}), (None, {0.1})):
        module = electra(dropout=dropout)
        layers = [m for m in module.modules() if isinstance(m, torch.nn.Dropout)]
        assert {layer.p for layer in layers} == expected


def fit(module: ReplacedTokenModule, folder: Path) -> Trainer:
    rows = [{k: v[i] for k, v in tiny.masked_batch(rows=8).items()} for i in range(8)]
    settings: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    trainer = Trainer(accelerator="cpu", max_steps=3, default_root_dir=folder, **settings)
    trainer.fit(module, torch.utils.data.DataLoader(rows, 4))
    return trainer


def test_a_checkpoint_holds_both_networks_and_needs_no_other_file(tmp_path: Path) -> None:
    electra().generator.save_pretrained(tmp_path / "small")
    module = electra(generator=str(tmp_path / "small"), learning_rate=1e-2)
    fit(module, tmp_path).save_checkpoint(tmp_path / "last.ckpt")
    shutil.rmtree(tmp_path / "small")
    loaded = lmkit.load(tmp_path / "last.ckpt")
    assert isinstance(loaded, ReplacedTokenModule) and shared(loaded) == shared(module)
    ours, theirs = module.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert module.hparams["generator"] == str(tmp_path / "small")


def test_a_pretrained_generator_brings_all_but_the_embeddings(tmp_path: Path) -> None:
    source = electra().generator
    source.save_pretrained(tmp_path / "small")
    module = electra(generator=str(tmp_path / "small"))
    for name, weight in source.named_parameters():
        assert torch.equal(weight, dict(module.generator.named_parameters())[name])
    table = module.network.get_input_embeddings().weight
    assert module.generator.get_input_embeddings().weight is table


def test_the_export_is_the_discriminator_alone(tmp_path: Path) -> None:
    module = electra()
    fit(module, tmp_path)
    plain = AutoModelForPreTraining.from_pretrained(lmkit.export(module, tmp_path / "out")).eval()
    ids = torch.randint(5, 99, (2, 9))
    assert type(plain).__name__ == "ElectraForPreTraining"
    assert torch.allclose(plain(ids).logits, module.eval().network(ids).logits, atol=1e-5)
    assert not any("generator" in name for name in plain.state_dict())


def with_tokenizer() -> ReplacedTokenModule:
    module = electra()
    module.tokenizer = tiny.tokenizer()
    return module


def test_predict_gives_each_token_its_probability_and_leaves_fillers_out() -> None:
    module = with_tokenizer().eval()
    ids = torch.tensor([[2, 40, 41, 50, 3], [2, 3, 0, 0, 0], [2, 41, 3, 0, 0]])
    batch = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    batch["index"] = torch.tensor([0, -1, 1])
    with torch.no_grad():
        rows = module.predict_step(batch, 0)
        scores = module.network(input_ids=ids, attention_mask=batch["attention_mask"]).logits
    assert [len(row["tokens"]) for row in rows] == [3, 1]
    assert rows[0]["tokens"][1]["replaced"] == pytest.approx(scores[0, 2].sigmoid().item())
    assert rows[1]["tokens"][0]["token"] in rows[1]["text"]


def test_sample_shows_what_was_replaced_and_flagged_and_keeps_the_mode() -> None:
    module, batch = with_tokenizer(), tiny.masked_batch()
    rows = module.sample(batch, 2)
    assert [set(row) for row in rows] == [{"original", "corrupted", "replaced", "flagged"}] * 2
    assert rows == module.eval().sample(batch, 2)
    assert all(not m.training for m in module.modules())
    assert "[MASK]" not in rows[0]["corrupted"] and "[PAD]" not in rows[0]["original"]


def two_kinds_of_rows(step: int) -> Batch:
    """Make rows of ten tokens of one kind each, two of them masked."""
    draw = torch.Generator().manual_seed(step)
    kind = torch.randint(0, 2, (32, 1), generator=draw)
    ids = 5 + 10 * kind + torch.randint(0, 10, (32, 12), generator=draw)
    hidden = torch.rand(32, 12, generator=draw).argsort(1)[:, :2]
    chosen = torch.zeros(32, 12, dtype=torch.bool).scatter(1, hidden, True)
    return {
        "input_ids": ids.masked_fill(chosen, 4),
        "attention_mask": torch.ones_like(ids),
        "labels": ids.masked_fill(~chosen, -100),
        "index": 32 * step + torch.arange(32),
    }


@pytest.mark.slow
def test_the_discriminator_learns_to_find_what_does_not_fit_the_row() -> None:
    # The generator's encoder stays as drawn, so that it learns no more than which tokens there are,
    # and samples of both kinds: the 10 in 19 of the other kind can be found, and no others.
    config = {**ELECTRA, "embedding_size": 16, "hidden_size": 32, "num_hidden_layers": 1}
    module = make(ReplacedTokenModule, {**config, "num_attention_heads": 4})
    assert isinstance(module, ReplacedTokenModule)
    module.generator.base_model.encoder.requires_grad_(False)
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-3)
    for step in range(600):
        optimizer.zero_grad()
        module.step(two_kinds_of_rows(step)).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
    with torch.no_grad():
        logs = [module.eval().step(two_kinds_of_rows(1000 + i)).logs for i in range(20)]
    caught, flagged, replaced = (
        sum(float(log[f"{name}_share"]) for log in logs)
        for name in ("caught", "flagged", "replaced")
    )
    assert caught / flagged > 0.98 and abs(caught / replaced - 10 / 19) < 0.06
