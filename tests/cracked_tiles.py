"""Two classes of MagneticTile's pictures, cracked and intact, without their masks: the labels are all there is.

A tile was shot about six times. The groups of the data set are kept, so that a tile stands on one side of a split.
"""

import shutil
from pathlib import Path

import numpy as np
from labelled_folders import whole_folder, write_groups

from export.dataset import read_dataset
from export.samples import DatasetError

CLASSES = {"cracked": "MT_Crack", "intact": "MT_Free"}
"""Folder that is written → class of the data set."""


def write_tiles(source: Path, counts: dict[str, int], folder: Path) -> Path:
    """So many pictures of each of `CLASSES`, always the same ones, and `groups.csv`; not again if `folder` is there.

    Raises:
        DatasetError: `source` is not MagneticTile, knows no groups, or has too few pictures of a class.
    """
    if folder.is_dir():
        return folder
    dataset = read_dataset(source)
    if not {*CLASSES.values()} <= {*dataset.labels} or not (source / "groups.csv").is_file():
        raise DatasetError(f"{source}: has no {', '.join(CLASSES.values())} with groups.csv; expected MagneticTile")
    groups: list[tuple[str, str]] = []
    with whole_folder(folder) as part:
        for index, (kind, count) in enumerate(counts.items()):
            label = dataset.labels.index(CLASSES[kind])
            samples = sorted((one for one in dataset.samples if one.label == label), key=lambda one: one.name)
            if len(samples) < count:
                raise DatasetError(f"{source}: has {len(samples)} pictures of {CLASSES[kind]}; {count} are wanted")
            (part / kind).mkdir()
            for at in np.random.default_rng((37, index)).permutation(len(samples))[:count]:
                name = f"{kind}/{samples[at].picture.name}"
                shutil.copyfile(samples[at].picture, part / name)
                groups.append((name, samples[at].group))
        write_groups(part, groups)
    return folder
