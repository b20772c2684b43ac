"""A `.tflite` as objects that can be changed, and back; and what the converter gets wrong in one."""

from typing import Any

import flatbuffers
from tensorflow.lite.python import schema_py_generated as schema

__all__ = ["keep_scales", "pack", "schema", "unpack"]

_IDENTIFIER = b"TFL3"


def unpack(model: bytes) -> Any:
    """The model as a tree of the schema's objects, a `schema.ModelT`."""
    return schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(bytearray(model), 0))


def pack(tree: Any) -> bytes:
    """The tree as a `.tflite`."""
    builder = flatbuffers.Builder(0)
    builder.Finish(tree.Pack(builder), _IDENTIFIER)
    return bytes(builder.Output())


def keep_scales(model: bytes) -> bytes:
    """Give what a reversal puts out the scale and zero point of what it takes.

    The kernel of REVERSE_V2 copies the whole numbers as they are, and the converter gives its output the range that was
    measured there. Where that differs, as behind a split of several looks, each look counts by a factor and a shift of
    its own: in a mean over four looks at tiles the features came out a tenth too small.
    """
    tree = unpack(model)
    reversals = [
        (graph.tensors[operation.inputs[0]], graph.tensors[operation.outputs[0]])
        for graph in tree.subgraphs
        for operation in graph.operators
        if tree.operatorCodes[operation.opcodeIndex].builtinCode == schema.BuiltinOperator.REVERSE_V2
    ]
    for taken, given in reversals:
        given.quantization = taken.quantization
    return pack(tree) if reversals else model
