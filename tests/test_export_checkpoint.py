"""Weights of a training on disk."""

from pathlib import Path

import keras
import numpy as np
import pytest

from export.checkpoint import read_arrays, restore, save, save_arrays
from export.dataset import DatasetError


def small(outputs: int = 2) -> keras.Model:
    source = keras.Input((3,))
    return keras.Model(source, keras.layers.Dense(outputs)(source))


def test_a_training_goes_on_with_what_was_stored(tmp_path: Path) -> None:
    path, model, other = tmp_path / "checkpoint.npz", small(), small()
    assert restore(path, [model]) == (0, 0, 0.0)
    save(path, [model], 1, 4, 2.5)
    assert restore(path, [other]) == (1, 4, 2.5)
    for stored, found in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(stored, found)
    with pytest.raises(DatasetError, match=r"checkpoint\.npz: is not a checkpoint of this training"):
        restore(path, [small(outputs=3)])


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_file_that_is_cut_is_named(tmp_path: Path, share: float) -> None:
    for path in (tmp_path / "checkpoint.npz", tmp_path / "statistics.npz"):
        save(path, [small()], 0, 1, 0.0)
        whole = path.read_bytes()
        path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DatasetError, match=r"checkpoint\.npz: is not a checkpoint of this training: .*; remove it"):
        restore(tmp_path / "checkpoint.npz", [small()])
    with pytest.raises(DatasetError, match=r"statistics\.npz: cannot be read: .*; remove it"):
        read_arrays(tmp_path / "statistics.npz")


def test_arrays_come_back_by_name(tmp_path: Path) -> None:
    path = tmp_path / "statistics.npz"
    assert read_arrays(path) == {}
    save_arrays(path, {"mean": np.arange(3)})
    np.testing.assert_array_equal(read_arrays(path)["mean"], [0, 1, 2])
