"""Losses of attention, against maps and projections of plain networks, one text at a time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lmkit.modules import AttentionLoss, RelationLoss
from lmkit.types import Batch
from tests import lessons
from tests.lessons import Seen, fit, texts_of
from tests.modules.test_feature_losses import items_in, loss_of

NAME = "sequence_classification"


def networks(module: Any, folder: str) -> tuple[Any, Any]:
    how: dict[str, Any] = {"dtype": torch.float64, "attn_implementation": "eager"}
    teacher = module.auto_class.from_pretrained(folder, **how).eval()
    student = module.auto_class.from_config(module.network.config, **how)
    student.load_state_dict(module.network.state_dict())
    return student.eval(), teacher


def inputs(text: Batch) -> Batch:
    names = ("input_ids", "attention_mask", "token_type_ids")
    return {name: text[name] for name in names if name in text}


def mean_over(name: str, texts: list[Batch], value: Any) -> float:
    total, count = 0.0, 0
    with torch.no_grad():
        for text in texts:
            items = items_in(name, text)
            total, count = total + items * float(value(text)), count + items
    return total / count


def maps_apart(ours: Tensor, theirs: Tensor) -> Tensor:
    """KL of maps `[H, L, L]`, over heads and queries; heads are averaged where they differ."""
    if len(ours) != len(theirs):
        ours, theirs = (x.mean(0, keepdim=True) for x in (ours, theirs))
    logs = torch.where(theirs > 0, theirs * (theirs.log() - ours.log()), 0.0)
    return logs.sum(-1).mean()


@pytest.mark.parametrize("heads", [2, 4])
@pytest.mark.parametrize("layers", ["uniform", "last", [[1, 4]]])
def test_maps_are_those_that_plain_networks_show(layers: Any, heads: int, tmp_path: Path) -> None:
    folder = lessons.teacher(NAME, num_attention_heads=heads)
    module, seen = loss_of(NAME, tmp_path, AttentionLoss(layers=layers), teacher=folder)
    student, teacher = networks(module, folder)
    pairs = {"uniform": [(1, 2), (2, 4)], "last": [(2, 4)]}.get(str(layers), [(1, 4)])

    def value(text: Batch) -> Tensor:
        both = [n(**inputs(text), output_attentions=True).attentions for n in (student, teacher)]
        each = [maps_apart(both[0][i - 1][0], both[1][j - 1][0]) for i, j in pairs]
        return torch.stack(each).mean()

    wanted = mean_over(NAME, texts_of(seen.batches[0]), value)
    assert wanted > 1e-3 and seen.losses[0].item() == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("name", ["causal_lm", "pairs"])
def test_maps_of_other_tasks_too(name: str, tmp_path: Path) -> None:
    module, seen = loss_of(name, tmp_path, AttentionLoss())
    student, teacher = networks(module, lessons.teacher(name))

    def value(text: Batch) -> Tensor:
        both = [n(**inputs(text), output_attentions=True).attentions for n in (student, teacher)]
        each = [maps_apart(both[0][i - 1][0], both[1][j - 1][0]) for i, j in ((1, 2), (2, 4))]
        return torch.stack(each).mean()

    wanted = mean_over(name, texts_of(seen.batches[0]), value)
    assert seen.losses[0].item() == pytest.approx(wanted, rel=1e-4)


def projections(network: Any, text: Batch, layer: int) -> list[Tensor]:
    """Queries, keys and values of a layer, `[L, D]` each."""
    kept: dict[str, Tensor] = {}
    handles = []
    if network.config.model_type == "gpt2":
        module = network.transformer.h[layer].attn.c_attn
        handles.append(module.register_forward_hook(lambda m, i, o: kept.update(all=o[0])))
    else:
        for part in ("query", "key", "value"):
            module = getattr(network.base_model.encoder.layer[layer].attention.self, part)

            def keep(m: Any, i: Any, output: Tensor, part: str = part) -> None:
                kept[part] = output[0]

            handles.append(module.register_forward_hook(keep))
    network(**inputs(text))
    for handle in handles:
        handle.remove()
    if "all" in kept:
        return list(kept["all"].chunk(3, -1))
    return [kept[part] for part in ("query", "key", "value")]


def relations_apart(ours: Tensor, theirs: Tensor, heads: int) -> Tensor:
    logs = []
    for x in (ours, theirs):
        parts = x.reshape(len(x), heads, -1).transpose(0, 1)
        logs.append((parts @ parts.mT / math.sqrt(parts.shape[-1])).log_softmax(-1))
    return (logs[1].exp() * (logs[1] - logs[0])).sum(-1).mean()


@pytest.mark.parametrize(
    ("layers", "pair", "heads"),
    [((-1, -1), (1, 3), None), ((1, 3), (0, 2), 4), ((2, -3), (1, 1), 2)],
)
@pytest.mark.parametrize("name", [NAME, "causal_lm"])
def test_relations_are_those_of_plain_projections(
    name: str, layers: tuple[int, int], pair: tuple[int, int], heads: int | None, tmp_path: Path
) -> None:
    loss = RelationLoss(student_layer=layers[0], teacher_layer=layers[1], heads=heads)
    module, seen = loss_of(name, tmp_path, loss)
    student, teacher = networks(module, lessons.teacher(name))

    def value(text: Batch) -> Tensor:
        both = zip(
            projections(student, text, pair[0]), projections(teacher, text, pair[1]), strict=True
        )
        # By default as many heads as divide 16 and 24 and leave each a width of 8.
        return torch.stack([relations_apart(a, b, heads or 2) for a, b in both]).mean()

    wanted = mean_over(name, texts_of(seen.batches[0]), value)
    assert wanted > 1e-4 and seen.losses[0].item() == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_each_stack_of_an_encoder_decoder_has_maps_and_relations_of_its_own(
    stack: Any, tmp_path: Path
) -> None:
    """Not those of the decoder's look at the encoder."""
    name = "seq2seq"
    losses = [AttentionLoss(stack=stack, layers="last"), RelationLoss(stack=stack)]
    # Small weights: at large ones maps are so sharp that the loss bounds their logarithms.
    folder, seen = lessons.teacher(name, initializer_factor=0.3), Seen()
    pupil = {"learning_rate": 0.0, "config": {"initializer_factor": 0.3}}
    module = lessons.distill(name, pupil=pupil, teacher=folder, losses=losses, hard_weight=0.0)
    fit(module, lessons.data(name, tmp_path), seen, max_steps=1)
    both = networks(module, folder)
    total, count = 0.0, 0
    for text in texts_of(module.task_module.prepare(seen.batches[0])):
        labels = text["labels"][:, (text["labels"] >= 0)[0]]
        start = torch.tensor([[both[0].config.decoder_start_token_id]])
        given = {
            "input_ids": text["input_ids"],
            "decoder_input_ids": torch.cat([start, labels[:, :-1]], 1),
            "output_attentions": True,
        }
        maps, parts = [], []
        for network in both:
            inner = getattr(network, stack).block[-1].layer[0].SelfAttention
            kept: list[Tensor] = []
            hooks = [
                getattr(inner, part).register_forward_hook(lambda m, i, o, k=kept: k.append(o[0]))
                for part in "qkv"
            ]
            with torch.no_grad():
                maps.append(network(**given)[f"{stack}_attentions"][-1][0])
            parts.append(kept)
            for hook in hooks:
                hook.remove()
        related = [relations_apart(a, b, 2) for a, b in zip(*parts, strict=True)]
        value = maps_apart(*maps) + torch.stack(related).mean()
        total, count = total + float(value) * labels.shape[1], count + labels.shape[1]
    assert seen.losses[0].item() == pytest.approx(total / count, rel=1e-4)
