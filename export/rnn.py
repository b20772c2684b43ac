"""The recurrent networks of early warning, in Keras 3, and their export as one step.

A network holds *members*: small recurrent networks side by side in one layer, which do not see each other. Each is
taught without its own stretch of the logs, so that a forecast of that stretch by that member is one of data which it
has never seen: residuals are calibrated on those (cross-fitting; Barber, Candès, Ramdas and Tibshirani, Predictive
inference with the jackknife+, Annals of Statistics 49, 2021). What is deployed is the mean of the members.

Members within one stock layer are a block-diagonal recurrent kernel, kept by a constraint: one cell step costs the
same as that of a plain layer, and every backend of Keras and the TFLite converter know it.
"""

import contextlib
import io
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from station.adapters.litert_step import MASK, NEXT_STATE, OUTPUT, STATE, VALUES, LitertStep
from station.process_bundle import Cell

Singles = npt.NDArray[np.float32]
GATES: dict[str, int] = {"gru": 3, "lstm": 4, "simple_rnn": 1}
STATES: dict[str, int] = {"gru": 1, "lstm": 2, "simple_rnn": 1}


@dataclass(frozen=True, slots=True)
class NetworkShape:
    """What a network looks like.

    Attributes:
        cell: `gru`, `lstm`, or `simple_rnn` with ReLU.
        channels: width of the readings.
        horizons: ticks ahead of each forecast; empty for a network that tells faults.
        members: side by side.
        units: of each member.
        noise: standard deviation of what is added to the scaled readings in training.
    """

    cell: Cell
    channels: int
    horizons: tuple[int, ...]
    members: int = 4
    units: int = 16
    noise: float = 0.3

    @property
    def outputs(self) -> int:
        """Width of one member's output."""
        return len(self.horizons) * self.channels if self.horizons else 1

    @property
    def width(self) -> int:
        """Units of all members together."""
        return self.members * self.units

    @property
    def states(self) -> tuple[int, ...]:
        """Units of each state tensor."""
        return (self.width,) * STATES[self.cell]


class Masked(keras.constraints.Constraint):  # type: ignore[misc]  # Keras has no types
    """Keeps the weights outside of a mask at zero."""

    def __init__(self, mask: Singles) -> None:
        self.mask = mask

    def __call__(self, w: Any) -> Any:
        """Apply it."""
        return w * self.mask


class MaskedStart(keras.initializers.Initializer):  # type: ignore[misc]
    """Glorot's uniform start within a mask, with given values added."""

    def __init__(self, mask: Singles, scale: float, fixed: Singles | float, seed: int) -> None:
        self.mask, self.scale, self.fixed, self.seed = mask, scale, fixed, seed

    def __call__(self, shape: Sequence[int], dtype: Any = None) -> Any:
        """Draw the weights."""
        drawn = np.random.default_rng(self.seed).uniform(-self.scale, self.scale, tuple(shape))
        return keras.ops.convert_to_tensor((drawn * self.mask + self.fixed).astype(np.float32), dtype=dtype)


def build(shape: NetworkShape, ticks: int | None, seed: int, decay: float) -> keras.Model:
    """The network for training: `[batch, ticks, channels]` readings and mask → `[batch, ticks, members × outputs]`.

    Args:
        shape: what it looks like.
        ticks: length of the sequences; None: any.
        seed: of the weights.
        decay: weight of the squared weights in the loss.
    """
    values = keras.Input((ticks, shape.channels), name=VALUES)
    mask = keras.Input((ticks, shape.channels), name=MASK)
    # A forecast one tick ahead starts from the reading itself; the noise is for the recurrent layer only.
    noisy = keras.layers.GaussianNoise(shape.noise, seed=seed)(values)
    hidden = _recurrent(shape, seed, decay)(keras.layers.Concatenate()([keras.layers.Multiply()([noisy, mask]), mask]))
    head = _head_mask(shape)
    start = np.zeros_like(head)
    start[shape.width :] = head[shape.width :]
    head_scale = 0.1 / np.sqrt(shape.units)
    inner = head.copy()
    inner[shape.width :] = 0
    outputs = keras.layers.Dense(
        head.shape[1],
        kernel_initializer=MaskedStart(inner, head_scale, start, seed + 1),
        kernel_constraint=Masked(head),
        name="head",
    )(keras.layers.Concatenate()([hidden, values]))
    return keras.Model([values, mask], outputs)


def step_model(network: keras.Model, shape: NetworkShape, *, apart: bool) -> keras.Model:
    """One step of a trained network, batch 1, with its state as inputs and outputs.

    Args:
        network: from `build`.
        shape: what it looks like.
        apart: give each member's output, `[1, members × outputs]`, instead of their mean.
    """
    cell = network.get_layer("recurrent").cell
    kernel, bias = network.get_layer("head").get_weights()
    if not apart:
        kernel = kernel.reshape(-1, shape.members, shape.outputs).mean(axis=1)
        bias = bias.reshape(shape.members, shape.outputs).mean(axis=0)
    values = keras.Input((shape.channels,), batch_size=1, name=VALUES)
    mask = keras.Input((shape.channels,), batch_size=1, name=MASK)
    states = [keras.Input((units,), batch_size=1, name=STATE.format(place)) for place, units in enumerate(shape.states)]
    hidden, new = cell(keras.ops.concatenate([values, mask], axis=-1), states)
    new_states = new if isinstance(new, list | tuple) else [new]
    head = keras.layers.Dense(kernel.shape[1], name=OUTPUT)
    results = {OUTPUT: head(keras.ops.concatenate([hidden, values], axis=-1))}
    for place, state in enumerate(new_states):
        results[NEXT_STATE.format(place)] = keras.layers.Identity()(state)
    head.set_weights([kernel, bias])
    return keras.Model([values, mask, *states], results)


def convert(step: keras.Model, *, quantized: bool) -> bytes:
    """Convert a step to `.tflite`; quantized: int8 weights, float activations.

    Full-integer activations gain no speed in so small a network and cost accuracy, and a state that is rounded to 256
    levels each tick drifts.
    """
    import tensorflow as tf  # noqa: PLC0415  only the conversion needs TensorFlow, training runs on any backend

    converter = tf.lite.TFLiteConverter.from_keras_model(step)
    if quantized:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        return bytes(converter.convert())


def deployed_step(
    network: keras.Model, shape: NetworkShape, *, apart: bool = False, quantized: bool = True
) -> LitertStep:
    """The step in the runtime that the station uses, for calibration through the deployed path."""
    outputs = shape.outputs * (shape.members if apart else 1)
    model = convert(step_model(network, shape, apart=apart), quantized=quantized)
    return LitertStep(model, channels=shape.channels, states=shape.states, outputs=outputs)


def _recurrent(shape: NetworkShape, seed: int, decay: float) -> keras.layers.Layer:
    width = shape.width
    member = np.kron(np.eye(shape.members), np.ones((shape.units, shape.units)))
    gates = np.tile(member, (1, GATES[shape.cell])).astype(np.float32)
    common = {
        "return_sequences": True,
        "name": "recurrent",
        "kernel_initializer": keras.initializers.GlorotUniform(seed=seed),
        "recurrent_constraint": Masked(gates),
        "kernel_regularizer": keras.regularizers.L2(decay),
        "recurrent_regularizer": keras.regularizers.L2(decay),
        "recurrent_initializer": MaskedStart(gates, 1 / np.sqrt(shape.units), 0.0, seed + 2),
    }
    match shape.cell:
        case "gru":
            return keras.layers.GRU(width, **common)
        case "lstm":
            return keras.layers.LSTM(width, **common)
        case "simple_rnn":
            # A ReLU's recurrence grows without bound unless its kernel starts small.
            common["recurrent_initializer"] = MaskedStart(gates, 0.5 / np.sqrt(shape.units), 0.0, seed + 2)
            return keras.layers.SimpleRNN(width, activation="relu", **common)


def _head_mask(shape: NetworkShape) -> Singles:
    """Which inputs of the head reach which outputs: `[width + channels, members × outputs]`.

    Each member's units reach its own outputs; a reading itself reaches only the forecast of its own channel one tick
    ahead: from farther on, a forecast that repeated the reading would follow a fault.
    """
    mask = np.zeros((shape.width + shape.channels, shape.members * shape.outputs), np.float32)
    for member in range(shape.members):
        columns = slice(member * shape.outputs, (member + 1) * shape.outputs)
        mask[member * shape.units : (member + 1) * shape.units, columns] = 1
        for place, horizon in enumerate(shape.horizons):
            if horizon == 1:
                for channel in range(shape.channels):
                    mask[shape.width + channel, member * shape.outputs + place * shape.channels + channel] = 1
    return mask
