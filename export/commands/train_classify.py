"""The task `classify`: the way from class folders to a bundle."""

from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

from export.classifier import FloatClassifier
from export.evaluate import score_samples
from export.finish import Candidate, Demands, finish
from export.fit_classify import fit
from export.mirrored import with_looks
from export.package import Draft, quality_limits
from export.request import Request
from export.whole_pictures import best_temperature, draw_calibration, picture_layers, quantize_pictures
from station.manifest import ClassDecoding
from station.readout import OUTPUT_NAMES


def train(request: Request) -> Path:
    """Train or go on, quantize and write the bundle.

    Raises:
        DatasetError: the data or an option does not serve.
        TrainingError: the loss is not finite any more.
        BundleError, GoldenMismatch: the quantized model does not work.
    """
    fitted = fit(request)
    dataset, knobs, trained = request.dataset, fitted.knobs, fitted.trained
    preprocessing = trained.preprocessing
    names, calibration = draw_calibration(request, dataset.splits["train"], knobs.channels)
    quantized = quantize_pictures(
        trained.network,
        calibration,
        preprocessing,
        OUTPUT_NAMES["classify"],
        trained.to_real,
        request.say,
        knobs.looks,
    )
    draft = Draft(
        name=request.name,
        version=request.version,
        model=quantized.model,
        labels=dataset.labels,
        preprocessing=preprocessing,
        calibration=names,
        task="classify",
        good_label=dataset.good_label,
    )
    deployed = draft.deployed(datetime.now(UTC))
    scored = []
    if dataset.splits["validation"]:
        scored = score_samples(deployed, dataset.splits["validation"], dataset.labels, knobs.channels)
    decoding = ClassDecoding(temperature=round(best_temperature(scored), 4))
    draft = replace(draft, classification=decoding)
    candidate = Candidate(
        draft=draft,
        exact=FloatClassifier(
            with_looks(trained.network, knobs.looks),
            dataset.labels,
            dataset.good_label,
            preprocessing,
            decoding,
            trained.to_real,
        ),
        quality=quality_limits(calibration),
        layers=lambda: picture_layers(
            trained.network, quantized, calibration, preprocessing, OUTPUT_NAMES["classify"], knobs.looks
        ),
        configuration=asdict(knobs),
    )
    demands = Demands(allow_regression=request.allow_regression, rule=request.rule, others=fitted.others)
    return finish(candidate, dataset, request.out, request.say, demands)
