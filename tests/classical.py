"""What was done before networks: local binary patterns, histograms of gradients, and a support vector machine.

Needs `pip install '.[study]'` (scikit-image, scikit-learn).

Each picture is squeezed to 128×128 grey values. LBP: uniform patterns of 8 neighbours at 1 px and of 16 at 2 px (Ojala
et al., IEEE TPAMI 24, 2002), a histogram for each of 4×4 cells. HOG: 9 orientations, cells of 16 px, blocks of 2×2
(Dalal and Triggs, CVPR 2005). Every feature is brought to mean 0 and deviation 1; the machine has an RBF kernel,
classes weigh the same however rare they are, and C and gamma are chosen by cross-validation over whole groups. A grid
that goes on to a C of 1000 and a gamma of .01 brought nothing on crops of boards, nor did HOG cells of 8 px.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from skimage.feature import hog, local_binary_pattern
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from station.messages import Pixels

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

EDGE_PX = 128
LBP_CELLS = 4
LBP_RINGS = ((8, 1), (16, 2))
"""(neighbours, radius in pixels)."""

HOG_CELL_PX = 16
FOLDS = 5
C = (1.0, 10.0, 100.0)
GAMMA_TIMES = (0.1, 0.3, 1.0, 3.0)
"""Of one over the number of features."""


@dataclass(frozen=True, slots=True)
class Classical:
    """A fitted machine.

    Attributes:
        machine: scikit-learn's pipeline.
        chosen: C and gamma.
        cross_validated: what they reached on the training part's folds: macro-F1, of two classes average precision.
    """

    machine: Any
    chosen: dict[str, float]
    cross_validated: float

    def classes(self, features: Floats) -> Ints:
        """Class of each picture, `[n]`."""
        return np.asarray(self.machine.predict(features), np.int64)

    def scores(self, features: Floats) -> Floats:
        """Of two classes: distance to the border, positive on the side of class 1, `[n]`."""
        return np.asarray(self.machine.decision_function(features), np.float64)


def describe(pixels: Pixels) -> Floats:
    """Features of one grey picture of any size."""
    small = cv2.resize(pixels, (EDGE_PX, EDGE_PX), interpolation=cv2.INTER_AREA)
    parts = [
        np.asarray(
            hog(small, orientations=9, pixels_per_cell=(HOG_CELL_PX, HOG_CELL_PX), cells_per_block=(2, 2)), np.float64
        )
    ]
    cell_px = EDGE_PX // LBP_CELLS
    for neighbours, radius in LBP_RINGS:
        codes = np.asarray(local_binary_pattern(small, neighbours, radius, "uniform"), np.int64)
        cells = codes.reshape(LBP_CELLS, cell_px, LBP_CELLS, cell_px).swapaxes(1, 2).reshape(-1, cell_px * cell_px)
        parts += [np.bincount(cell, minlength=neighbours + 2) / cell.size for cell in cells]
    return np.concatenate(parts)


def fit(features: Floats, classes: Ints, groups: Sequence[str]) -> Classical:
    """Choose C and gamma, and fit to all.

    Args:
        features: `[n, features]`.
        classes: `[n]`, from 0; of two, 1 is the one to find.
        groups: of each picture; those of one stand in one fold.
    """
    two = len(np.unique(classes)) == 2
    search = GridSearchCV(
        make_pipeline(StandardScaler(), SVC(kernel="rbf", class_weight="balanced")),
        {"svc__C": C, "svc__gamma": [times / features.shape[1] for times in GAMMA_TIMES]},
        scoring="average_precision" if two else "f1_macro",
        cv=StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0),
    )
    with warnings.catch_warnings():
        # A class with few groups is missing in some folds.
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        search.fit(features, classes, groups=np.asarray(groups))
    chosen = {name.removeprefix("svc__"): float(value) for name, value in search.best_params_.items()}
    return Classical(search.best_estimator_, chosen, float(search.best_score_))
