"""From settings to a station that can run: the one place that knows every adapter."""

import functools
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from station import __version__, wire
from station.adapters.bundle_library import BundleLibrary
from station.adapters.bundle_trial import try_out
from station.adapters.camera_identity import identify
from station.adapters.camera_process import CameraProcess, plan_for
from station.adapters.control_folder import ControlFolder
from station.adapters.embedded_broker import EmbeddedBroker
from station.adapters.evidence_store import EvidenceStore
from station.adapters.litert_model import load_model, machine
from station.adapters.litert_step import load_step_model
from station.adapters.mqtt_publisher import MqttPublisher
from station.adapters.product_file import ProductFile
from station.adapters.sqlite_journal import SqliteJournal
from station.adapters.sqlite_readings import SqliteReadings
from station.adapters.state_files import StateFiles
from station.adapters.system_clock import SystemClock
from station.adapters.systemd_notify import SystemdNotify
from station.alert_line import AlertLine
from station.alert_messages import Alert
from station.alerts import AlertBook
from station.broker_settings import BrokerSettings
from station.bundle_desk import BundleDesk, Place, Places
from station.calibrated import CameraCalibration, read_calibration
from station.camera_line import BundleKey, CameraPart, CameraProduct
from station.commands.camera_factory import make_camera
from station.commands.order_factory import MODBUS, make_orders
from station.commands.part_id_factory import make_part_ids, need_part_id_extras
from station.commands.sensor_factory import make_reject, make_sensors, need_extras
from station.commands.station_broker import StationBroker
from station.daemon import BROKER, CommandPart, Station
from station.errors import ConfigurationError, ModelError, ProtocolError, StorageError
from station.faults import FaultBoard
from station.ids import uuid7
from station.mailbox import Mailbox, Overflow
from station.manifest import open_bundle
from station.messages import Capture, Incoming, Link, OutboxRow, Outgoing, Status, StatusName, Verdict
from station.order_line import OrderLine
from station.picture import View, fingerprint, read_reference
from station.pipeline import LoadedModel
from station.ports import Archive, Clock, Journal, StepModel
from station.process_bundle import open_process_bundle
from station.process_history import ProcessHistory
from station.process_line import READINGS, ProcessLines, ProcessPart, SensorsPart
from station.product_settings import ProductView
from station.recipe import NO_RECIPE, Recipe
from station.recorder import Recorder
from station.reject_line import RejectLine, RejectLines
from station.section import ControlName
from station.sensor_settings import REPLAYED
from station.settings import CameraSettings, DeviceCamera, Settings
from station.trust import Trust

logger = logging.getLogger(__name__)

OUTBOX_CAPACITY = 4096
"""Verdicts that may wait for the journal. When it is full the cameras' threads wait, and the cameras' own policies say
what becomes of the frames: nothing is dropped here."""
REQUESTS_CAPACITY = 256
"""Commands that may wait to be looked at; more are not taken, and not answered."""
JOURNAL_FILE = "journal.sqlite"
READINGS_FILE = "readings.sqlite"
SWITCH_INTERVAL_S = 0.0005
MODEL = "model"
"""The slot of the bundle that judges where nothing more specific names one."""
CONTROL = "control"
"""What a fault of the folder for requests of the command line is called in `status`."""
EVIDENCE = "evidence"
"""What a fault of the store of pictures is called in `status`."""
LEFT_TO_JOURNAL_BYTES = 16_000_000
"""New pictures leave this much of the disk free: with `min_free_bytes = 0` they would take its last byte, and verdicts
would not be durable any more. It is what the write-ahead log of a large journal may take."""
EVIDENCE_LOOKED_AT = 1000
"""Newest verdicts of former runs whose pictures are looked for at the start."""
PART_IDS_LOOKED_AT = 10_000
"""Newest verdicts of former runs whose part ids count for what is doubled."""


@contextmanager
def assembled(
    settings: Settings, environment: Mapping[str, str] = os.environ, cpus: Mapping[str, int] | None = None
) -> Iterator[Station]:
    """Open everything that a station needs, hand the station out, and close everything in reverse order.

    Args:
        settings: the validated configuration.
        environment: where credentials are looked up.
        cpus: camera → processor that its inference thread is bound to.

    Raises:
        ConfigurationError: the data folder cannot be written, a secret, certificate or trusted key cannot be read, or a
            source of readings needs a package that is not installed.
    """
    # The thread that judges gives the interpreter away during each inference; with Python's own 5 ms it would wait
    # up to that long to get it back from the thread that keeps the journal.
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    need_extras(settings)
    need_part_id_extras(settings.camera)
    clock = SystemClock()
    faults = FaultBoard(clock)
    name = settings.station.name
    boot_id = uuid7(int(clock.now().timestamp() * 1e3))
    outbox: Mailbox[Outgoing] = Mailbox(OUTBOX_CAPACITY, Overflow.BLOCK)
    requests: Mailbox[Incoming] = Mailbox(REQUESTS_CAPACITY, Overflow.DROP_NEWEST, _too_many)
    bundles = make_desk(settings, environment, clock, faults.set, outbox.put)
    password = settings.broker.read_password(environment)
    client_id = settings.broker.client_id or f"inspection-{name}"
    last_will = Status(station=name, status=StatusName.OFFLINE, since=clock.now(), version=__version__, boot_id=boot_id)
    with (
        SystemdNotify(environment, clock) as manager,
        open_journal(settings, clock) as journal,
        _broker_address(settings.broker, faults) as (host, port, held_back),
        MqttPublisher(
            settings.broker,
            host=host,
            port=port,
            client_id=client_id,
            password=password,
            will_topic=wire.status_topic(name),
            will_payload=wire.encode(last_will),
            clock=clock,
            wake=outbox.wake,
            on_link=lambda link: faults.set(BROKER, _link_fault(link)),
            held_back=held_back,
            requests=wire.request_topic(name, "+") if settings.commands.allow else None,
            on_request=requests.put,
        ) as publisher,
        _evidence_store(settings, journal, faults, clock) as evidence,
        _readings_journal(settings, faults) as readings,
        _local_requests(settings, faults) as local,
    ):
        epoch = journal.open_epoch()
        resume = _last_sources(journal)
        for camera, source in resume.items():
            if camera in settings.camera and plan_for(settings.camera[camera]).resumes:
                logger.info("camera %s goes on after %s, which has a verdict", camera, source)
        recorder = Recorder(
            station=name,
            epoch=epoch,
            journal=journal,
            publisher=publisher,
            mailbox=outbox,
            clock=clock,
            window=settings.broker.in_flight,
            replay_window_s=settings.broker.replay_window_s,
            replay_rate_hz=settings.commands.replay_rate_hz,
            on_kept=evidence.committed if evidence else lambda _: None,
        )
        own_broker = StationBroker(settings.broker, host, port, client_id, held_back)
        used_ids = _used_ids(settings, journal)
        cameras = {
            camera: CameraPart(
                settings=table,
                source=CameraProcess(
                    camera,
                    functools.partial(make_camera, table),
                    plan,
                    clock,
                    resume_after=resume.get(camera),
                ),
                products=camera_products(settings, camera, bundles),
                calibration=functools.partial(load_calibration, camera, table, table.calibration)
                if table.calibration is not None
                else None,
                cpu=(cpus or {}).get(camera),
                silence_s=plan.read_deadline_s if plan.watch_reads else None,
                waits=plan.waits,
                part_ids=make_part_ids(
                    camera,
                    table,
                    own_broker,
                    fault=functools.partial(faults.set, f"part ids {camera}"),
                    store=StateFiles(settings.station.data_dir / "part-ids", "part ids of camera"),
                    used=used_ids.get(camera, ()),
                    environment=environment,
                ),
            )
            for camera, table, plan in ((name, table, plan_for(table)) for name, table in settings.camera.items())
        }
        commands = CommandPart(requests, journal, local)
        history = ProcessHistory(max(camera.transport_delay_s for camera in settings.camera.values()))
        process = ProcessLines(
            station=name,
            epoch=epoch,
            sources={
                source: SensorsPart(
                    functools.partial(
                        make_sensors, source, table, wanted_points(settings, source), own_broker, environment
                    ),
                    not isinstance(table, REPLAYED),
                )
                for source, table in settings.sensors.items()
            },
            groups={
                group: ProcessPart(
                    table,
                    functools.partial(bundles.load, process_places(settings, group), load_process_bundle)
                    if table.bundle
                    else None,
                )
                for group, table in settings.process.items()
            },
            history=history,
            record=outbox.put,
            publisher=publisher,
            readings=readings,
            store=StateFiles(settings.station.data_dir / "process", "process"),
            faults=faults,
            clock=clock,
        )
        rejects = RejectLines(
            RejectLine(output, table, table.cameras or settings.camera, make_reject(output, table), faults, clock)
            for output, table in settings.reject.items()
        )
        alerts = AlertLine(
            AlertBook(name, epoch, settings.alert, settings.camera),
            lambda message: outbox.put(message, 0),
            faults,
            clock,
            process if settings.process else None,
            settings.process,
        )
        alerts.restore(_alerts(journal))
        yield Station(
            settings,
            cameras,
            recorder,
            outbox,
            publisher,
            evidence,
            faults,
            manager,
            epoch,
            clock,
            boot_id,
            rejects,
            alerts,
            commands,
            ProductFile(settings.station.data_dir),
            bundles,
            order_lines(settings, own_broker, requests.put, faults, clock, environment),
            process if settings.process else None,
            history.at,
        )


@contextmanager
def open_journal(settings: Settings, clock: Clock) -> Iterator[SqliteJournal]:
    """Open the journal in the data folder.

    Raises:
        ConfigurationError: the folder cannot be written.
    """
    path = settings.station.data_dir / JOURNAL_FILE
    journal = SqliteJournal(path, settings.journal, station=settings.station.name, clock=clock)
    try:
        journal.__enter__()
    except StorageError as exc:
        raise ConfigurationError(f"station.data_dir = {str(settings.station.data_dir)!r}: {exc}") from exc
    try:
        yield journal
    finally:
        journal.__exit__(None, None, None)


def load_calibration(camera: str, settings: CameraSettings, folder: Path) -> CameraCalibration:
    """A camera's calibration, as far as it can be read and fits; it says itself what is wrong with it."""
    return CameraCalibration(camera, settings, read_calibration(folder), functools.partial(identify, settings))


def order_lines(
    settings: Settings,
    broker: StationBroker,
    ask: Callable[[Incoming], object],
    faults: FaultBoard,
    clock: Clock,
    environment: Mapping[str, str],
) -> list[OrderLine]:
    """What passes the plant's orders for another product on.

    Raises:
        ConfigurationError: a source needs a package that is not installed, or a secret cannot be read.
    """
    return [
        OrderLine(
            name,
            source,
            by=by,
            repeats=name == MODBUS,
            products=tuple(settings.product),
            station=settings.station.name,
            ask=ask,
            faults=faults,
            clock=clock,
        )
        for name, (source, by) in make_orders(settings.changeover, broker, environment).items()
    ]


def camera_products(settings: Settings, camera: str, bundles: BundleDesk) -> dict[str | None, CameraProduct]:
    """How a camera judges each product; without products, None is the only one."""
    views = {name: product.of(camera) for name, product in settings.product.items()}
    table = settings.camera[camera]
    places: Places = (Place(f"camera.{camera}", table.bundle), Place(MODEL, settings.model.bundle))
    if not views:
        return {None: _camera_product(settings, table, places, NO_RECIPE, {}, bundles)}
    return {
        name: _camera_product(
            settings,
            with_product(table, view),
            places if view.bundle is None else (Place(f"product.{name}", view.bundle),),
            Recipe.of(name, view),
            view.controls,
            bundles,
        )
        for name, view in views.items()
    }


def with_product(camera: CameraSettings, view: ProductView) -> CameraSettings:
    """The camera's table with what the product says of it."""
    return camera.model_copy(
        update={"bundle": view.bundle or camera.bundle, "reference": view.reference or camera.reference}
    )


def _camera_product(
    settings: Settings,
    camera: CameraSettings,
    places: Places,
    recipe: Recipe,
    controls: Mapping[ControlName, float],
    bundles: BundleDesk,
) -> CameraProduct:
    own = camera.controls if isinstance(camera, DeviceCamera) else {}
    return CameraProduct(
        recipe=recipe,
        bundle=BundleKey(places, camera.reference),
        load=functools.partial(bundles.load, places, functools.partial(load_bundle, camera, settings.model.threads)),
        try_out=functools.partial(bundles.try_out, places),
        controls={str(name): value for name, value in {**own, **controls}.items()},
    )


def make_desk(
    settings: Settings,
    environment: Mapping[str, str],
    clock: Clock,
    told: Callable[[str, str | None], object],
    record: Callable[[Outgoing], object] | None,
) -> BundleDesk:
    """What finds and switches bundles, with the library in the data folder.

    Args:
        settings: the validated configuration.
        environment: where credentials are looked up.
        clock: time.
        told: takes what is wrong with a part.
        record: takes a record of what is done by itself; None: nothing is changed by itself.

    Raises:
        ConfigurationError: a trusted key, or the key of the library, cannot be read.
    """
    library = BundleLibrary(
        settings.station.data_dir, settings.bundles.read_key(environment), settings.bundles.max_bytes
    )
    return BundleDesk(
        station=settings.station.name,
        tables={
            MODEL: settings.model.bundle,
            **{f"camera.{name}": camera.bundle for name, camera in settings.camera.items()},
            **{f"product.{name}": product.bundle for name, product in settings.product.items() if product.bundle},
            **{f"process.{group}": process.bundle for group, process in settings.process.items()},
        },
        library=library,
        inbox=library,
        settings=settings.bundles,
        trust=settings.trust.read(),
        try_out=functools.partial(_try_out, settings.model.threads),
        clock=clock,
        told=told,
        record=record,
    )


def process_places(settings: Settings, group: str) -> Places:
    """Where a process group's bundle is looked for."""
    return (Place(f"process.{group}", settings.process[group].bundle),)


def load_bundle(camera: CameraSettings, threads: int, data: bytes, origin: str, trust: Trust) -> LoadedModel:
    """Check the bytes of a bundle file, load it with a camera's reference picture, and replay its golden set.

    Raises:
        ModelError: it cannot be used, or the reference that it needs is missing.
    """
    bundle = open_bundle(data, origin, trust)
    if bundle.manifest.compares and camera.reference is None:
        raise ModelError(
            f"bundle {bundle.origin}: compares each picture with one of a good part; name that one in the camera's "
            "`reference`"
        )
    if camera.reference is not None and not bundle.manifest.compares:
        raise ModelError(f"bundle {bundle.origin}: takes no reference; remove `reference` from the camera's table")
    reference = None
    if camera.reference is not None:
        reference = read_reference(camera.reference, View.of(camera))
        if camera.calibration is not None:
            # It is a picture of this camera like any other.
            calibration = load_calibration("reference", camera, camera.calibration)
            calibration.see(Capture(reference, datetime.fromtimestamp(0, UTC), 0.0))
            reference = calibration.correct(reference).copy()
    return LoadedModel(
        load_model(bundle, threads, reference=reference),
        bundle.manifest,
        reference_sha256=fingerprint(reference) if reference is not None else None,
        machine=machine(threads),
        reference=reference,
    )


@contextmanager
def _evidence_store(
    settings: Settings, journal: Journal, faults: FaultBoard, clock: Clock
) -> Iterator[EvidenceStore | None]:
    if not settings.evidence.enabled:
        yield None
        return
    with EvidenceStore(
        settings.station.data_dir,
        settings.evidence,
        lambda fault: faults.set(EVIDENCE, fault),
        clock,
        promised=_promised(journal),
        left_bytes=LEFT_TO_JOURNAL_BYTES,
    ) as store:
        yield store


def wanted_points(settings: Settings, source: str) -> Sequence[str]:
    """The points of a source that the process groups ask for, each once."""
    return tuple(
        dict.fromkeys(
            channel.point or name
            for group in settings.process.values()
            for name, channel in group.channel.items()
            if channel.source == source
        )
    )


def _try_out(threads: int, data: bytes, origin: str) -> None:
    try_out(data, origin, threads)


def load_process_bundle(data: bytes, origin: str, trust: Trust) -> StepModel:
    """Check the bytes of a process group's bundle file, load it, and replay its golden sequence.

    Raises:
        ModelError: it cannot be used.
    """
    return load_step_model(open_process_bundle(data, origin, trust))


@contextmanager
def _readings_journal(settings: Settings, faults: FaultBoard) -> Iterator[SqliteReadings | None]:
    """The journal of readings; without it the station goes on, and says so."""
    if not settings.process:
        yield None
        return
    readings = SqliteReadings(settings.station.data_dir / READINGS_FILE, settings.journal.readings_max_bytes)
    try:
        readings.__enter__()
    except StorageError as exc:
        faults.set(READINGS, str(exc))
        yield None
        return
    try:
        yield readings
    finally:
        readings.__exit__(None, None, None)


@contextmanager
def _local_requests(settings: Settings, faults: FaultBoard) -> Iterator[Callable[[], Iterable[Incoming]]]:
    """What takes the requests of this machine's command line; without it the station goes on, and says so."""
    folder = ControlFolder(settings.station.data_dir, settings.station.name)
    try:
        folder.__enter__()
    except StorageError as exc:
        faults.set(CONTROL, str(exc))
        yield tuple
        return
    try:
        yield folder.take
    finally:
        folder.__exit__(None, None, None)


@contextmanager
def _broker_address(
    settings: BrokerSettings, faults: FaultBoard
) -> Iterator[tuple[str, int, Callable[[], str | None]]]:
    """Where the broker is, and what says that it must not be spoken to now.

    While another program holds the embedded broker's port, what answers there is not our broker: verdicts that it
    acknowledged would be lost to everyone who listens to ours.
    """
    if not settings.embedded:
        yield settings.host, settings.effective_port, lambda: None
        return
    with EmbeddedBroker(settings.effective_port, lambda fault: faults.set("embedded broker", fault)) as broker:
        yield broker.host, broker.port, lambda: broker.fault


def _too_many(incoming: Incoming) -> None:
    logger.warning("a request on %s is not taken: too many wait", ascii(incoming.topic[-80:]))


def _link_fault(link: Link) -> str | None:
    return None if link.connected else link.reason or "no connection"


def _last_sources(journal: Journal) -> dict[str, str]:
    """Camera → source of its newest verdict, for the cameras that can go on behind it."""
    return {
        verdict.camera: verdict.source for verdict in _readable(journal.last_verdicts()) if verdict.source is not None
    }


def _used_ids(settings: Settings, journal: Journal) -> dict[str, list[tuple[str, datetime]]]:
    """Camera → the part ids of its newest verdicts with the times of their frames, oldest first."""
    used: dict[str, list[tuple[str, datetime]]] = {}
    if all(camera.part_id is None for camera in settings.camera.values()):
        return used
    try:
        rows = journal.latest(PART_IDS_LOOKED_AT)
    except StorageError as exc:
        logger.warning("%s; part ids of former runs that come again are not known as doubled", exc)
        return used
    for verdict in _readable(rows):
        if verdict.part_id is not None:
            used.setdefault(verdict.camera, []).append((verdict.part_id, verdict.captured_at))
    return used


def _promised(journal: Journal) -> list[Verdict]:
    """The newest verdicts of former runs that name a picture."""
    try:
        rows = journal.latest(EVIDENCE_LOOKED_AT)
    except StorageError as exc:
        logger.warning("%s; pictures that a former run could not write are not marked", exc)
        return []
    return [verdict for verdict in _readable(rows) if verdict.evidence is not None]


def _alerts(journal: Archive) -> Iterator[Alert]:
    """The alerts of former runs, oldest first, without those that this version cannot read."""
    try:
        found = journal.alerts()
    except StorageError as exc:
        logger.warning("%s; an alert that stood before is not cleared", exc)
        return
    for message in found:
        with suppress(ProtocolError):
            yield wire.decode(Alert, message.payload)


def _readable(rows: Iterable[OutboxRow]) -> Iterator[Verdict]:
    """The verdicts in these rows, without those written by a version whose verdicts this one cannot read."""
    for row in rows:
        with suppress(ProtocolError):
            yield wire.decode(Verdict, row.message.payload)
