"""The network of a module as it is to be written: merged, in whole numbers, or as it is."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .adapters.stored import unmerged
from .comparison import compare, example_inputs, scores_of
from .functional.agreement import Agreement
from .modules import LMModule
from .modules.multi_task import MultiTaskModule
from .surgery import to_spec
from .surgery.composition import active_adapters, adapters_of
from .surgery.folding import check_mergeable
from .surgery.folding import merge as merge_into_base
from .surgery.low_rank import low_rank_layers
from .surgery.plain_config import unsaid
from .surgery.quantization import Quantize, converted
from .surgery.quantization_conversion import (
    convert,
    fake_quantized_layers,
    make_float,
    quantized_layers,
)
from .surgery.structure_folder import structural_specs
from .surgery.task_adapter import mixture_name, task_adapter_names
from .surgery.torchao_tensors import prepare_for_saving, shares_table, use_torchao

__all__ = [
    "agreement_of",
    "cast",
    "check_export",
    "encoder_to_write",
    "is_rounded",
    "network_to_write",
    "parts_to_write",
]

# Entries of a config that are about a head, as they are where there is none.
_NO_HEAD: dict[str, Any] = {
    "id2label": {0: "LABEL_0", 1: "LABEL_1"},
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "problem_type": None,
}


def parts_to_write(
    module: LMModule, task: str | None, head: bool
) -> Iterator[tuple[str, LMModule]]:
    """Yield each module to write, and the name of its folder, which is empty of one alone.

    Args:
        module: with its network built.
        task: of several the one to write.
        head: whether heads are written; without them one folder has the encoder of all tasks.

    Raises:
        ValueError: there is no such task, or no encoder that is the same for all.
    """
    if not isinstance(module, MultiTaskModule):
        if task is not None:
            raise ValueError(f"task={task!r} is for a module of several tasks, and this has one")
        yield "", module
    elif task is not None:
        yield "", module.task_module_of(task)
    elif head:
        for name in module.tasks:
            yield name, module.task_module_of(name)
    else:
        _check_encoder(module, merge=True)
        # What only some tasks need of an encoder, such as a pooler, is written too.
        whole = min(module.tasks, key=lambda name: len(module.grafted[name]))
        yield "", module.task_module_of(whole)


def check_export(
    module: LMModule, merge: bool = False, plain: bool = False, head: bool = True
) -> None:
    """Check that a module can be written as a folder.

    Args:
        module: with its network built.
        merge: whether adapters and low-rank layers are to be merged.
        plain: whether plain `transformers` is to load it.
        head: whether its head is written, or the encoder alone.

    Raises:
        ValueError: it cannot, because of its adapters or its structure; says what can be done.
    """
    if not head:
        _check_encoder(module, merge)
    # Those of a task are a part of its structure.
    own = task_adapter_names(module.ledger)
    known = {*own, *map(mixture_name, own)}
    names = [name for name in adapters_of(module.network) if name not in known]
    if names and not merge:
        active = ", ".join(active_adapters(module.network)) or "none"
        raise ValueError(
            f"the network has the adapters {', '.join(names)} (active: {active}), which plain "
            "transformers does not know: merge=True (--merge) computes the active ones into the "
            "base's weights, adapter=True (--adapter [NAME]) writes one of them alone"
        )
    if merge and (adapters_of(module.network) or not is_rounded(module.network)):
        check_mergeable(module.network)
    elif plain and not merge:
        _check_plain(module.network, structural_specs(module.network, module.ledger))
        if is_rounded(module.network):
            _check_plain(module.network, [to_spec(Quantize())])


def network_to_write(
    module: LMModule,
    format: str,
    merge: bool,
    plain: bool,
    quantize: str | None,
    exclude: Sequence[str],
    head: bool = True,
) -> tuple[PreTrainedModel, list[dict[str, Any]]]:
    """Return a copy of the network as it is to be written, on the CPU and in evaluation mode.

    Args:
        module: with its network built.
        format: `"hf"` or `"onnx"`.
        merge: whether adapters, low-rank layers and whole numbers become plain layers.
        plain: whether plain `transformers` is to load it.
        quantize: `"int8"` or `"torchao"`, of a folder; ONNX is quantized when it is written.
        exclude: layers that are not.
        head: whether the head is to be written.

    Returns:
        The network with its head, and the surgeries that its config does not say.

    Raises:
        ValueError: it cannot be written so; says what can be done.
        NothingMatchedError: something that is excluded matches nothing.
    """
    if format == "onnx" and module.network.config.is_encoder_decoder:
        raise ValueError(
            "format='onnx' is for encoders and decoders, and this is an encoder-decoder; export it "
            "as 'hf'"
        )
    if format == "hf":
        check_export(module, merge, head=head)
    network: PreTrainedModel = copy.deepcopy(module.network).cpu().eval()
    ledger = module.ledger
    if merge:
        # First, for adapters have learned beside what the rounded layers compute.
        make_float(network)
        if adapters_of(network) or low_rank_layers(network):
            merge_into_base(network)
        ledger = [spec for spec in unmerged(ledger) if not _is_quantization(spec)]
    if format == "onnx":  # it says each operation, whatever the structure
        return network, []
    convert(network)
    ledger = converted(ledger)
    done = quantized_layers(network)
    if done and (exclude or quantize == "int8"):
        raise ValueError(
            "the network is quantized already, and is written so: leave quantize and exclude out, "
            "or merge=True makes floating-point numbers of it before"
        )
    if quantize and not done:
        is_torchao = quantize == "torchao"
        surgery = Quantize(
            exclude=exclude,
            embeddings=not (is_torchao and shares_table(network)),
            activations="per_token" if is_torchao else None,
        )
        surgery(network)
        ledger.append(to_spec(surgery))
    if quantize == "torchao":
        use_torchao(network)
        prepare_for_saving(network)
        return network, []
    specs = structural_specs(network, ledger)
    if plain:
        _check_plain(network, specs)
    return network, specs


def encoder_to_write(network: PreTrainedModel) -> PreTrainedModel:
    """Return the encoder of a network, whose config is made to tell of no head any more.

    Args:
        network: of `network_to_write`.
    """
    encoder = network.base_model
    assert isinstance(encoder, PreTrainedModel)
    for name, value in _NO_HEAD.items():
        setattr(encoder.config, name, value)
    return encoder


def is_rounded(network: nn.Module) -> bool:
    """Whether a network has quantized layers, or such that learn to be."""
    return bool(quantized_layers(network) or fake_quantized_layers(network))


def cast(network: PreTrainedModel, dtype: torch.dtype) -> None:
    """Write all weights of a network in other floating-point numbers.

    Raises:
        ValueError: some are whole numbers.
    """
    if quantized_layers(network):
        raise ValueError(
            "dtype='bfloat16' is for floating-point weights, and these are whole numbers: leave it "
            "out, or merge=True makes floating-point numbers of them before"
        )
    network.to(dtype)  # type: ignore[arg-type]


def agreement_of(
    module: LMModule, network: PreTrainedModel, texts: Sequence[str] | None
) -> Agreement:
    """Compare what is to be written with the network of a module.

    Args:
        module: with its network built.
        network: of `network_to_write`.
        texts: by which they are compared; random words by default.
    """
    before = copy.deepcopy(module.network).cpu().eval()
    example = example_inputs(module, before, rows=8, length=24, texts=texts)
    return compare(scores_of(before, example), scores_of(network, example), example)


def _check_plain(network: PreTrainedModel, specs: list[dict[str, Any]]) -> None:
    if specs:
        kinds = ", ".join(dict.fromkeys(spec["class_path"].rpartition(".")[2] for spec in specs))
        widths = unsaid(network)
        why = f"a config has no words for it{f' ({widths[0]})' if widths else ''}"
        merge = "merge=True (--merge) makes low-rank layers dense, and whole numbers floating-point"
        dense = not widths and not task_adapter_names(specs)
        remedy = f"{merge} ones; " if dense else ""
        raise ValueError(
            f"plain transformers cannot express this structure, which was changed by {kinds}: "
            f"{why}. {remedy}without plain the folder gets a structure.json, which lmkit.load reads"
        )


def _check_encoder(module: LMModule, merge: bool) -> None:
    network = module.network
    why = f"head=False (--no_head) writes an encoder alone, and this {type(network).__name__}"
    if network.base_model is network or network.config.is_encoder_decoder:
        raise ValueError(f"{why} has none that is apart from its head: export it with its head")
    if is_rounded(network) and not merge:
        raise ValueError(
            f"{why} has quantized layers, from which no fit begins: merge=True (--merge) makes "
            "floating-point numbers of them"
        )
    if isinstance(module, MultiTaskModule) and task_adapter_names(module.ledger):
        raise ValueError(
            f"{why} has an adapter of each task inside, so that there is no encoder that is the "
            "same for all: task=NAME (--task NAME) writes the one of a task with its adapter"
        )


def _is_quantization(spec: Mapping[str, Any]) -> bool:
    return str(spec["class_path"]).startswith("lmkit.surgery.quantization.")
