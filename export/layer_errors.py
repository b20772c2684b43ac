"""Layer by layer: how far the int8 network's inner values are from the float network's on the same pictures."""

import contextlib
import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from export.comparison import LayerError
from station.messages import Pixels

LAYER_PICTURES = 4
"""So many pictures show what each layer loses; it changes little from one to the next."""

_CONVERSIONS = frozenset({"QUANTIZE", "DEQUANTIZE"})
_LARGEST_DB = 99.0
"""Where both agree to the last bit the ratio has no end."""

_TINY = 1e-30

Operation = Mapping[str, Any]


def layer_errors(
    serving: keras.Model, model: bytes, pictures: Sequence[Mapping[str, Pixels]]
) -> tuple[LayerError, ...]:
    """Run both networks over some pictures and compare what each operation puts out.

    Both graphs come from one network through the same converter, so their operations correspond one to one but for the
    conversions between number formats; where the converter fused them differently, those with equal names are compared.

    Args:
        serving: the float network that was quantized.
        model: the int8 model.
        pictures: input name → uint8 `[1, height, width, channels]`; a few suffice.

    Returns:
        One entry for each pair, in the order of the graph.
    """
    exact, rounded = _interpreter(_float_model(serving)), _interpreter(model)
    pairs = _pairs(exact, rounded)
    signal, noise = np.zeros(len(pairs)), np.zeros(len(pairs))
    for together in pictures:
        _run(exact, together, like=rounded)
        _run(rounded, together, like=rounded)
        for number, (before, after) in enumerate(pairs):
            wanted = exact.get_tensor(int(before["outputs"][0])).astype(np.float64)
            difference = wanted - _real(rounded, int(after["outputs"][0]))
            signal[number] += float(np.square(wanted).sum())
            noise[number] += float(np.square(difference).sum())
    names = _names(exact)
    decibels = 10 * np.log10(np.maximum(signal, _TINY) / np.maximum(noise, _TINY))
    return tuple(
        LayerError(
            # The number tells layers of one name apart.
            f"{number:02} {_short(names[int(before['outputs'][0])])}",
            str(before["op_name"]),
            float(min(_LARGEST_DB, decibels[number - 1])),
        )
        for number, (before, _) in enumerate(pairs, start=1)
    )


def _float_model(serving: keras.Model) -> bytes:
    converter = tf.lite.TFLiteConverter.from_keras_model(serving)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        return bytes(converter.convert())


def _interpreter(model: bytes) -> Interpreter:
    # Without the delegate, which would hide the inner tensors; and these must outlive the run.
    interpreter = Interpreter(
        model_content=model,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        experimental_preserve_all_tensors=True,
    )
    interpreter.allocate_tensors()
    return interpreter


def _operations(interpreter: Interpreter) -> list[Operation]:
    # There is no public call that lists the operations.
    operations: list[Operation] = interpreter._get_ops_details()
    return [one for one in operations if one["op_name"] not in _CONVERSIONS]


def _pairs(before: Interpreter, after: Interpreter) -> list[tuple[Operation, Operation]]:
    exact, rounded = _operations(before), _operations(after)
    if [one["op_name"] for one in exact] == [one["op_name"] for one in rounded]:
        return list(zip(exact, rounded, strict=True))
    names_before, names_after = _names(before), _names(after)
    by_name = {(one["op_name"], names_after[int(one["outputs"][0])]): one for one in rounded}
    keys = [(one["op_name"], names_before[int(one["outputs"][0])]) for one in exact]
    return [(one, by_name[key]) for one, key in zip(exact, keys, strict=True) if key in by_name]


def _names(interpreter: Interpreter) -> dict[int, str]:
    return {int(detail["index"]): str(detail["name"]) for detail in interpreter.get_tensor_details()}


def _run(interpreter: Interpreter, together: Mapping[str, Pixels], like: Interpreter) -> None:
    scales = next(iter(_signatures(like)))
    wanted = next(iter(_signatures(interpreter)))
    for name, pixels in together.items():
        scale, zero_point = scales[name]["quantization"]
        detail = wanted[name]
        value: npt.NDArray[Any] = pixels
        if np.dtype(detail["dtype"]) == np.float32:
            value = ((pixels.astype(np.float32) - np.float32(zero_point)) * np.float32(scale)).astype(np.float32)
        interpreter.set_tensor(int(detail["index"]), value)
    interpreter.invoke()


def _signatures(interpreter: Interpreter) -> list[Mapping[str, Any]]:
    return [interpreter.get_signature_runner(key).get_input_details() for key in interpreter.get_signature_list()]


def _real(interpreter: Interpreter, index: int) -> npt.NDArray[np.float64]:
    detail = next(one for one in interpreter.get_tensor_details() if one["index"] == index)
    scale, zero_point = detail["quantization"]
    stored = np.asarray(interpreter.get_tensor(index)).astype(np.float64)
    return np.asarray((stored - zero_point) * scale if scale else stored, np.float64)


def _short(name: str) -> str:
    """The last part of the first of the names that the converter has joined."""
    if name.startswith("StatefulPartitionedCall"):
        return "output"
    parts = [part for part in name.split(";", maxsplit=1)[0].split("/") if part]
    return "/".join(parts[-2:]) if parts else name
