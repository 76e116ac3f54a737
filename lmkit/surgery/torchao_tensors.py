"""Quantized layers as plain ones that hold tensors of torchao, which has kernels for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .quantization_conversion import convert, make_float, quantized_layers

__all__ = ["prepare_for_saving", "require_torchao", "shares_table", "use_torchao"]


def require_torchao() -> None:
    """Check that torchao is there.

    Raises:
        ImportError: the extra `compress` is not installed.
    """
    try:
        import torchao  # noqa: F401
    except ImportError as error:
        raise ImportError("torchao needs the extra: pip install 'lmkit[compress]'") from error


@torch.no_grad()
def use_torchao(network: nn.Module) -> None:
    """Put plain layers with tensors of torchao in the place of quantized layers.

    They compute the same with whole numbers, up to the order of sums: as they are slower than in
    float32, compiled (`torch.compile` with `torch._inductor.config.freezing`) or on CUDA faster.

    Args:
        network: with quantized layers, or such that learned to be; changed in place.

    Raises:
        ValueError: there is none, or one has weights of 4 bits, a static range of what it reads or
            a weight that another one shares, or stands for a `Conv1D`.
        ImportError: the extra `compress` is not installed.
    """
    require_torchao()
    convert(network)
    layers = quantized_layers(network)
    if not layers:
        raise ValueError("the network has no quantized layers: quantize it first")
    users = [id(layer.weight) for layer in layers.values()]
    for name, layer in layers.items():
        if why := _fault(layer, users.count(id(layer.weight)) > 1):
            other = "without quantize" if layer.scheme.bits != 8 else "with quantize='int8'"
            raise ValueError(f"{name} {why}: leave it out (exclude), or export it {other}")
    tensors = {name: _tensor_of(layer) for name, layer in layers.items()}
    make_float(network)
    for name, tensor in tensors.items():
        plain: Any = network.get_submodule(name)
        plain.weight = nn.Parameter(tensor, requires_grad=False)


def shares_table(network: Any) -> bool:
    """Whether the table of the tokens is another layer's weight too.

    Example:
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> shares_table(BertForMaskedLM(BertConfig(vocab_size=9, hidden_size=8,
        ...     num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)))
        True
    """
    table = network.get_input_embeddings().weight
    return sum(module._parameters.get("weight") is table for module in network.modules()) > 1


def prepare_for_saving(network: Any) -> None:
    """Let `save_pretrained` write the tensors of torchao, and plain transformers load them.

    Args:
        network: of transformers, after `use_torchao`; changed in place.
    """
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig
    from torchao.quantization.quant_primitives import MappingType
    from transformers import TorchAoConfig
    from transformers.quantizers.quantizer_torchao import TorchAoHfQuantizer

    tensors = [p for p in network.parameters() if hasattr(p, "act_quant_kwargs")]
    rounds = any(tensor.act_quant_kwargs is not None for tensor in tensors)
    # What each tensor is stands in itself; this is what a config has to say of them.
    kind = (
        Int8DynamicActivationInt8WeightConfig(act_mapping_type=MappingType.ASYMMETRIC)
        if rounds
        else Int8WeightOnlyConfig()
    )
    config = TorchAoConfig(kind, include_input_output_embeddings=True)
    network.config.quantization_config = config
    network.hf_quantizer = TorchAoHfQuantizer(config, pre_quantized=True)


def _fault(layer: Any, is_shared: bool) -> str:
    """Say why a layer cannot hold a tensor of torchao; nothing if it can."""
    if layer.scheme.bits != 8:
        return "has weights of 4 bits, which torchao stores in 8"
    if layer.scheme.activations == "static":
        return "has a static range of what it reads, which has no zero point there"
    if getattr(layer, "turned", False):
        return "stands for a Conv1D of transformers, which torchao does not know"
    if is_shared:
        return "shares its weight, which transformers cannot load of torchao's tensors"
    return ""


def _tensor_of(layer: Any) -> Any:
    from torchao.quantization import Int8Tensor
    from torchao.quantization.granularity import PerRow, PerTensor
    from torchao.quantization.quant_primitives import MappingType
    from torchao.quantization.quantize_.workflows.int8.int8_tensor import (
        QuantizeTensorToInt8Kwargs,
    )

    how: dict[str, Any] = {}
    if granularity := layer.scheme.activations:
        kind = PerRow() if granularity == "per_token" else PerTensor()
        how["act_quant_kwargs"] = QuantizeTensorToInt8Kwargs(kind, MappingType.ASYMMETRIC)
    if getattr(layer, "smooth", None) is not None:
        how["act_pre_scale"] = 1 / layer.smooth
    block = [1, layer.scheme.group_size or layer.weight.shape[1]]
    return Int8Tensor(layer.weight.data, layer.scale.data, block, layer.scale.dtype, **how)
