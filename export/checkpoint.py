"""Weights of a training in stages, written whole or not at all: plain arrays, which any Keras backend takes up."""

import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from export.dataset import DatasetError

DAMAGED = (OSError, ValueError, EOFError, zipfile.BadZipFile)
"""What NumPy raises for a file that is cut or another's."""


def save(path: Path, models: Sequence[keras.Model], stage: int, epoch: int, spent_s: float) -> None:
    """Write every model's weights; models may share layers.

    Raises:
        OSError: the disk does not take them; what was stored before still is.
    """
    arrays = {
        f"model{number}_{index}": weight
        for number, model in enumerate(models)
        for index, weight in enumerate(model.get_weights())
    }
    progress = {"stage": np.int64(stage), "epoch": np.int64(epoch), "spent_s": np.float64(spent_s)}
    save_arrays(path, progress | arrays)


def save_arrays(path: Path, arrays: Mapping[str, npt.ArrayLike]) -> None:
    """Write arrays by name.

    Raises:
        OSError: the disk does not take them; what was stored before still is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.part")
    try:
        with temporary.open("wb") as stream:
            np.savez(stream, allow_pickle=False, **arrays)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Stored arrays by name; none where there is no file.

    Raises:
        DatasetError: the file is damaged.
    """
    if not path.is_file():
        return {}
    try:
        # NumPy leaves a file open that it cannot read, if it has opened it.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            return dict(stored)
    except DAMAGED as exc:
        raise DatasetError(f"{path}: cannot be read: {exc}; remove it, and it is made anew") from exc


def restore(path: Path, models: Sequence[keras.Model]) -> tuple[int, int, float]:
    """Put stored weights back.

    Returns:
        Stage, epoch of that stage and the seconds that it has taken; zeros where nothing is stored.

    Raises:
        DatasetError: the file is damaged, or of another network.
    """
    if not path.is_file():
        return 0, 0, 0.0
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            for number, model in enumerate(models):
                model.set_weights([stored[f"model{number}_{index}"] for index in range(len(model.weights))])
            return int(stored["stage"]), int(stored["epoch"]), float(stored["spent_s"])
    except (*DAMAGED, KeyError) as exc:
        reason = str(exc).rstrip(".")
        raise DatasetError(f"{path}: is not a checkpoint of this training: {reason}; remove it to start anew") from exc
