"""The mean over several looks at a picture: what it is, and that the int8 model takes it in its own graph."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytestmark = [
    pytest.mark.training,
    # TensorFlow 2.21's tensors do not know NumPy 2's `copy` argument.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
]

RNG = np.random.default_rng(15)
LOOKS = {
    1: [(1, 1)],
    2: [(1, 1), (-1, -1)],
    4: [(1, 1), (1, -1), (-1, 1), (-1, -1)],
}
"""Steps along rows and columns with which each look reads the picture."""


def small_network() -> Any:
    """With a picture's values and a map, neither of which is the same for a mirrored picture."""
    import keras  # noqa: PLC0415
    from keras import layers, ops  # noqa: PLC0415

    keras.utils.set_random_seed(2)
    picture = keras.Input((None, None, 1), name="picture")
    x = layers.Conv2D(6, 5, strides=2, padding="same", activation="relu")(picture)
    cells = layers.Conv2D(2, 3, padding="same", bias_initializer="random_normal")(x)
    logits = layers.Dense(3, bias_initializer="random_normal")(ops.max(x, axis=(1, 2)))
    return keras.Model(picture, [logits, cells])


def by_hand(network: Any, real: NDArray[np.float32], looks: int) -> list[NDArray[np.float32]]:
    found = [
        (rows, columns, network.predict_on_batch(np.ascontiguousarray(real[:, ::rows, ::columns])))
        for rows, columns in LOOKS[looks]
    ]
    logits = np.mean([outputs[0] for _, _, outputs in found], axis=0)
    return [logits, np.mean([outputs[1][:, ::rows, ::columns] for rows, columns, outputs in found], axis=0)]


@pytest.mark.parametrize("looks", LOOKS)
def test_the_outputs_are_the_means_of_the_single_looks(looks: int) -> None:
    from export.mirrored import with_looks  # noqa: PLC0415

    network = small_network()
    looking = with_looks(network, looks)
    for size in ((24, 32), (40, 16)):
        real = RNG.standard_normal((1, *size, 1)).astype(np.float32)
        for found, wanted in zip(looking.predict_on_batch(real), by_hand(network, real, looks), strict=True):
            assert np.allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("looks", [2, 4])
def test_the_int8_model_takes_the_mean_itself_at_any_size(looks: int) -> None:
    from ai_edge_litert.interpreter import Interpreter  # noqa: PLC0415

    from export.whole_pictures import quantize_pictures  # noqa: PLC0415
    from station.manifest import Preprocessing  # noqa: PLC0415

    network = small_network()
    pictures = [RNG.integers(0, 256, (32, 48), np.uint8) for _ in range(24)]
    preprocessing = Preprocessing(geometry="fitted", stride_px=2, multiple_px=16)
    said: list[str] = []
    quantized = quantize_pictures(
        network, pictures, preprocessing, ("logits", "map"), (1 / 128, 127), said.append, looks
    )
    for height, width in ((32, 48), (48, 16)):
        interpreter = Interpreter(model_content=quantized.model)
        interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], [1, height, width, 1])
        runner = interpreter.get_signature_runner()
        details = runner.get_output_details()
        pixels = RNG.integers(0, 256, (1, height, width, 1), np.uint8)
        stored = runner(picture=pixels)
        wanted = by_hand(network, ((pixels.astype(np.float32) - 127) / 128).astype(np.float32), looks)
        for name, exact in zip(("logits", "map"), wanted, strict=True):
            scale, zero_point = details[name]["quantization"]
            assert np.abs((stored[name].astype(np.float64) - zero_point) * scale - exact).max() < 8 * scale
        # The looks at a picture that is turned by half are the same ones in another order: each of the sums rounds.
        turned = runner(picture=np.ascontiguousarray(pixels[:, ::-1, ::-1]))
        assert np.abs(turned["logits"].astype(int) - stored["logits"]).max() < looks
        assert np.abs(turned["map"][:, ::-1, ::-1].astype(int) - stored["map"]).max() < looks


def test_each_look_counts_the_same_in_int8_where_their_ranges_differ() -> None:
    import keras  # noqa: PLC0415
    from ai_edge_litert.interpreter import Interpreter  # noqa: PLC0415
    from keras import layers, ops  # noqa: PLC0415

    from export.whole_pictures import quantize_pictures  # noqa: PLC0415
    from station.manifest import Preprocessing  # noqa: PLC0415

    picture = keras.Input((None, None, 1), name="picture")
    slope = layers.Conv2D(1, (1, 5), padding="same", name="slope")
    cells = slope(picture)
    network = keras.Model(picture, [ops.max(cells, axis=(1, 2)), cells])
    # Pictures are all brighter to the right, so that a mirrored look sees nothing but slopes that fall.
    slope.set_weights([np.array([-4, -2, 0.4, 2, 4], np.float32).reshape(1, 5, 1, 1), np.zeros(1, np.float32)])
    rises = [np.linspace(low, high, 48) for low, high in RNG.uniform((0, 120), (60, 255), (24, 2))]
    pictures = [np.tile(rise.round().astype(np.uint8), (32, 1)) for rise in rises]
    preprocessing = Preprocessing(geometry="fitted", stride_px=1, multiple_px=16)
    model = quantize_pictures(
        network, pictures, preprocessing, ("logits", "map"), (1 / 128, 127), lambda _: None, 4
    ).model
    runner = Interpreter(model_content=model).get_signature_runner()
    scale, zero_point = runner.get_output_details()["map"]["quantization"]
    pixels = pictures[0][None, :, :, None]
    real = ((pixels.astype(np.float32) - 127) / 128).astype(np.float32)
    found = (runner(picture=pixels)["map"].astype(np.float64) - zero_point) * scale
    one_look = network.predict_on_batch(real)[1]
    # Away from the ends, where zeros beside the picture make slopes of their own.
    inside = (slice(None), slice(None), slice(4, -4))
    error = np.abs(found - by_hand(network, real, 4)[1])[inside].max()
    assert error < 0.1 * np.abs(one_look[inside]).max()
