"""A learned prefix as a folder of peft's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from .adapter_state import other_tensors
from .prefix_tuning import Prefixes, PrefixTuning
from .tuning import head_parameters

__all__ = ["task_of", "write_prefix_folder"]

#: How the head's class ends, and what peft calls the task.
_TASKS = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
}


def task_of(network: nn.Module) -> Any:
    """Return what peft calls the task of a network, `None` if it has no word for it.

    Example:
        >>> task_of(nn.Linear(1, 1)) is None
        True
    """
    kind = type(network).__name__
    return next((task for end, task in _TASKS.items() if kind.endswith(end)), None)


def write_prefix_folder(
    network: nn.Module, spec: PrefixTuning, folder: Path | str, base_name: str | None
) -> None:
    """Write a prefix and the head of its task so that `peft.PeftModel.from_pretrained` loads them.

    `adapter_config.json` and `adapter_model.safetensors`. A projection is written as what it
    computes.

    Args:
        network: has the prefix.
        spec: that it was made by.
        folder: to write into; made if it is not there.
        base_name: hub name or folder of the base, for the config.

    Raises:
        ValueError: the network has no such prefix, peft knows no such task, or other weights were
            trained as well.
    """
    from peft import PrefixTuningConfig

    known: Any = network
    prefixes: Any = getattr(known.base_model, "prefixes", None)
    if not isinstance(prefixes, Prefixes) or prefixes.origins.get(spec.name) != spec:
        raise ValueError(f"the network has no prefix {spec.name!r} made by {spec}")
    kind, task = type(network).__name__, task_of(network)
    if task is None:
        raise ValueError(
            f"peft has no prefix tuning for {kind}; it has some for {', '.join(_TASKS)}"
        )
    saved = _trained_modules(network)
    config = PrefixTuningConfig(
        task_type=task,
        inference_mode=True,
        base_model_name_or_path=base_name,
        num_virtual_tokens=spec.length,
        num_transformer_submodules=1,
        num_layers=prefixes.layers,
        token_dim=prefixes.heads * prefixes.size,
        num_attention_heads=prefixes.heads,
        encoder_hidden_size=prefixes.heads * prefixes.size,
        prefix_projection=False,
        modules_to_save=saved or None,
    )
    encoder = prefixes.adapters[spec.name]
    device = next(encoder.parameters()).device
    with torch.no_grad():
        states = encoder(torch.arange(spec.length, device=device))
    tensors: dict[str, Tensor] = {"prompt_embeddings": states}
    for name, tensor in network.state_dict().items():
        if any(_stands_in(name, module) for module in saved):
            tensors[f"base_model.{name}"] = tensor
    Path(folder).mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        Path(folder) / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )


def _trained_modules(network: nn.Module) -> list[str]:
    """Name the modules beside the prefix that were trained: those of the head, and the pooler."""
    head = {name.partition(".")[0] for name in head_parameters(network)}
    trained = {
        name
        for name, p in network.named_parameters()
        if p.requires_grad and other_tensors({name: p}) and name.partition(".")[0] not in head
    }
    if others := sorted(name for name in trained if ".pooler." not in name):
        raise ValueError(
            f"beside prefix and head {len(others)} weights were trained, such as {others[0]}, and "
            "a folder of peft's prefix tuning cannot hold them; write a checkpoint"
        )
    return [*sorted(head), *(["pooler"] if trained else [])]


def _stands_in(name: str, module: str) -> bool:
    return f".{name}".find(f".{module}.") >= 0
