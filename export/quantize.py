"""From the trained network to a full-integer model, calibrated on a stratified set of training pictures."""

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import keras
import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from export.dataset import DatasetError, Sample, read_pixels, read_reference, read_sample
from export.flat_model import keep_scales
from export.synthesis.marks import learnt_from
from station.adapters.litert_model import check_integer_graph
from station.manifest import Preprocessing, Tensor
from station.messages import Pixels
from station.preprocess import write_input
from station.readout import OUTPUT_NAMES

INPUT_NAMES = ("picture", "reference")
"""The second one only in a model that compares."""


def quantize(network: keras.Model, pictures: Sequence[tuple[Pixels, ...]], preprocessing: Preprocessing) -> bytes:
    """Convert to a `.tflite` with uint8 input, int8 outputs and nothing but integers between.

    Args:
        network: float32, open input size, one input or two, two outputs: heatmap and box.
        pictures: the calibration set, each picture alone or with its reference, as the network takes them; the model is
            exported for the first one's padded size.
        preprocessing: of the bundle.

    Raises:
        DatasetError: there is nothing to calibrate on.
        BundleError: the converter left something in the model that is not integer.
    """
    if not pictures:
        raise DatasetError("there are no pictures to calibrate the quantization on")
    height, width = padded_size(pictures[0][0], preprocessing)
    names = INPUT_NAMES[: len(pictures[0])]

    def representative() -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        for together in pictures:
            inputs = {}
            for name, picture in zip(names, together, strict=True):
                tensor = np.empty((height, width, preprocessing.channels), np.uint8)
                write_input(np.ascontiguousarray(picture[:height, :width]), tensor, preprocessing)
                # The input's scale comes from its largest value. It must be 1/255 whatever the pictures' brightness,
                # since the station writes pixels as they are.
                tensor[0, 0], tensor[0, 1] = 0, 255
                inputs[name] = tensor[None].astype(np.float32) / np.float32(255)
            yield "serving_default", inputs

    return convert(serving_network(network, (height, width), names, preprocessing.channels), representative)


def padded_size(pixels: Pixels, preprocessing: Preprocessing) -> tuple[int, int]:
    """Height and width of a picture, padded as the bundle wants it."""
    multiple = preprocessing.multiple_px
    height, width = (-(-edge // multiple) * multiple for edge in pixels.shape[:2])
    return height, width


def serving_network(
    network: keras.Model, size: tuple[int, int], names: Sequence[str], channels: Literal[1, 3]
) -> keras.Model:
    """The detector for one input size (height, width), one picture at a time, its outputs by name."""
    sources = [keras.Input((*size, channels), batch_size=1, name=name) for name in names]
    outputs = network(sources if len(sources) > 1 else sources[0], training=False)
    return keras.Model(
        sources if len(sources) > 1 else sources[0], dict(zip(OUTPUT_NAMES["detect"], outputs, strict=True))
    )


def convert(serving: keras.Model, representative: Callable[[], Iterator[tuple[str, dict[str, np.ndarray]]]]) -> bytes:
    """Convert a network of fixed input size to full integers: uint8 in, int8 out.

    Args:
        serving: float32, batch size 1; its outputs are a dictionary by name.
        representative: yields `("serving_default", {input name: array})`; the ranges come from these.

    Raises:
        BundleError: the converter left something in the model that is not integer.
    """
    # `from_saved_model` would leave uninitialised VAR_HANDLE operations that give NaN.
    converter = tf.lite.TFLiteConverter.from_keras_model(serving)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = representative
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = tf.uint8
    converter.inference_output_type = tf.int8
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        model = keep_scales(bytes(converter.convert()))
    check_integer_graph(model)
    return model


def describe(model: bytes, names: Sequence[str]) -> tuple[Tensor, ...]:
    """Inputs or outputs of a converted model, as the manifest states them."""
    interpreter = Interpreter(model_content=model)
    interpreter.allocate_tensors()
    runner = interpreter.get_signature_runner()
    found = runner.get_input_details() | runner.get_output_details()

    def tensor(name: str) -> Tensor:
        details = found[name]
        scale, zero_point = details["quantization"]
        return Tensor.model_validate(
            {
                "name": name,
                "shape": tuple(int(edge) for edge in details["shape"]),
                "dtype": str(np.dtype(details["dtype"])),
                "scale": float(scale),
                "zero_point": int(zero_point),
            }
        )

    return tuple(tensor(name) for name in names)


def read_pictures(samples: Sequence[Sample], channels: int, *, compares: bool = False) -> list[tuple[Pixels, ...]]:
    """The pictures of some samples, each with its reference for a model that compares.

    Raises:
        DatasetError: a picture or a reference is missing or cannot be read.
    """
    pictures: list[tuple[Pixels, ...]] = []
    for sample in samples:
        pixels = read_sample(sample, channels)
        pictures.append((pixels, read_reference(sample, channels)) if compares else (pixels,))
    return pictures


def read_folder(folder: Path, channels: int) -> tuple[tuple[str, ...], list[tuple[Pixels, ...]]]:
    """Names and pixels of the PNG pictures of a folder, in the order of their names.

    Raises:
        DatasetError: there are none, one cannot be read, or one is synthetic.
    """
    files = sorted(folder.glob("*.png"))
    if not files:
        raise DatasetError(f"{folder}: holds no PNG pictures to calibrate on")
    for file in files:
        if learnt_from(file, file.read_bytes()) is not None:
            raise DatasetError(f"{file}: is synthetic; only real pictures set the ranges: take it out of {folder}")
    return tuple(file.name for file in files), [(read_pixels(file, channels),) for file in files]
