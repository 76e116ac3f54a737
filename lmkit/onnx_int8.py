"""An ONNX model in whole numbers of 8 bits, for ONNX Runtime."""

from __future__ import annotations

import ast
import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .functional.quantization import quantize_weight
from .surgery.sites import base_name

__all__ = ["layers_of", "quantize_onnx"]

# Under which torch's exporter keeps the modules that a node comes from, and ONNX Runtime's
# quantizer asks whether shapes were inferred, which the exporter has done.
_SCOPES = "pkg.torch.onnx.name_scopes"
_PREPARED = ("onnx.quant.pre_process", "onnxruntime.quant")


def layers_of(model: Any) -> dict[str, list[Any]]:
    """Return the nodes that hold a matrix of a layer, by the name of the layer.

    Args:
        model: as `torch.onnx.export` made it of a module whose `network` has the layers.
    """
    weights = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) == 2}
    found: dict[str, list[Any]] = {}
    for node in model.graph.node:
        place = {"MatMul": 1, "Gemm": 1, "Gather": 0}.get(node.op_type)
        if place is None or node.input[place] not in weights:
            continue
        notes = {note.key: note.value for note in node.metadata_props}
        scopes = ast.literal_eval(notes.get(_SCOPES, "[]"))
        inside = [scope for scope in scopes if scope.startswith("network.")]
        if inside:
            name = base_name(inside[-1].removeprefix("network."))
            found.setdefault(name, []).append(node)
    return found


def quantize_onnx(
    source: Path,
    target: Path,
    chosen: Collection[str] | None = None,
    exclude: Collection[str] = (),
    inputs: Mapping[str, tuple[float, int]] | None = None,
) -> list[str]:
    """Write an ONNX model again, with whole numbers for the weights of its layers.

    Linear layers have one step for each output, and round what they read with the range of the
    whole tensor, each time anew or as `inputs` says. Tables have one step for each row.

    Args:
        source: a model in float32 that `torch.onnx.export` has written.
        target: the new file.
        chosen: names of the layers; `None` for all that hold a matrix.
        exclude: names of layers that stay.
        inputs: step and zero point of what layers read, by name.

    Returns:
        The names of the layers that were quantized.

    Raises:
        ValueError: there is none.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(source)
    _turn_weights(model)
    layers = layers_of(model)
    names = [n for n in layers if (chosen is None or n in chosen) and n not in exclude]
    if not names:
        raise ValueError("no layer of the ONNX model is to be quantized: exclude fewer")
    for name in names:
        for node in [node for node in layers[name] if node.op_type == "Gather"]:
            _quantize_table(model, node)
    _drop_unused(model)
    stay = [
        word
        for name, nodes in layers.items()
        for node in nodes
        if name not in names
        # A Gemm becomes a MatMul of this name there.
        for word in (node.name, f"{node.name}_MatMul")
    ]
    note = model.metadata_props.add()
    note.key, note.value = _PREPARED
    with _quiet():
        quantize_dynamic(
            model,
            target,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=stay,
        )
    made = onnx.load(target)
    by_node = {
        f"{word}_quant": inputs[name]
        for name in names
        if inputs and name in inputs
        for node in layers[name]
        for word in (node.name, f"{node.name}_MatMul")
    }
    _fix_inputs(made, by_node)
    _share_tables(made)
    onnx.save(made, target)
    return names


def _turn_weights(model: Any) -> None:
    """Store weights that are turned in the graph, since other layers share them, as they are read.

    Of others the exporter has done so.
    """
    from onnx import numpy_helper

    known = {tensor.name: tensor for tensor in model.graph.initializer if len(tensor.dims) == 2}
    turns = {
        node.output[0]: node
        for node in model.graph.node
        if node.op_type == "Transpose" and node.input[0] in known
    }
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in turns:
            source = turns[node.input[1]].input[0]
            name = f"{source}_turned"
            if name not in known:
                turned = numpy_helper.to_array(known[source]).T
                known[name] = numpy_helper.from_array(np.ascontiguousarray(turned), name)
                model.graph.initializer.append(known[name])
            node.input[1] = name
    used = {name for node in model.graph.node for name in node.input}
    for output in [name for name in turns if name not in used]:
        model.graph.node.remove(turns[output])


def _share_tables(model: Any) -> None:
    """Let a head that shares its weight with a table share its whole numbers, turned."""
    from onnx import helper, numpy_helper

    whole = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.data_type == helper.np_dtype_to_tensor_dtype(np.dtype(np.int8))
        and len(tensor.dims) == 2
    }
    tables = {name: rows for name, rows in whole.items() if name.endswith("_rows")}
    for name, weight in whole.items():
        for table, rows in tables.items():
            if name != table and np.array_equal(weight.T, rows):
                turn = helper.make_node("Transpose", [table], [name], f"{name}_turn", perm=[1, 0])
                model.graph.node.insert(0, turn)
                stored = next(t for t in model.graph.initializer if t.name == name)
                model.graph.initializer.remove(stored)
                break


def _quantize_table(model: Any, node: Any) -> None:
    """Let a node look up whole numbers, and multiply each row by its step."""
    import onnx
    from onnx import helper, numpy_helper

    known = {tensor.name: tensor for tensor in model.graph.initializer}
    name, out = node.input[0], node.output[0]
    if f"{name}_rows" not in known:
        table = torch.from_numpy(numpy_helper.to_array(known[name]).copy())
        whole, scale = quantize_weight(table)
        for word, tensor in (("rows", whole), ("steps", scale)):
            made = numpy_helper.from_array(tensor.numpy(), f"{name}_{word}")
            model.graph.initializer.append(made)
    ids, place = node.input[1], list(model.graph.node).index(node)
    new = [
        helper.make_node("Gather", [f"{name}_rows", ids], [f"{out}_rows"], f"{node.name}_rows"),
        helper.make_node("Gather", [f"{name}_steps", ids], [f"{out}_steps"], f"{node.name}_steps"),
        helper.make_node(
            "Cast",
            [f"{out}_rows"],
            [f"{out}_float"],
            f"{node.name}_float",
            to=onnx.TensorProto.FLOAT,
        ),
        helper.make_node("Mul", [f"{out}_float", f"{out}_steps"], [out], f"{node.name}_mul"),
    ]
    model.graph.node.remove(node)
    for offset, each in enumerate(new):
        model.graph.node.insert(place + offset, each)


def _drop_unused(model: Any) -> None:
    used = {name for node in model.graph.node for name in node.input}
    used |= {output.name for output in model.graph.output}
    for tensor in [t for t in model.graph.initializer if t.name not in used]:
        model.graph.initializer.remove(tensor)


def _fix_inputs(model: Any, by_node: Mapping[str, tuple[float, int]]) -> None:
    """Put constant steps and zero points in the place of those that are computed each time."""
    from onnx import helper, numpy_helper

    makers = {name: node for node in model.graph.node for name in node.output}
    readers = {name: node for node in model.graph.node for name in node.input}
    made: dict[tuple[str, float, int], list[str]] = {}
    for node in list(model.graph.node):
        if node.op_type != "MatMulInteger" or node.name not in by_node:
            continue
        dynamic = makers[node.input[0]]
        x, (scale, zero) = dynamic.input[0], by_node[node.name]
        if (x, scale, zero) not in made:
            words = [f"{x}_static{len(made)}_{word}" for word in ("rounded", "step", "zero")]
            constants = np.float32(scale), np.uint8(zero)
            for word, value in zip(words[1:], constants, strict=True):
                model.graph.initializer.append(numpy_helper.from_array(np.array(value), word))
            rounding = helper.make_node("QuantizeLinear", [x, *words[1:]], words[:1], words[0])
            model.graph.node.insert(list(model.graph.node).index(node), rounding)
            made[x, scale, zero] = words
        rounded, step, zero_point = made[x, scale, zero]
        node.input[0], node.input[2] = rounded, zero_point
        # Behind it stand a cast and a product; the other factor of that is of the two steps.
        product = readers[readers[node.output[0]].output[0]]
        steps = makers[next(n for n in product.input if makers[n].op_type == "Mul")]
        own = next(n for n in steps.input if n == dynamic.output[1] or n == step)
        if own != step:
            steps.input[list(steps.input).index(own)] = step
    used = {name for node in model.graph.node for name in node.input}
    for node in list(model.graph.node):
        if node.op_type == "DynamicQuantizeLinear" and not used & set(node.output):
            model.graph.node.remove(node)


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what ONNX Runtime's quantizer says of every model."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
