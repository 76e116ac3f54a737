"""From a hub name, a folder or a plain config to a Hugging Face network in train mode."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.auto_factory import _BaseAutoModelClass
from transformers.utils import logging as transformers_logging

from ..surgery.structure_folder import Mismatch, has_structure, load_structure
from .fresh_weights import are_other_classes, fresh_weights_of, say_fresh

__all__ = [
    "MissingModelError",
    "build_network",
    "check_fit",
    "named_config",
    "usable_positions",
]

# Facts of a config that come from the tokenizer when a network is made from scratch.
_TOKEN_IDS = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")


class MissingModelError(ValueError):
    """There is no model of a name."""


def build_network(
    auto_class: type[_BaseAutoModelClass],
    model: str | Mapping[str, Any],
    pretrained: bool = True,
    tokenizer: PreTrainedTokenizerBase | None = None,
    settings: Mapping[str, Any] | None = None,
) -> tuple[PreTrainedModel, set[str]]:
    """Build a network with a head.

    Args:
        auto_class: gives the head, e.g. `transformers.AutoModelForMaskedLM`.
        model: a hub name, a folder, or a config from scratch as a dictionary with a `model_type`.
        pretrained: load weights (only for a name or folder) or draw them at random.
        tokenizer: gives a config from scratch its `vocab_size` and special ids if it has none.
        settings: entries of the config that the data decide, such as the names of the classes. A
            head that was made for other classes is replaced by a fresh one.

    Returns:
        The network in float32 and train mode, and the names of those weights that were loaded;
        the others are random. Empty when nothing was loaded.

    Raises:
        ValueError: there is no such model, config key or head; names what there is. Or a folder's
            weights are not of the structure that it says.
    """
    config = named_config(model) if isinstance(model, str) else _scratch_config(model, tokenizer)
    known = dict(config.id2label or {})
    for name, value in (settings or {}).items():
        setattr(config, name, value)
    if type(config) not in cast(Any, auto_class)._model_mapping:
        raise ValueError(_no_head(auto_class, config))
    if not (pretrained and isinstance(model, str)):
        network = cast(Any, auto_class).from_config(config, dtype=torch.float32)
        return network.train(), set()
    load = load_structure if has_structure(model) else _load_plain
    network, gaps = load(auto_class, config, model, bool(settings))
    are_other = are_other_classes(known, config)
    other = gaps.other | (_fresh_head(network, auto_class) if are_other else set())
    names = set(network.state_dict())
    loaded = names - gaps.missing - other
    if loaded != names:
        before = known if are_other or len(known) != config.num_labels else {}
        say_fresh(fresh_weights_of(model, names & gaps.missing, names & other, before))
    # transformers hands a loaded network over in eval mode, and Lightning keeps each mode.
    return network.train(), loaded


def _load_plain(
    auto_class: type[_BaseAutoModelClass], config: PretrainedConfig, model: str, any_head: bool
) -> tuple[PreTrainedModel, Mismatch]:
    # In float32 whatever the file holds: mixed precision is the Trainer's to choose.
    with _without_report():
        network, loading = auto_class.from_pretrained(
            model,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=any_head,
        )
    other = {name for name, *_ in loading["mismatched_keys"]}
    return network, Mismatch(set(loading["missing_keys"]), other)


def check_fit(
    network: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    max_length: int | None,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Check that ids, positions and classes of the data exist in the network.

    Args:
        network: built, perhaps before the data were known.
        tokenizer: of the data.
        max_length: of the data.
        settings: entries of the config that the data decide. Names are taken over where the network
            has only numbers.

    Raises:
        ValueError: the tokenizer has more tokens than the network, the text more positions, or the
            data other classes.
    """
    decided = dict(settings or {})
    theirs, config = decided.get("num_labels", network.config.num_labels), network.config
    names: dict[Any, str] = dict(config.id2label or {})
    generic = all(str(name).startswith("LABEL_") for name in names.values())
    wanted = decided.get("id2label", names)
    if theirs != config.num_labels or (not generic and list(wanted.values()) != [*names.values()]):
        raise ValueError(
            f"the network was built with {config.num_labels} classes ({_listed(names)}), and the "
            f"data have {theirs} ({_listed(wanted)}); let the Trainer build it (no "
            "configure_model() before the fit), or name them in the model's config as id2label"
        )
    for name, value in decided.items():
        setattr(config, name, value)
    rows = cast(nn.Embedding, network.get_input_embeddings()).weight.shape[0]
    if tokenizer is not None and len(tokenizer) > rows:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens and the model embeddings for {rows}; use "
            "the model's own tokenizer, or set the vocab_size of the model to the tokenizer's"
        )
    positions = usable_positions(network)
    if max_length is not None and positions is not None and max_length > positions:
        raise ValueError(
            f"max_length is {max_length}, but {network.config.model_type} has {positions} "
            f"positions; set max_length to at most {positions}, or give a model from scratch more "
            "max_position_embeddings"
        )


def usable_positions(network: PreTrainedModel) -> int | None:
    """Return the longest text that the network has positions for, `None` if it has no bound.

    RoBERTa and its kin number positions from the padding id on, and lose as many.
    """
    positions = getattr(network.config, "max_position_embeddings", None)
    if positions is None or positions < 0:  # XLNet's -1
        return None
    for name, module in network.named_modules():
        if (
            isinstance(module, nn.Embedding)
            and name.rsplit(".", 1)[-1] == "position_embeddings"
            and module.padding_idx is not None
        ):
            return int(positions) - module.padding_idx - 1
    return int(positions)


def _fresh_head(network: PreTrainedModel, auto_class: type[_BaseAutoModelClass]) -> set[str]:
    """Draw the weights above the encoder anew; returns their names."""
    fresh = cast(Any, auto_class).from_config(network.config, dtype=torch.float32).state_dict()
    body = f"{network.base_model_prefix}."
    head = {name: value for name, value in fresh.items() if not name.startswith(body)}
    network.load_state_dict(head, strict=False)
    return set(head)


@contextmanager
def _without_report() -> Iterator[None]:
    """Leave out what transformers prints of weights that are missing: it is said here, once."""
    verbosity = transformers_logging.get_verbosity()
    had_bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if had_bar:
            transformers_logging.enable_progress_bar()


def _listed(names: Mapping[Any, str]) -> str:
    return ", ".join(map(repr, list(names.values())[:10])) or "no names"


def named_config(model: str) -> PretrainedConfig:
    """Read the config of a hub name or a folder.

    Raises:
        MissingModelError: there is no such model.
    """
    folder = Path(model)
    if folder.suffix == ".ckpt":
        raise MissingModelError(
            f"{model} is a checkpoint, and a model is a folder or a hub name: make a folder of it "
            f"with `lmkit export --ckpt {model} --output FOLDER`, or go on with --ckpt_path"
        )
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise MissingModelError(f"the folder {model} holds no config.json, so it is no model")
    if not folder.is_dir() and (folder.is_absolute() or model.startswith((".", "~"))):
        raise MissingModelError(f"there is no model folder at {model}")
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(model)
    except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
        raise MissingModelError(
            f"the model {model!r} could not be loaded, neither as a folder nor from the hub: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return config


def _scratch_config(
    model: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase | None
) -> PretrainedConfig:
    settings = dict(model)
    kind = settings.pop("model_type", None)
    if kind not in CONFIG_MAPPING:
        near = difflib.get_close_matches(str(kind), list(CONFIG_MAPPING), n=3)
        raise ValueError(
            "a model from scratch needs a model_type that transformers knows, such as bert or "
            f"gpt2; got {kind!r}" + (f", did you mean {' or '.join(near)}?" if near else "")
        )
    cls = CONFIG_MAPPING[kind]
    known = {f.name for f in dataclasses.fields(cls)} | set(cls.attribute_map)
    known |= {"attn_implementation", "_attn_implementation", "_name_or_path", "output_attentions"}
    known.add("decoder_start_token_id")  # T5's config has no such field, and takes it
    known |= _older_settings(cls)
    for key in settings:
        # A config that was once saved may carry keys of its maker's; one typed by hand may not.
        if key not in known and "transformers_version" not in settings:
            near = difflib.get_close_matches(key, known, n=1)
            raise ValueError(
                f"{kind} has no setting {key!r}" + (f"; did you mean {near[0]!r}?" if near else "")
            )
    if tokenizer is not None:
        settings.setdefault("vocab_size", len(tokenizer))
        for name in _TOKEN_IDS:
            if getattr(tokenizer, name, None) is not None:
                settings.setdefault(name, getattr(tokenizer, name))
    for name in _TOKEN_IDS:
        # The defaults are ids of the architecture's own vocabulary, which another may not have.
        default = getattr(cls, name, None)
        if isinstance(default, int) and default >= settings.get("vocab_size", default + 1):
            settings.setdefault(name, None)
    starts = settings.get("decoder_start_token_id")
    if getattr(cls, "is_encoder_decoder", False) and starts is None:
        # What the architecture's own decoder starts from: BART's from the end, T5's from padding.
        own = getattr(cls, "decoder_start_token_id", None)
        ends = own is not None and own == getattr(cls, "eos_token_id", None)
        role = "eos_token_id" if ends else "pad_token_id"
        settings["decoder_start_token_id"] = settings.get(role, getattr(cls, role, None))
    config: PretrainedConfig = AutoConfig.for_model(kind, **settings)
    return config


def _older_settings(cls: type[PretrainedConfig]) -> set[str]:
    """Names that a config still takes, e.g. `rope_theta`, though it stores them under another."""
    sources = {inspect.getsource(inspect.getmodule(base) or base) for base in cls.__mro__[:-1]}
    return set(re.findall(r"""kwargs\.(?:pop|get)\(\s*["'](\w+)["']""", "".join(sources)))


def _no_head(auto_class: type[_BaseAutoModelClass], config: PretrainedConfig) -> str:
    wanted = auto_class.__name__.removeprefix("AutoModelFor")
    has = [
        architecture
        for architecture in (config.architectures or [])
        if not architecture.endswith("Model")
    ]
    also = f" (its weights are those of a {', '.join(has)})" if has else ""
    remedy = {
        "MaskedLM": "take an encoder such as bert or roberta, or use CausalLMModule",
        "CausalLM": "take a decoder such as gpt2 or llama, or use MaskedLMModule",
        "PreTraining": "take one with a head for pairs of sentences (albert, bert, big_bird, "
        "ernie, megatron-bert, mobilebert), or leave sentence_objective out",
        "Seq2SeqLM": "take an encoder-decoder such as t5 or bart, or use CausalLMModule",
    }.get(wanted, "take an architecture that has it")
    return f"the architecture {config.model_type!r} has no {wanted} head{also}; {remedy}"
