"""Networks of several tasks that share one encoder."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from ..surgery.config_history import config_data
from ..surgery.task_adapter import keep_task
from ..surgery.task_aggregation import ledger_of_task
from .base import LMModule

if TYPE_CHECKING:
    from .multi_task import MultiTaskModule

__all__ = [
    "configs_followed",
    "head_parameters",
    "heads_of",
    "known_task",
    "own_settings",
    "plain_task",
    "share_encoder",
]


def share_encoder(tasks: Mapping[str, LMModule]) -> dict[str, list[str]]:
    """Let the networks of all tasks have the encoder of the first.

    What only some tasks need of an encoder, such as BERT's pooler, is grafted onto the shared one.

    Args:
        tasks: with their networks built from one model.

    Returns:
        By task the parts of the shared encoder that it does not have when it is alone.

    Raises:
        ValueError: an architecture has no encoder that is apart from its head, or networks have
            encoders of different sizes.
    """
    first, *others = tasks
    networks = {name: task.network for name, task in tasks.items()}
    for name, task in tasks.items():
        _check_shareable(name, task)
    shared = networks[first].base_model
    parts = {
        name: {n for n, _ in net.base_model.named_children()} for name, net in networks.items()
    }
    for name in others:
        theirs = networks[name].base_model
        for part, child in theirs.named_children():
            if getattr(shared, part, None) is None:
                setattr(shared, part, child)
        _check_same(first, shared, name, theirs)
    _follow(networks[first], [networks[name] for name in others])
    there = {part for part, _ in shared.named_children()}
    return {name: sorted(there - own) for name, own in parts.items()}


@contextmanager
def configs_followed(module: MultiTaskModule, surgery: object) -> Iterator[None]:
    """Let the networks of the other tasks follow a surgery of the shared encoder.

    Raises:
        ValueError: it changes the width of the encoder or its vocabulary, which heads do not
            follow.
    """
    first, *others = (task.network for task in module.tasks.values())
    before = config_data(first.config)
    yield
    after = config_data(first.config)
    changed = [key for key in after if after[key] != before.get(key)]
    if others and {"hidden_size", "vocab_size"} & set(changed):
        raise ValueError(
            f"{type(surgery).__name__} changes the width or the vocabulary of the encoder, and the "
            "heads of the other tasks would not fit it: change the model before, and give its "
            "export as model"
        )
    for network in others:
        for key in changed:
            setattr(network.config, key, getattr(first.config, key))
    _follow(first, others)


def heads_of(network: PreTrainedModel) -> nn.Module:
    """Return a module that holds all of a network but its encoder, without a copy."""
    head = nn.Module()
    for name, child in network.named_children():
        if child is not network.base_model:
            head.add_module(name, child)
    for name, parameter in network.named_parameters(recurse=False):
        head.register_parameter(name, parameter)
    return head


def head_parameters(network: PreTrainedModel) -> Iterator[nn.Parameter]:
    """Yield what is trainable of a network and no part of its encoder, tied or not."""
    shared = {id(parameter) for parameter in network.base_model.parameters()}
    for parameter in network.parameters():
        if parameter.requires_grad and id(parameter) not in shared:
            yield parameter


def known_task(module: MultiTaskModule, name: str) -> str:
    """Return the name of a task.

    Raises:
        ValueError: there is no such task.
    """
    if name not in module.tasks:
        raise ValueError(f"there is no task {name!r}; there are {', '.join(module.tasks)}")
    return name


def own_settings(tasks: Mapping[str, LMModule]) -> dict[str, dict[str, Any]]:
    """Return what the config of each task says otherwise than that of the first, as plain data."""
    configs = {name: config_data(task.network.config) for name, task in tasks.items()}
    first = next(iter(configs.values()))
    return {
        name: {k: v for k, v in config.items() if k not in first or v != first[k]}
        | {key: None for key in first if key not in config}
        for name, config in configs.items()
    }


def plain_task(module: MultiTaskModule, name: str) -> LMModule:
    """Return the module of one task with a copy of its network, as if it had been trained alone."""
    task = module.tasks[known_task(module, name)]
    known = inspect.signature(type(task)).parameters
    plain = type(task)(**{word: value for word, value in task.hparams.items() if word in known})
    network = copy.deepcopy(task.network)
    for part in module.grafted[name]:
        setattr(network.base_model, part, None)
    plain.network, plain.tokenizer = network, module.tokenizer
    names = module.task_adapters.names if module.task_adapters is not None else ()
    if names:
        keep_task(network, names, name)
    plain._ledger = ledger_of_task(module.ledger, names, name)
    plain.base = task.base | {word: module.base[word] for word in ("fit",) if word in module.base}
    plain.metrics = copy.deepcopy(task.metrics)
    return plain.train(module.training)


def _follow(first: PreTrainedModel, others: list[PreTrainedModel]) -> None:
    """Give other networks the encoder that the first one has now, and tie their heads to it."""
    for network in others:
        setattr(network, network.base_model_prefix, first.base_model)
        network.tie_weights()


def _check_shareable(name: str, task: LMModule) -> None:
    network = task.network
    kind = network.config.model_type
    if network.base_model is network or network.config.is_encoder_decoder or len(task.networks) > 1:
        raise ValueError(
            f"task {name!r}: a {type(task).__name__} of {kind!r} has no one encoder that other "
            "tasks could share: tasks of several are those of encoders such as bert or "
            "modernbert, or of decoders such as gpt2"
        )


def _check_same(first: str, shared: nn.Module, name: str, theirs: nn.Module) -> None:
    ours = {key: _shape(tensor) for key, tensor in shared.state_dict().items()}
    for key, tensor in theirs.state_dict().items():
        if ours.get(key) != _shape(tensor):
            raise ValueError(
                f"the tasks {first!r} and {name!r} have different encoders: {key} is "
                f"{ours.get(key, 'missing')} and {_shape(tensor)}. They share one, so give both "
                "the same model"
            )
    if type(shared) is not type(theirs):
        raise ValueError(
            f"the tasks {first!r} and {name!r} have encoders of different classes: "
            f"{type(shared).__name__} and {type(theirs).__name__}; they cannot share one"
        )


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
