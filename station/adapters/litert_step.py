"""The recurrent step of a process bundle in LiteRT: the state goes in and comes out as tensors of its own.

Before it may run, its operations must be among those listed here (a broken export leaves resource variables in the
graph, which give NaN), its tensors must be those of the manifest, and the golden sequence must give what was validated.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from station.errors import BundleError, InferenceError
from station.process_bundle import ForecastMonitor, ProcessBundle, WarnMonitor
from station.step_model import ProcessModel, check_golden_sequence

STEP_OPS = frozenset(
    {
        "ADD",
        "CONCATENATION",
        "FULLY_CONNECTED",
        "LOGISTIC",
        "MUL",
        "RELU",
        "RESHAPE",
        "SPLIT",
        "STRIDED_SLICE",
        "SUB",
        "TANH",
    }
)
"""Operations of one step of a recurrent cell and its head."""

VALUES = "values"
MASK = "mask"
STATE = "state_{}"
NEXT_STATE = "next_state_{}"
OUTPUT = "output"

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]


class LitertStep:
    """One step of a network, with int8 weights and float activations.

    Args:
        model: the `.tflite` file.
        channels: width of the inputs `values` and `mask`.
        states: units of each state tensor.
        outputs: width of the output.

    Raises:
        BundleError: the model does not load, or is not what these numbers say.
    """

    def __init__(self, model: bytes, *, channels: int, states: Sequence[int], outputs: int) -> None:
        inputs, results = _inspect(model)
        wanted = {VALUES: channels, MASK: channels} | {STATE.format(i): units for i, units in enumerate(states)}
        self._values, self._mask, *self._states = _indices(inputs, wanted, "input")
        wanted = {OUTPUT: outputs} | {NEXT_STATE.format(i): units for i, units in enumerate(states)}
        self._output, *self._next_states = _indices(results, wanted, "output")
        self._pairs = tuple(zip(self._states, self._next_states, strict=True))
        self._zeros = [np.zeros((1, units), np.float32) for units in states]
        self._interpreter = _interpreter(model, OpResolverType.AUTO)
        self.reset()

    def step(self, values: Singles, mask: Singles) -> Floats:
        """Take one tick; see `station.step_model.StepNetwork`.

        Raises:
            InferenceError: the runtime failed.
        """
        interpreter = self._interpreter
        try:
            interpreter.set_tensor(self._values, values[None])
            interpreter.set_tensor(self._mask, mask[None])
            interpreter.invoke()
            for state, next_state in self._pairs:
                interpreter.set_tensor(state, interpreter.get_tensor(next_state))
            output: Floats = interpreter.get_tensor(self._output)[0].astype(np.float64)
        except (RuntimeError, ValueError) as exc:
            raise InferenceError(f"the recurrent step failed: {exc}") from exc
        return output

    def reset(self) -> None:
        """Set the state to zeros."""
        self.set_state(self._zeros)

    def state(self) -> list[Singles]:
        """A copy of the state tensors."""
        return [self._interpreter.get_tensor(index) for index in self._states]

    def set_state(self, state: Sequence[Singles]) -> None:
        """Go on from a state.

        Raises:
            ValueError: the shapes are others.
        """
        if [table.shape for table in state] != [table.shape for table in self._zeros]:
            raise ValueError("the state is of another network")
        for index, table in zip(self._states, state, strict=True):
            self._interpreter.set_tensor(index, table.astype(np.float32))


def load_step_model(bundle: ProcessBundle) -> ProcessModel:
    """Load a process bundle and replay its golden sequence.

    Raises:
        BundleError: the model is not what the manifest says.
        GoldenMismatch: this machine does not give the validated risks.
    """
    manifest = bundle.manifest
    monitor = manifest.monitor
    network = None
    if isinstance(monitor, ForecastMonitor | WarnMonitor):
        outputs = len(monitor.horizons) * len(manifest.channels) if isinstance(monitor, ForecastMonitor) else 1
        try:
            network = LitertStep(bundle.model, channels=len(manifest.channels), states=monitor.states, outputs=outputs)
        except BundleError as exc:
            raise BundleError(f"bundle {bundle.origin}: {exc}") from exc
    model = ProcessModel(bundle, network)
    check_golden_sequence(model)
    return model


def _inspect(model: bytes) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Check the operations, without the delegate, which would hide them; return the signature's tensors."""
    interpreter = _interpreter(model, OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
    # There is no public call that lists the operations.
    for operation in interpreter._get_ops_details():
        if operation["op_name"] not in STEP_OPS:
            raise BundleError(
                f"the model uses the operation {operation['op_name']}; allowed are {', '.join(sorted(STEP_OPS))}"
            )
    signatures = interpreter.get_signature_list()
    if len(signatures) != 1:
        raise BundleError(f"the model has {len(signatures)} signatures; exactly one is expected")
    runner = interpreter.get_signature_runner(next(iter(signatures)))
    return runner.get_input_details(), runner.get_output_details()


def _indices(found: Mapping[str, Any], wanted: Mapping[str, int], kind: str) -> list[int]:
    if set(found) != set(wanted):
        raise BundleError(f"the model's {kind}s are {', '.join(sorted(found))}; {', '.join(sorted(wanted))} are needed")
    for name, width in wanted.items():
        shape, dtype = found[name]["shape"].tolist(), np.dtype(found[name]["dtype"])
        if shape != [1, width] or dtype != np.float32:
            raise BundleError(f"the model's {kind} {name} is {dtype} {shape}; float32 {[1, width]} is needed")
    return [int(found[name]["index"]) for name in wanted]


def _interpreter(model: bytes, resolver: OpResolverType) -> Interpreter:
    try:
        interpreter = Interpreter(model_content=model, num_threads=1, experimental_op_resolver_type=resolver)
        interpreter.allocate_tensors()
    except (RuntimeError, ValueError) as exc:
        raise BundleError(f"LiteRT does not take the model: {' '.join(str(exc).split())}") from exc
    return interpreter
