"""The running station: its threads, its state as others see it, and its ordered shutdown.

One thread a camera takes frames and judges them (`station.camera_line`); the sources of readings and the process groups
have theirs (`station.process_line`); one thread keeps the journal and talks to the broker; one writes pictures, which
nothing waits for; the thread that called `run` is the supervisor: it publishes health, tries again what failed, and
sees it when another thread dies. The order of shutdown is that of the journey: cameras stop capturing, what
they captured is judged, what was judged is journalled, what is journalled is handed to the broker as far as it takes it
within `DRAIN_S`, and last the pictures are written.
"""

import functools
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from uuid import UUID

from station import __version__, wire
from station.alert_line import AlertLine
from station.bundle_desk import BundleDesk
from station.bundle_operations import BundleOperations
from station.camera_line import CameraLine, CameraPart
from station.commander import Commander
from station.errors import StorageError
from station.faults import FaultBoard
from station.mailbox import Mailbox
from station.messages import (
    Fault,
    Health,
    Incoming,
    Outgoing,
    ProcessState,
    Status,
    StatusName,
)
from station.operations import Operations
from station.order_line import OrderLine
from station.pipeline import Inspector
from station.ports import Archive, Clock, EvidenceStore, ProductStore, Publisher, ServiceManager
from station.process_line import ProcessLines
from station.product_line import ProductLine
from station.progress import Progress, RecorderProgress
from station.recorder import Recorder
from station.reject_line import RejectLines
from station.settings import Settings
from station.tally import percentiles

logger = logging.getLogger(__name__)

READ_TIMEOUT_S = 0.1
"""How long a camera thread waits for a frame before it looks whether the station stops."""
LOOK_S = 0.01
"""How often a command that waits for its outcome is looked at."""
DRAIN_S = 5.0
"""How long an orderly stop waits for the broker to acknowledge the rest; what is left stays in the journal."""
EVIDENCE_DRAIN_S = 3.0
"""How long an orderly stop waits for the pictures that are still in memory; the rest are marked as missing."""
MODEL_RETRY_S = 2.0
"""How often a bundle that could not be used is tried again."""
BROKER = "broker"
"""What a fault of the connection to the broker is called in `status`."""
HEALTH_INTERVALS = 3
"""`health` is valid for this many of its intervals."""


@dataclass(frozen=True, slots=True)
class CommandPart:
    """How commands reach the station.

    Attributes:
        requests: the mailbox that the connection to the broker puts them into.
        archive: what the journal keeps.
        local: what the command line of this machine has asked for since the last call.
    """

    requests: Mailbox[Incoming]
    archive: Archive
    local: Callable[[], Iterable[Incoming]]


class Station:
    """Everything that runs between the cameras and the broker.

    Args:
        settings: the validated configuration.
        cameras: by name.
        recorder: journal and delivery, driven by a thread of the station.
        outbox: the mailbox that the recorder empties.
        publisher: for retained state; the recorder sends verdicts over the same one.
        evidence: keeps pictures; the recorder tells it what is committed. None: no pictures are kept.
        faults: what is wrong; the adapters know it as well.
        manager: told that the station is ready, makes progress, stops.
        epoch: number of this run; larger than any before.
        clock: time.
        boot_id: identifies this run in `status`.
        rejects: the reject outputs.
        alerts: what a person or a PLC must act on.
        commands: how commands come.
        product_store: notes which product runs.
        bundles: finds and switches bundles.
        orders: of the plant, for another product.
        process: early warning; None: no process group is watched.
        process_at: says where the process groups stood at a moment, for the verdicts.
    """

    def __init__(
        self,
        settings: Settings,
        cameras: Mapping[str, CameraPart],
        recorder: Recorder,
        outbox: Mailbox[Outgoing],
        publisher: Publisher,
        evidence: EvidenceStore | None,
        faults: FaultBoard,
        manager: ServiceManager,
        epoch: int,
        clock: Clock,
        boot_id: UUID,
        rejects: RejectLines,
        alerts: AlertLine,
        commands: CommandPart,
        product_store: ProductStore,
        bundles: BundleDesk,
        orders: Sequence[OrderLine] = (),
        process: ProcessLines | None = None,
        process_at: Callable[[datetime], Mapping[str, ProcessState]] = lambda _: {},
    ) -> None:
        self._settings = settings
        self._name = settings.station.name
        self._recorder = recorder
        self._outbox = outbox
        self._publisher = publisher
        self._evidence = evidence
        self._faults = faults
        self._manager = manager
        self._progress = Progress()
        self._stalled: Sequence[str] = ()
        self._recorder_turns = 0
        self._epoch = epoch
        self._clock = clock
        self._boot_id = boot_id
        self._started_s = clock.monotonic_s()
        self._since = clock.now()
        self._stopping = threading.Event()
        self._lines = {
            name: CameraLine(
                station=self._name,
                name=name,
                epoch=epoch,
                part=part,
                inspector=Inspector(
                    self._name,
                    name,
                    epoch,
                    part.settings,
                    settings.model,
                    clock,
                    process_at,
                    part.calibration() if part.calibration is not None else None,
                ),
                record=outbox.put,
                publisher=publisher,
                evidence=evidence,
                judged=alerts.judged,
                rejects=rejects,
                faults=faults,
                clock=clock,
            )
            for name, part in cameras.items()
        }
        self._alerts = alerts
        self._rejects = rejects
        self._products = ProductLine(
            lines=self._lines,
            numbers={name: product.number for name, product in settings.product.items()},
            start=settings.changeover.start,
            store=product_store,
            faults=faults,
            clock=clock,
            changed=self._publish_status,
            bundles=bundles,
        )
        self._orders = orders
        self._dead: list[str] = []
        self._commands = commands
        self._bundles = bundles
        self._process = process

    def stop(self) -> None:
        """Ask for an orderly stop; safe in a signal handler."""
        self._stopping.set()

    def run(self) -> bool:
        """Run until `stop`; True after an orderly stop, False when a thread died."""
        recorder_stop, evidence_stop = threading.Event(), threading.Event()
        with ExitStack() as stack:
            self._faults.listen(self._publish_status)
            self._publish_status()
            if (evidence := self._evidence) is not None:
                writer = self._thread("evidence", lambda: self._keep_evidence(evidence, evidence_stop))
                stack.callback(writer.join)
                stack.callback(evidence_stop.set)
            recorder = self._thread("recorder", lambda: self._record(recorder_stop))
            stack.callback(recorder.join)
            stack.callback(recorder_stop.set)
            if (process := self._process) is not None:
                for name, work in process.works():
                    stack.callback(self._thread(name, work).join)
                stack.callback(process.stop)
            for name, work in self._rejects.works():
                stack.callback(self._thread(name, work).join)
            stack.callback(self._rejects.stop)
            self._products.begin()
            for line in self._lines.values():
                thread = self._thread(f"camera-{line.name}", lambda line=line: self._watch(line))  # type: ignore[misc]
                stack.callback(thread.join)
            if self._settings.product:
                stack.callback(self._thread("products", lambda: self._products.load_ahead(self._stopping)).join)
            for order in self._orders:
                work = functools.partial(order.work, self._stopping)
                stack.callback(self._thread(f"orders-{order.name}", work).join)
            stack.callback(self._thread("commands", lambda: self._obey(self._commands)).join)
            stack.callback(self._stopping.set)
            self._manager.ready()
            self._supervise()
            self._manager.stopping()
        self._publish_health()
        self._publish_status(StatusName.OFFLINE)
        return not self._dead

    # The supervisor's thread

    def _supervise(self) -> None:
        interval_s = self._settings.station.health_interval_s
        next_health_s = next_model_s = self._clock.monotonic_s()
        while not self._stopping.wait(min(interval_s, 0.2)):
            now_s = self._clock.monotonic_s()
            self._report_progress(now_s)
            self._faults.set("journal", self._recorder.fault)
            self._faults.set("broker refusal", self._recorder.refusal)
            for line in self._lines.values():
                if line.part.part_ids is not None:
                    line.part.part_ids.keep()
            states = {line.name: line.progress().state for line in self._lines.values()}
            self._rejects.say(", ".join(self._stalled) or None, states)
            self._alerts.look()
            self._products.take_failing_back()
            if now_s >= next_health_s:
                self._publish_health()
                next_health_s = now_s + interval_s
            if now_s >= next_model_s:
                self._products.load_missing()
                next_model_s = now_s + MODEL_RETRY_S

    def _report_progress(self, now_s: float) -> None:
        """Feed the watchdog with work that is really done."""
        lines = self._lines.values()
        recorder = RecorderProgress(self._recorder_turns, len(self._outbox), self._recorder.committed)
        groups = self._process.progress() if self._process is not None else ()
        stalled = self._progress.look(now_s, [line.progress() for line in lines], recorder, groups)
        if stalled and not self._stalled:
            logger.error("no progress: %s; the service manager is given no sign of life", ", ".join(stalled))
        elif self._stalled and not stalled:
            logger.warning("progress again: %s", ", ".join(self._stalled))
        self._stalled = stalled
        faults = ", ".join(fault.what for fault in self._faults.now())
        status = f"{sum(line.settled for line in lines)} frames, {recorder.committed} kept"
        if faults:
            status += f"; degraded: {faults}"
        if stalled:
            status = f"no progress: {', '.join(stalled)}; {status}"
        self._manager.report(status, alive=not stalled)

    def _thread(self, name: str, work: Callable[[], None]) -> threading.Thread:
        def guarded() -> None:
            with suppress(OSError):
                # For `top -H` and debuggers; the kernel keeps 15 characters.
                Path("/proc/thread-self/comm").write_text(name[:15], encoding="utf-8")
            try:
                work()
            except Exception:
                # Whatever it is: a station without one of its threads must not look alive.
                logger.critical("thread %s died; the station stops", name, exc_info=True)
                self._dead.append(name)
                self._stopping.set()
                # A camera's thread must not wait for ever for a recorder that is gone.
                self._outbox.close()

        thread = threading.Thread(target=guarded, name=name)
        thread.start()
        return thread

    # A camera's thread

    def _watch(self, line: CameraLine) -> None:
        if line.part.cpu is not None:
            os.sched_setaffinity(0, {line.part.cpu})
        finishing = False
        with line.part.source, nullcontext() if line.part.part_ids is None else line.part.part_ids:
            running = True
            while running:
                if self._stopping.is_set() and not finishing:
                    line.finish()
                    finishing = True
                running = line.step(READ_TIMEOUT_S, self._stopping.wait)

    # The commands' thread

    def _obey(self, commands: CommandPart) -> None:
        operations = Operations(
            self._settings.commands,
            self._clock,
            archive=commands.archive,
            recorder=self._recorder,
            cameras={name: line.control for name, line in self._lines.items()},
            keeps_evidence=self._evidence is not None,
            reload=self._products.reload,
            change_product=self._products.change,
            process=self._process,
            others=BundleOperations(self._bundles, self._products.switched).handlers(),
        )
        commander = Commander(
            station=self._name,
            allow=frozenset(self._settings.commands.allow),
            handlers=operations.handlers(),
            clock=self._clock,
            record=self._outbox.put,
            copy=self._publisher.copy,
        )
        try:
            commander.remember(commands.archive.answers())
        except StorageError as exc:
            logger.warning("%s; a command of a former run that comes again would be carried out again", exc)
        while not self._stopping.is_set():
            incoming = commands.requests.take(LOOK_S if commander.is_waiting else READ_TIMEOUT_S)
            if incoming is not None:
                commander.handle(incoming)
            for asked in commands.local():
                commander.handle(asked)
            commander.look()
        commander.give_up()

    # The recorder's thread

    def _record(self, stop: threading.Event) -> None:
        while not stop.is_set():
            self._recorder.step(READ_TIMEOUT_S)
            self._recorder_turns += 1
        deadline_s = self._clock.monotonic_s() + DRAIN_S
        # Without a broker there is nothing to wait for: the next start delivers what is left.
        while not (self._recorder.is_idle or self._faults.has(BROKER)) and self._clock.monotonic_s() < deadline_s:
            self._recorder.step(READ_TIMEOUT_S)
        self._recorder.finish()

    # The evidence's thread

    def _keep_evidence(self, evidence: EvidenceStore, stop: threading.Event) -> None:
        while not stop.is_set():
            evidence.step(READ_TIMEOUT_S)
        deadline_s = self._clock.monotonic_s() + EVIDENCE_DRAIN_S
        while evidence.health.queue_depth and self._clock.monotonic_s() < deadline_s:
            evidence.step(READ_TIMEOUT_S)

    # What others see

    def _publish_status(self, override: StatusName | None = None) -> None:
        faults = self._faults.now()
        loaded = next((line.setup.loaded for line in self._lines.values() if line.setup.loaded), None)
        status = Status(
            station=self._name,
            status=override or (StatusName.DEGRADED if faults else StatusName.ONLINE),
            since=self._since,
            version=__version__,
            boot_id=self._boot_id,
            model=loaded.ref if loaded else None,
            product=self._products.product,
            faults=faults,
        )
        self._publisher.retain(wire.status_topic(self._name), wire.encode(status))

    def _publish_health(self) -> None:
        health = self.health()
        # What is no longer valid must not be the first that a new subscriber sees.
        expires_s = HEALTH_INTERVALS * self._settings.station.health_interval_s
        self._publisher.retain(wire.health_topic(self._name), wire.encode(health), expires_s)

    def faults(self) -> tuple[Fault, ...]:
        """What is wrong now."""
        return self._faults.now()

    def health(self) -> Health:
        """The station's figures now."""
        latencies = [one for line in self._lines.values() for one in line.latencies_ms()]
        sensors, process = self._process.health() if self._process is not None else ({}, {})
        now = self._clock.now()
        return Health(
            station=self._name,
            at=now,
            valid_until=now + timedelta(seconds=HEALTH_INTERVALS * self._settings.station.health_interval_s),
            uptime_s=round(self._clock.monotonic_s() - self._started_s, 3),
            cameras={name: line.health() for name, line in self._lines.items()},
            journal=self._recorder.health,
            evidence=self._evidence.health if self._evidence is not None else None,
            sensors=sensors,
            process=process,
            alerts=tuple(self._alerts.standing),
            rejects=self._rejects.health(),
            latency_ms=percentiles(latencies),
            disk_free_bytes=shutil.disk_usage(self._settings.station.data_dir).free,
            rss_mb=round(resident_mb(os.getpid()), 1),
        )


def resident_mb(pid: int) -> float:
    """Resident memory of a process in 10^6 bytes, from /proc.

    Raises:
        OSError: there is no such process.
    """
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def account_balances(health: Health) -> bool:
    """Whether every camera's frames are accounted for."""
    return all(camera.account.balanced for camera in health.cameras.values())
