"""A checked bundle, loaded into LiteRT.

Before a model may judge, four things must hold: every operation and tensor is of the integer kinds listed here, the
tensors are those of the manifest, the XNNPACK delegate computes the outputs (without it the same graph takes up to 200
times as long and says so in one log line only), and the golden set gives what was validated.
"""

import platform
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from station.detections import Grid, Placement, overlap
from station.errors import BundleError, GoldenMismatch, InferenceError
from station.manifest import Bundle, GoldenCase, Tensor
from station.messages import Box, Defect, ModelRef, Outcome, Pixels, Scores
from station.preprocess import input_size, write_input
from station.readout import readout_of

INTEGER_OPS = frozenset(
    {
        "ADD",
        "AVERAGE_POOL_2D",
        "CONCATENATION",
        "CONV_2D",
        "DEPTHWISE_CONV_2D",
        "DEPTH_TO_SPACE",
        "FULLY_CONNECTED",
        "MAX_POOL_2D",
        "MEAN",
        "MUL",
        "PAD",
        "QUANTIZE",
        "REDUCE_MAX",
        "REDUCE_MIN",
        "RELU",
        "RELU6",
        "RESHAPE",
        "REVERSE_V2",
        "SPACE_TO_DEPTH",
        "SPLIT",
        "SUB",
    }
)
"""Operations that a model may use. Resource variables, custom and Flex operations are not among them: the first come
out of a broken export and give NaN, the others need code that the station does not have."""

INTEGER_TYPES = frozenset({np.dtype(np.int8), np.dtype(np.uint8), np.dtype(np.int32)})
"""Types of tensors: quantized values, pixels, and the biases and sizes of the operations."""

LARGEST_PICTURE_PX = 1 << 26
"""Height × width of the largest input; the network's inner tensors take some 65 bytes a pixel, 180 of one
that looks four times."""

_DELEGATE = "DELEGATE"
_SCALE_TOLERANCE = 1e-6
_INPUT_SCALE_TOLERANCE = 1e-4
_INPUT_SCALES = ((1 / 255, 0), (1 / 128, 127))
"""The two ways in which networks here take pixels as they are: 0..1, and (pixel − 127) / 128."""

_GOLDEN_OVERLAP = {"detect": 0.8, "classify": 0.3, "anomaly": 0.3}
"""By task: boxes around places of a map are made of whole cells, of which one more or less changes much."""


def check_integer_graph(model: bytes) -> None:
    """Walk all operations and tensors of a model, without the delegate, which would hide them.

    Raises:
        BundleError: it does not load, or something in it is not of the integer kinds; the text names the first.
    """
    interpreter = _interpreter(model, 1, OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
    for operation in _operations(interpreter):
        if operation["op_name"] not in INTEGER_OPS:
            raise BundleError(
                f"the model uses the operation {operation['op_name']}; allowed are {', '.join(sorted(INTEGER_OPS))}"
            )
    for tensor in interpreter.get_tensor_details():
        if np.dtype(tensor["dtype"]) not in INTEGER_TYPES:
            raise BundleError(
                f"the model's tensor {tensor['name']} is {np.dtype(tensor['dtype'])}; a full-integer model has int8, "
                "uint8 and int32 tensors only"
            )


class LitertModel:
    """A model that is ready to judge; see `load_model`.

    Not for use from several threads at once: each camera has its own.
    """

    def __init__(
        self, bundle: Bundle, threads: int = 1, *, heatmap: bool = False, reference: Pixels | None = None
    ) -> None:
        """Load the model and check it against its manifest; the golden set is run by `load_model`.

        Args:
            bundle: read and checked by `station.manifest.read_bundle`.
            threads: for one invocation.
            heatmap: whether `infer` returns the heatmap as well.
            reference: what pictures are compared with that come without a reference of their own.

        Raises:
            BundleError: the model is not what the manifest says, or the delegate did not take it.
        """
        self._bundle = bundle
        self._manifest = bundle.manifest
        self._want_heatmap = heatmap
        self._default_reference = reference
        self._size: tuple[int, int] | None = None
        try:
            check_integer_graph(bundle.model)
            self._interpreter = _interpreter(bundle.model, threads, OpResolverType.AUTO)
            inputs, outputs = _signature(self._interpreter)
            allowed = (1, 2) if self._manifest.task == "detect" else (1,)
            if len(self._manifest.inputs) not in allowed:
                raise BundleError("the manifest must name one input, or for the task detect two: picture and reference")
            self._inputs = tuple(_check_tensor(inputs, wanted) for wanted in self._manifest.inputs)
            self._outputs = tuple(_check_tensor(outputs, tensor) for tensor in self._manifest.outputs)
            self._check_inputs()
            self._readout = readout_of(bundle)
            self._check_delegate()
        except BundleError as exc:
            raise BundleError(f"bundle {bundle.origin}: {exc}") from exc

    @property
    def ref(self) -> ModelRef:
        """Which bundle this is."""
        return self._bundle.ref

    @property
    def bundle(self) -> Bundle:
        """The bundle with its thresholds and limits."""
        return self._bundle

    def infer(self, pixels: Pixels, reference: Pixels | None = None) -> Scores:
        """Score one picture, `[height, width]` or `[height, width, 3]` BGR uint8.

        The first picture of another size makes the runtime plan its memory anew (some milliseconds).

        Args:
            pixels: the picture.
            reference: the same place without defects, of the same height and width, for a bundle that compares; without
                it the one that the model was loaded with.

        Raises:
            InferenceError: the picture does not fit the model or its reference, or the runtime failed.
        """
        began = time.perf_counter()
        outputs, placement, written = self._invoke(pixels, reference)
        scores = self._readout.read(outputs, placement, heatmap=self._want_heatmap)
        return replace(
            scores,
            preprocess_ms=(written - began) * 1e3,
            inference_ms=(time.perf_counter() - written) * 1e3,
        )

    def outputs(self, pixels: Pixels) -> tuple[list[Grid], Placement]:
        """What the network puts out for a picture, in the manifest's order, and where the picture lies on its input.

        Raises:
            InferenceError: the picture does not fit the model, or the runtime failed.
        """
        outputs, placement, _ = self._invoke(pixels, None)
        return outputs, placement

    def _invoke(self, pixels: Pixels, reference: Pixels | None) -> tuple[list[Grid], Placement, float]:
        preprocessing = self._manifest.preprocessing
        try:
            _, height, width, _ = self._manifest.inputs[0].shape
            self._fit(input_size(pixels, preprocessing, (height, width)))
            # The view lives within this expression only: the runtime refuses to run while anyone holds one.
            placement = write_input(pixels, self._interpreter.tensor(self._inputs[0])()[0], preprocessing)
            if self._manifest.compares:
                beside = self._reference_for(pixels, reference)
                write_input(beside, self._interpreter.tensor(self._inputs[1])()[0], preprocessing)
            written = time.perf_counter()
            self._interpreter.invoke()
            outputs = [
                Grid(self._interpreter.get_tensor(index)[0], tensor.scale, tensor.zero_point)
                for index, tensor in zip(self._outputs, self._manifest.outputs, strict=True)
            ]
        except (RuntimeError, ValueError, MemoryError, cv2.error) as exc:
            raise InferenceError(f"the model {self.ref.name} failed on a {list(pixels.shape)} picture: {exc}") from exc
        return outputs, placement, written

    def invoke_only(self) -> None:
        """Run the network once more over what the input holds: the bare loop that the whole path is compared with.

        Raises:
            InferenceError: the runtime failed.
        """
        try:
            self._interpreter.invoke()
        except RuntimeError as exc:
            raise InferenceError(f"the model {self.ref.name} failed: {exc}") from exc

    def run_golden_set(self) -> None:
        """Replay the stored pictures through this very path.

        Raises:
            GoldenMismatch: an outcome, a score or a box differs from what was validated.
        """
        for case in self._manifest.golden:
            try:
                pixels = _golden_picture(self._bundle, case.file)
                beside = _golden_picture(self._bundle, case.reference) if case.reference else None
                self._check_case(case, self.infer(pixels, beside))
            except (GoldenMismatch, InferenceError) as exc:
                raise GoldenMismatch(f"bundle {self._bundle.origin}: golden picture {case.file}: {exc}") from exc

    def _check_inputs(self) -> None:
        preprocessing = self._manifest.preprocessing
        picture = self._manifest.inputs[0]
        for tensor in self._manifest.inputs:
            if tensor.dtype != "uint8" or tensor.shape[::3] != (1, preprocessing.channels):
                raise BundleError(
                    f"the input {tensor.name} must be uint8 [1, height, width, {preprocessing.channels}], "
                    f"not {tensor.dtype} {list(tensor.shape)}"
                )
            if tensor.shape != picture.shape:
                raise BundleError(f"the inputs differ in shape: {list(picture.shape)} and {list(tensor.shape)}")
            if not any(
                abs(tensor.scale / scale - 1) <= _INPUT_SCALE_TOLERANCE and tensor.zero_point == zero_point
                for scale, zero_point in _INPUT_SCALES
            ):
                raise BundleError(
                    f"the input {tensor.name} must have scale 1/255 and zero point 0, or 1/128 and 127, since pixels "
                    f"are written as they are; it has {tensor.scale:g} and {tensor.zero_point}"
                )
        if preprocessing.multiple_px % preprocessing.stride_px:
            raise BundleError(
                f"preprocessing.multiple_px {preprocessing.multiple_px} is no multiple of stride_px "
                f"{preprocessing.stride_px}"
            )

    def _check_delegate(self) -> None:
        """XNNPACK appears in the runtime's list as nodes named DELEGATE; what they put out, they have computed."""
        computed: set[int] = set()
        for operation in _operations(self._interpreter):
            if operation["op_name"] == _DELEGATE:
                computed.update(int(index) for index in operation["outputs"])
        if not set(self._outputs) <= computed:
            raise BundleError(
                "the XNNPACK delegate did not take the model, it would run up to 200 times slower; "
                "is /proc/cpuinfo hidden from this process (ProcSubset=pid)?"
            )

    def _fit(self, size: tuple[int, int]) -> None:
        """Give the input another size, unless it has it already."""
        if self._size == size:
            return
        if size[0] * size[1] > LARGEST_PICTURE_PX:
            raise InferenceError(
                f"a picture of {size[0]}×{size[1]} is larger than {LARGEST_PICTURE_PX} pixels; set a region of interest"
            )
        channels = self._manifest.preprocessing.channels
        # Unknown until the runtime has planned its memory: after a failure the next picture plans it again.
        self._size = None
        for index in self._inputs:
            self._interpreter.resize_tensor_input(index, [1, *size, channels])
        self._interpreter.allocate_tensors()
        self._size = size

    def _reference_for(self, pixels: Pixels, given: Pixels | None) -> Pixels:
        beside = given if given is not None else self._default_reference
        if beside is None:
            raise InferenceError("the bundle compares each picture with a reference, and there is none")
        if beside.shape[:2] != pixels.shape[:2]:
            raise InferenceError(
                f"the picture is {pixels.shape[1]}×{pixels.shape[0]} px, its reference "
                f"{beside.shape[1]}×{beside.shape[0]}"
            )
        return beside

    def _check_case(self, case: GoldenCase, scores: Scores) -> None:
        found = [item for item in scores.candidates if item.score >= self._manifest.thresholds.of(item.label)]
        outcome = Outcome.NG if found else Outcome.OK
        if outcome is not case.outcome:
            raise GoldenMismatch(f"the outcome is {outcome}, validated was {case.outcome}")
        if abs(scores.score - case.score) > case.tolerance:
            raise GoldenMismatch(
                f"the score is {scores.score:.4f}, validated was {case.score:.4f} ± {case.tolerance:.4f}"
            )
        if len(found) != len(case.boxes):
            raise GoldenMismatch(f"{len(found)} defects, validated were {len(case.boxes)}")
        for label, box in zip(case.labels, case.boxes, strict=True):
            if not any(item.label == label and self._agree(item, box) for item in found):
                raise GoldenMismatch(
                    f"no {label} at x {box.x_px:.0f}, y {box.y_px:.0f}, {box.width_px:.0f}×{box.height_px:.0f} px"
                )

    def _agree(self, defect: Defect, box: Box) -> bool:
        shared = overlap(_corners(defect.box), _corners(box)[None])[0]
        return bool(shared >= _GOLDEN_OVERLAP[self._manifest.task])


def load_model(
    bundle: Bundle, threads: int = 1, *, heatmap: bool = False, reference: Pixels | None = None
) -> LitertModel:
    """Load a bundle and replay its golden set.

    Args:
        bundle: read and checked by `station.manifest.read_bundle`.
        threads: for one invocation; one is best with several cameras.
        heatmap: whether `infer` returns the heatmap as well.
        reference: what pictures are compared with that come without a reference of their own.

    Raises:
        BundleError: the model is not what the manifest says.
        GoldenMismatch: this machine does not give the validated scores.
    """
    model = LitertModel(bundle, threads, heatmap=heatmap, reference=reference)
    model.run_golden_set()
    return model


def machine(threads: int) -> str:
    """Processor, runtime and threads in one line: what two machines must share to give the same scores bit for bit."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    processor = names[0] if names else "unknown processor"
    return f"{platform.machine()}, {processor}; ai-edge-litert {version('ai-edge-litert')}; threads {threads}"


def _interpreter(model: bytes, threads: int, resolver: OpResolverType) -> Interpreter:
    try:
        interpreter = Interpreter(model_content=model, num_threads=threads, experimental_op_resolver_type=resolver)
        interpreter.allocate_tensors()
    except (RuntimeError, ValueError) as exc:
        reason = " ".join(str(exc).split())
        raise BundleError(f"LiteRT does not take the model: {reason}") from exc
    return interpreter


def _operations(interpreter: Interpreter) -> list[dict[str, Any]]:
    # There is no public call that lists the operations.
    operations: list[dict[str, Any]] = interpreter._get_ops_details()
    return operations


def _signature(interpreter: Interpreter) -> tuple[dict[str, Any], dict[str, Any]]:
    signatures = interpreter.get_signature_list()
    if len(signatures) != 1:
        raise BundleError(f"the model has {len(signatures)} signatures; exactly one is expected")
    runner = interpreter.get_signature_runner(next(iter(signatures)))
    return runner.get_input_details(), runner.get_output_details()


def _check_tensor(found: dict[str, Any], wanted: Tensor) -> int:
    details = found.get(wanted.name)
    if details is None:
        raise BundleError(f"the model has no tensor {wanted.name}; it has {', '.join(sorted(found))}")
    shape = tuple(int(edge) for edge in details["shape"])
    dtype = str(np.dtype(details["dtype"]))
    scale, zero_point = details["quantization"]
    if (shape, dtype) != (wanted.shape, wanted.dtype):
        raise BundleError(
            f"the model's tensor {wanted.name} is {dtype} {list(shape)}, the manifest says "
            f"{wanted.dtype} {list(wanted.shape)}"
        )
    if abs(scale - wanted.scale) > _SCALE_TOLERANCE * abs(wanted.scale) or zero_point != wanted.zero_point:
        raise BundleError(
            f"the model's tensor {wanted.name} has scale {scale:g} and zero point {zero_point}, the manifest says "
            f"{wanted.scale:g} and {wanted.zero_point}"
        )
    return int(details["index"])


def _golden_picture(bundle: Bundle, file: str) -> Pixels:
    encoded = np.frombuffer(bundle.golden[file], np.uint8)
    decoded = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED) if encoded.size else None
    if decoded is None:
        raise GoldenMismatch("is not a picture")
    return np.asarray(decoded, np.uint8)


def _corners(box: Box) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.array([box.x_px, box.y_px, box.x_px + box.width_px, box.y_px + box.height_px], np.float32)
