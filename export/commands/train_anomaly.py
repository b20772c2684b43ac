"""The task `anomaly`: the way from pictures of good parts to a bundle."""

from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

from export.finish import Candidate, Demands, finish
from export.fit_anomaly import fit
from export.package import Draft, quality_limits
from export.request import Request
from export.train_anomaly import (
    SMOOTH_CELLS,
    FloatAnomaly,
    bank_bytes,
    fit_scale,
    mean_bank,
    with_distance,
    with_drawn,
    within_reach,
)
from export.train_classifier import load_pictures
from export.whole_pictures import draw_calibration, picture_layers, quantize_pictures
from station.anomaly import ANOMALY_LABEL
from station.manifest import AnomalyDecoding
from station.readout import OUTPUT_NAMES


def train(request: Request) -> Path:
    """Train or go on, quantize and write the bundle.

    Raises:
        DatasetError: the data or an option does not serve.
        TrainingError: the loss is not finite any more.
        BundleError, GoldenMismatch: the quantized model does not work.
    """
    fitted = fit(request)
    dataset, knobs, good = request.dataset, fitted.knobs, fitted.good
    held_out = [sample for sample in dataset.splits["validation"] if sample.label == dataset.good]
    request.say("fitting the distribution of good patches")
    trained = with_distance(fitted.trained, [item.pixels for item in good], knobs.seed, knobs.looks)
    names, calibration = draw_calibration(request, fitted.samples, knobs.channels)
    ranges = within_reach(trained, with_drawn(calibration, knobs.seed), calibration, knobs.looks)
    quantized = quantize_pictures(
        trained.network,
        ranges,
        trained.preprocessing,
        OUTPUT_NAMES["anomaly"],
        trained.to_real,
        request.say,
        knobs.looks,
    )
    draft = Draft(
        name=request.name,
        version=request.version,
        model=quantized.model,
        labels=(ANOMALY_LABEL,),
        preprocessing=trained.preprocessing,
        calibration=names,
        task="anomaly",
    )
    features = draft.manifest(datetime.now(UTC)).outputs[0]
    bank = mean_bank(features.zero_point)
    decoding = AnomalyDecoding(
        feature_scale=features.scale, feature_zero_point=features.zero_point, smooth_cells=SMOOTH_CELLS
    )
    draft = replace(draft, anomaly=decoding, extra={decoding.bank: bank_bytes(bank)})
    # The scale is taken from what was held out; from training pictures only where there is nothing else.
    deployed = draft.deployed(datetime.now(UTC))
    reference = [item.pixels for item in load_pictures(held_out, knobs.channels) or good]
    decoding = fit_scale(map(deployed.outputs, reference), decoding, bank, trained.preprocessing.stride_px)
    draft = replace(draft, anomaly=decoding)
    exact = FloatAnomaly(trained, decoding, bank, knobs.looks).scaled_on(reference)
    candidate = Candidate(
        draft=draft,
        exact=exact,
        quality=quality_limits(calibration),
        layers=lambda: picture_layers(
            trained.network, quantized, ranges, trained.preprocessing, OUTPUT_NAMES["anomaly"], knobs.looks
        ),
        configuration=asdict(knobs),
    )
    return finish(
        candidate,
        dataset,
        request.out,
        request.say,
        Demands(allow_regression=request.allow_regression, rule=request.rule),
    )
