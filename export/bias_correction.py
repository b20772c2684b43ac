"""Put the mean of an int8 model's outputs right by the biases of its last layers.

Quantization noise does not only spread: a largest value taken over noise is too large, and what the layers before
round away adds up to a shift that is the same for every picture. On calibration pictures it is measured and taken out
of the bias of the layer that makes the output (Nagel et al., ICCV 2019, section 4.2, for the outputs alone).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from ai_edge_litert.interpreter import Interpreter

from export.flat_model import pack, schema, unpack
from station.messages import Pixels

Array = npt.NDArray[np.float64]

_WITH_BIAS = (schema.BuiltinOperator.CONV_2D, schema.BuiltinOperator.FULLY_CONNECTED)
_JOINED = (schema.BuiltinOperator.ADD, schema.BuiltinOperator.MUL)
_PASSED = (*_JOINED, schema.BuiltinOperator.RESHAPE, schema.BuiltinOperator.REVERSE_V2, schema.BuiltinOperator.SPLIT)
"""What may stand between the layer and the output. A sum is shifted by shifting one of its terms, and a mean over looks
(a sum and a factor, see `export.mirrored`) by shifting the one layer that all of them come from."""


def correct_means(
    model: bytes, inputs: Sequence[Pixels], exact: Sequence[Mapping[str, npt.NDArray[np.float32]]]
) -> bytes:
    """The model with biases such that each channel of each output has the float network's mean.

    Args:
        model: full-integer, one input.
        inputs: uint8 tensors `[1, height, width, channels]` as the model takes them.
        exact: for each of them the float network's outputs by name, channels last.

    Returns:
        The changed model; an output that no layer with a bias makes is left as it is.
    """
    runner = Interpreter(model_content=model).get_signature_runner()
    (source,) = runner.get_input_details()
    details = runner.get_output_details()
    shifts = {name: np.zeros(int(detail["shape"][-1])) for name, detail in details.items()}
    for tensor, wanted in zip(inputs, exact, strict=True):
        found = runner(**{source: tensor})
        for name, detail in details.items():
            scale, zero_point = detail["quantization"]
            real = (np.asarray(found[name], np.float64) - zero_point) * scale
            difference = np.asarray(wanted[name], np.float64).reshape(real.shape) - real
            shifts[name] += difference.reshape(-1, difference.shape[-1]).mean(axis=0) / len(inputs)
    return shift_outputs(model, shifts)


def shift_outputs(model: bytes, shifts: Mapping[str, Array]) -> bytes:
    """Add to each channel of the named outputs, as finely as their biases' steps allow."""
    tree = unpack(model)
    graph = tree.subgraphs[0]
    outputs = {item.name.decode(): item.tensorIndex for item in tree.signatureDefs[0].outputs}
    for name, shift in shifts.items():
        layer = next(_layers_behind(tree, graph, outputs[name]), None)
        if layer is None:
            continue
        tensor = graph.tensors[layer.inputs[2]]
        steps = np.asarray(tensor.quantization.scale, np.float64)
        buffer = tree.buffers[tensor.buffer]
        bias = np.frombuffer(np.asarray(buffer.data, np.uint8).tobytes(), np.int32)
        moved = np.rint(bias + shift / steps)
        limits = np.iinfo(np.int32)
        buffer.data = np.frombuffer(np.clip(moved, limits.min, limits.max).astype(np.int32).tobytes(), np.uint8)
    return pack(tree)


def _layers_behind(tree: Any, graph: Any, tensor: int) -> Iterator[Any]:
    """Layers with a bias of their own that a tensor is made by, or by sums of which it is made."""
    for operation in graph.operators:
        if tensor not in operation.outputs:
            continue
        code = tree.operatorCodes[operation.opcodeIndex].builtinCode
        if code in _WITH_BIAS and len(operation.inputs) > 2 and operation.inputs[2] >= 0:  # noqa: PLR2004
            yield operation
        elif code in _PASSED:
            # A split has its axis first.
            sources = operation.inputs[1:] if code == schema.BuiltinOperator.SPLIT else operation.inputs
            for source in sources[: 2 if code in _JOINED else 1]:
                yield from _layers_behind(tree, graph, source)
