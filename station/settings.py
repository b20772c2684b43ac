"""The station's configuration: one TOML file, overridable by environment, validated once, frozen afterwards.

Every field has a default that works. An environment variable ``STATION_BROKER__HOST`` sets ``broker.host``; two
underscores separate levels, and the value is read as TOML where it parses as such, as a string otherwise. A secret is
never written into the file: ``password_credential`` names a file in ``$CREDENTIALS_DIRECTORY`` (systemd's
LoadCredential), ``password_file`` any other file.
"""

import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, model_validator

from station.alert_settings import AlertSettings, AlertTables, CameraAlert
from station.broker_settings import BrokerSettings
from station.bundle_settings import BundleSettings
from station.changeover_settings import ChangeoverSettings, ModbusOrders
from station.errors import ConfigurationError
from station.messages import EvidenceClass, Name, Verb
from station.part_id_settings import FileNamePartId, MqttPartId, PartIdSettings
from station.process_settings import ProcessSettings
from station.product_settings import ProductSettings, ProductView
from station.reject_settings import RejectSettings, RtuReject, check_rejects
from station.section import ControlName, FilePath, Fraction, Region, Section
from station.sensor_settings import REPLAYED, ModbusRtuSensors, MqttSensors, SensorSettings
from station.trust_settings import TrustSettings

ENVIRONMENT_PREFIX = "STATION_"
SHIPPED_PROCESS_BUNDLE = Path(__file__).parent / "bundles" / "process.bundle"
"""Trained on logs of the simulated oven and press only; see calibration/README.md."""
SHIPPED_BUNDLE = Path(__file__).parent / "bundles" / "boards.bundle"
"""Trained on rendered boards only; see calibration/README.md."""


class StationSettings(Section):
    """`[station]`"""

    name: Name = "station"
    """Second level of every MQTT topic: inspection/<name>/…"""
    data_dir: FilePath = Path("station-data")
    """Journal, evidence and state; a relative path is relative to the configuration file."""
    health_interval_s: float = Field(default=5.0, ge=0.2, le=3600)
    """How often `health` is published; it is valid for three intervals."""


class JournalSettings(Section):
    """`[journal]`"""

    max_bytes: int = Field(default=2_000_000_000, ge=1_000_000)
    """Size of the journal, at most; the oldest acknowledged rows go first."""
    max_age_days: float = Field(default=30.0, gt=0)
    """Acknowledged rows older than this are removed."""
    drop_first: Literal["least_valuable", "oldest"] = "least_valuable"
    """What goes when even what was never delivered finds no room, declared on `gap`. least_valuable: the oldest ok
    verdicts, then unknown, then ng. oldest: the oldest verdicts, whatever they say."""
    readings_max_bytes: int = Field(default=500_000_000, ge=1_000_000)
    """Readings of all process groups, kept in a file of their own; the oldest go first."""


class CommandSettings(Section):
    """`[commands]`: what the station may be told over MQTT."""

    allow: Annotated[tuple[Annotated[Verb, Field(strict=False)], ...], Field(strict=False)] = ()
    """Verbs that are allowed; with none, the station listens to nobody. Who may publish them is for the broker's access
    rules to say."""
    replay_max_rows: int = Field(default=100_000, ge=1, le=10_000_000)
    """A replay of more verdicts than this is refused."""
    replay_rate_hz: float = Field(default=500.0, ge=1, le=100_000)
    """Verdicts that were asked for again go out at most at this rate; live ones go first."""
    pause_max_s: float = Field(default=3600.0, gt=0, le=86_400)
    """A longer pause is refused."""


class EvidenceClassSettings(Section):
    """`[evidence.ok]`, `[evidence.borderline]`, `[evidence.unknown]`, `[evidence.ng]`"""

    max_bytes: int | None = Field(default=None, ge=0)
    """Pictures of this class, at most; default: only `evidence.max_bytes` counts. 0: none are kept."""
    min_free_bytes: int | None = Field(default=None, ge=0)
    """What stays free on the disk, for this class instead of `evidence.min_free_bytes`. A less valuable class never
    counts with less than a more valuable one."""


class EvidenceSettings(Section):
    """`[evidence]`: the pictures that are kept beside the verdicts."""

    enabled: bool = True
    """Keep pictures of ng, unknown and borderline frames and a sample of the ok ones, below data_dir/evidence."""
    max_bytes: int = Field(default=5_000_000_000, ge=1_000_000)
    """All pictures together, at most. Room is made by class (ok, borderline, unknown, ng), the oldest picture first."""
    min_free_bytes: int = Field(default=500_000_000, ge=0)
    """What stays free on the disk of the data folder: with less, pictures are deleted and no new ones are kept."""
    ok_share: Fraction = 0.001
    """Share of the ok frames that is kept."""
    borderline_margin: Fraction = 0.1
    """An ok frame whose score is this close to its threshold is borderline, and kept; 0: none is."""
    ok: EvidenceClassSettings = EvidenceClassSettings()
    """`[evidence.ok]`"""
    borderline: EvidenceClassSettings = EvidenceClassSettings()
    """`[evidence.borderline]`"""
    unknown: EvidenceClassSettings = EvidenceClassSettings()
    """`[evidence.unknown]`"""
    ng: EvidenceClassSettings = EvidenceClassSettings()
    """`[evidence.ng]`"""

    def of(self, kind: EvidenceClass) -> EvidenceClassSettings:
        """The settings of one class."""
        return {
            EvidenceClass.OK: self.ok,
            EvidenceClass.BORDERLINE: self.borderline,
            EvidenceClass.UNKNOWN: self.unknown,
            EvidenceClass.NG: self.ng,
        }[kind]


class ModelSettings(Section):
    """`[model]`: what judges, unless a camera names its own bundle."""

    bundle: FilePath = SHIPPED_BUNDLE
    """Bundle file."""
    threads: int = Field(default=1, ge=1, le=64)
    """Threads of the interpreter; a second one only helps on idle cores."""
    threshold: Fraction | None = None
    """Overrides the bundle's own thresholds, chosen on a calibration set; each verdict shows the one used."""


class BaseCamera(Section):
    """Keys that every kind of camera has."""

    policy: Literal["every", "latest"] = "every"
    """every: each frame gets a verdict, an overflow is `unknown` (overload). latest: older frames are skipped and
    counted."""
    expects: Literal["continuous", "triggered"] = "continuous"
    """continuous: silence for `read_deadline_s` is a fault. triggered: silence means that no part came."""
    read_deadline_s: float = Field(default=5.0, ge=0.2, le=3600)
    """A camera that delivers nothing for this long is stalled: its process is killed and started anew."""
    late_after_ms: float = Field(default=1000.0, gt=0)
    """A verdict that took longer since the exposure is marked late."""
    buffer_frames: int = Field(default=8, ge=2, le=256)
    """Frames that may wait between the camera's process and the model."""
    region: Region | None = None
    """Judge only this part of the picture."""
    rotate_degrees: Literal[0, 90, 180, 270] = 0
    """Turn the picture clockwise before the region is cut."""
    colour: Literal["grey", "bgr", "rgb"] = "grey"
    """Form in which the model gets the pictures; rgb swaps the channels of a source that delivers them swapped."""
    max_rate_fps: float | None = Field(default=None, gt=0)
    """Judge at most this many frames a second; the others are skipped and counted."""
    bundle: FilePath | None = None
    """Another bundle than `model.bundle`."""
    reference: FilePath | None = None
    """Picture of a good part as this camera delivers it, aligned with the others: for a bundle that compares."""
    calibration: FilePath | None = None
    """Folder with this camera's calibration, which `station calibrate` writes."""
    uncalibrated: Literal["judge", "unknown"] = "judge"
    """What becomes of frames while the calibration does not fit the camera any more. judge: they are judged without
    what does not fit. unknown: they are `unknown` (uncalibrated)."""
    frozen_after: int = Field(default=0, ge=0)
    """This many identical pictures in a row are `unknown` (frozen); 0 switches it off. A live sensor's noise makes two
    pictures differ."""
    transport_delay_s: float = Field(default=0.0, ge=0, le=86_400)
    """How long a part travels from the process to the camera: a verdict carries the process state of that time ago."""
    threshold_in_alarm: float | None = Field(default=None, gt=0, lt=1)
    """Judge with this threshold, where it is stricter, while a process group is in alarm."""
    part_id: PartIdSettings | None = None
    """`[camera.<name>.part_id]`: where the ids of the parts come from; default: they have none."""

    def known_size_px(self) -> tuple[int, int] | None:
        """Width and height of the picture that is judged, where the settings tell; None: the first picture will."""
        return (self.region.width_px, self.region.height_px) if self.region is not None else None


class DeviceCamera(BaseCamera):
    """A camera behind Video4Linux."""

    kind: Literal["v4l2"]
    """Marks this kind."""
    device: str | int = 0
    """Index, or better a stable path such as /dev/v4l/by-id/usb-…-video-index0."""
    width_px: int | None = Field(default=None, ge=8)
    """Picture width to ask for."""
    height_px: int | None = Field(default=None, ge=8)
    """Picture height to ask for."""
    rate_fps: float | None = Field(default=None, gt=0)
    """Frames a second to ask for."""
    pixel_format: str | None = Field(default=None, pattern=r"^[A-Z0-9]{3}[A-Z0-9 ]$")
    """Four-character code such as MJPG, YUYV or GREY."""
    controls: Mapping[ControlName, float] = Field(default_factory=dict)
    """Values to set, with the matching automatic switched off; each is read back and compared."""
    frozen_after: int = Field(default=5, ge=0)
    """This many identical pictures in a row are `unknown` (frozen); 0 switches it off."""

    def known_size_px(self) -> tuple[int, int] | None:
        """Width and height of the picture that is judged, where the settings tell; None: the first picture will."""
        if self.region is not None or self.width_px is None or self.height_px is None:
            return super().known_size_px()
        turned = self.rotate_degrees in (90, 270)
        return (self.height_px, self.width_px) if turned else (self.width_px, self.height_px)


class StreamCamera(BaseCamera):
    """A network camera: RTSP or HTTP (MJPEG)."""

    kind: Literal["stream"]
    """Marks this kind."""
    url: SecretStr
    """Address, rtsp://… or http://…; may hold user and password, which are never logged."""
    open_timeout_s: float = Field(default=5.0, gt=0, le=120)
    """Longest wait for the connection."""
    frozen_after: int = Field(default=5, ge=0)
    """This many identical pictures in a row are `unknown` (frozen); 0 switches it off."""

    @model_validator(mode="after")
    def _scheme(self) -> Self:
        if not re.match(r"^(rtsp|rtsps|http|https)://", self.url.get_secret_value()):
            raise ValueError("url must begin with rtsp://, rtsps://, http:// or https://")
        return self


class VideoCamera(BaseCamera):
    """A video file."""

    kind: Literal["video"]
    """Marks this kind."""
    path: FilePath
    """The file."""
    loop: bool = False
    """Begin again at the end."""
    rate_fps: float | None = Field(default=None, gt=0)
    """Pace; default: as fast as frames can be judged, none is ever dropped."""


class FolderCamera(BaseCamera):
    """A folder of pictures."""

    kind: Literal["folder"]
    """Marks this kind."""
    path: FilePath
    """The folder."""
    pattern: str = "**/*"
    """Which files, as a glob below the folder; files that are not pictures by their suffix are passed over."""
    list_file: FilePath | None = None
    """A text file with one path a line, below the folder, in the order to read; then `pattern` is not used."""
    mode: Literal["once", "loop", "watch"] = "once"
    """once: read and finish. loop: begin again. watch: wait for new files; a restart goes on after the last one."""
    rate_fps: float | None = Field(default=None, gt=0)
    """Pace; default: as fast as frames can be judged, none is ever dropped."""


class SimulatedCamera(BaseCamera):
    """The simulated line: an endless circuit-board web under a line-scan camera."""

    kind: Literal["simulated"]
    """Marks this kind."""
    seed: int = Field(default=1, ge=0)
    """Which web; the same seed gives the same boards, defects and noise."""
    rate_fps: float = Field(default=30.0, ge=0, le=10_000)
    """Frames a second; 0: as fast as they can be judged."""
    frames: int | None = Field(default=None, ge=1)
    """Stop after this many frames."""
    defect_share: float = Field(default=0.1, ge=0, le=0.99)
    """Share of frames with a defect."""
    rise_after_s: float | None = Field(default=None, ge=0)
    """What passes the camera from then on has `risen_defect_share`; default: never."""
    risen_defect_share: float = Field(default=0.4, ge=0, le=0.99)
    """Share of frames with a defect after the rise."""

    @model_validator(mode="after")
    def _rows_stay_rows(self) -> Self:
        if self.rotate_degrees in (90, 270):
            raise ValueError("rotate_degrees must be 0 or 180: the frames of a line-scan camera own rows of the web")
        return self


CameraSettings = Annotated[
    DeviceCamera | StreamCamera | VideoCamera | FolderCamera | SimulatedCamera, Field(discriminator="kind")
]


class Settings(Section):
    """The whole file."""

    version: Literal[1] = 1
    """Version of this file's form."""
    station: StationSettings = StationSettings()
    """`[station]`"""
    broker: BrokerSettings = BrokerSettings()
    """`[broker]`"""
    journal: JournalSettings = JournalSettings()
    """`[journal]`"""
    evidence: EvidenceSettings = EvidenceSettings()
    """`[evidence]`"""
    commands: CommandSettings = CommandSettings()
    """`[commands]`"""
    model: ModelSettings = ModelSettings()
    """`[model]`"""
    trust: TrustSettings = TrustSettings()
    """`[trust]`"""
    bundles: BundleSettings = BundleSettings()
    """`[bundles]`"""
    camera: Mapping[Name, CameraSettings] = Field(min_length=1)
    """`[camera.<name>]`, one table for each camera."""
    sensors: Mapping[Name, SensorSettings] = Field(default_factory=dict)
    """`[sensors.<name>]`, one table for each source of readings."""
    process: Mapping[Name, ProcessSettings] = Field(default_factory=dict)
    """`[process.<group>]`, one table for each group of channels that is watched together."""
    product: Mapping[Name, ProductSettings] = Field(default_factory=dict)
    """`[product.<name>]`, one table for each product that the line makes."""
    changeover: ChangeoverSettings = ChangeoverSettings()
    """`[changeover]`"""

    alert: AlertTables = Field(default_factory=dict, validate_default=True)
    """`[alert.<name>]`, one table for each alert that is not as it is built in."""

    reject: Mapping[Name, RejectSettings] = Field(default_factory=dict)
    """`[reject.<name>]`, one table for each reject output."""

    @model_validator(mode="after")
    def _rejects_fit(self) -> Self:
        check_rejects(self.reject, self.camera)
        serial = {
            source.device: f"sensors.{name}"
            for name, source in self.sensors.items()
            if isinstance(source, ModbusRtuSensors)
        }
        for name, reject in self.reject.items():
            if isinstance(reject, RtuReject) and reject.device in serial:
                raise ValueError(f"reject.{name}.device = {reject.device!r} is that of {serial[reject.device]}, too")
        return self

    @model_validator(mode="after")
    def _alerts_name_cameras(self) -> Self:
        for name, alert in self.alert.items():
            if isinstance(alert, CameraAlert):
                limits = getattr(alert, "camera_limits", {})
                for key, cameras in (("cameras", alert.cameras), ("camera_limits", tuple(limits))):
                    for camera in cameras:
                        if camera not in self.camera:
                            known = ", ".join(self.camera)
                            raise ValueError(f"alert.{name}.{key}: there is no camera {camera!r}; known: {known}")
        return self

    @model_validator(mode="after")
    def _file_names_have_files(self) -> Self:
        for name, camera in self.camera.items():
            if isinstance(camera.part_id, FileNamePartId) and not isinstance(camera, FolderCamera):
                raise ValueError(f"camera.{name}.part_id.kind = 'file_name': is for cameras of the kind folder")
        return self

    @model_validator(mode="after")
    def _channels_have_sources(self) -> Self:
        for group, process in self.process.items():
            for name, channel in process.channel.items():
                if channel.source not in self.sensors:
                    known = ", ".join(self.sensors) or "there is none"
                    raise ValueError(
                        f"process.{group}.channel.{name}.source = {channel.source!r} has no table "
                        f"[sensors.{channel.source}]; known: {known}"
                    )
            replayed = {isinstance(self.sensors[one.source], REPLAYED) for one in process.channel.values()}
            if len(replayed) > 1:
                raise ValueError(
                    f"process.{group}: a replayed log has times of its own and cannot be joined with others"
                )
        return self

    @model_validator(mode="after")
    def _products_have_cameras(self) -> Self:
        numbers: dict[int, str] = {}
        for name, product in self.product.items():
            key = f"product.{name}"
            if product.number is not None and (other := numbers.setdefault(product.number, name)) != name:
                raise ValueError(f"{key}.number = {product.number}: product.{other} has that number already")
            for camera in [*(product.cameras or ()), *product.camera]:
                if camera not in self.camera:
                    raise ValueError(f"{key}: there is no table [camera.{camera}]; known: {', '.join(self.camera)}")
                if product.cameras is not None and camera not in product.cameras:
                    raise ValueError(f"{key}.camera.{camera}: {key}.cameras does not name it")
            for camera, table in self.camera.items():
                self._product_fits(key, product.of(camera), camera, table)
        if not self.product and (self.changeover.mqtt is not None or self.changeover.modbus is not None):
            raise ValueError("changeover: there is nothing to change over to: write a table [product.<name>]")
        if self.changeover.start is not None and self.changeover.start not in self.product:
            known = ", ".join(self.product) or "there is none"
            raise ValueError(
                f"changeover.start = {self.changeover.start!r} has no table [product.{self.changeover.start}]; "
                f"known: {known}"
            )
        return self

    def _product_fits(self, key: str, view: ProductView, camera: str, table: CameraSettings) -> None:
        has = table.controls if isinstance(table, DeviceCamera) else {}
        for control in view.controls:
            if control not in has:
                raise ValueError(
                    f"{key}.controls.{control}: camera.{camera} must set controls.{control} as well, for the products "
                    "that do not; only a camera of the kind v4l2 has controls"
                )
        for name, rule in view.allow.items():
            if rule.in_mm2 is not None and table.calibration is None:
                raise ValueError(
                    f"{key}.allow.{name}.{rule.in_mm2}: camera.{camera} names no calibration, so a pixel of it has no "
                    f"size in mm; name a folder in camera.{camera}.calibration and let `station calibrate scale` write "
                    f"it, or give {key}.camera.{camera} an `allow` of its own, without mm²"
                )
        size = table.known_size_px()
        for name, region in view.regions():
            if size is not None and (fault := region.not_held(f"{key}.{name}", *size)):
                raise ValueError(f"camera.{camera}: {fault}")


def load(path: Path, environment: Mapping[str, str] = os.environ) -> Settings:
    """Read and check a configuration file; relative paths in it are relative to the file.

    Raises:
        ConfigurationError: with one line per error: file, key, value found, what is allowed.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigurationError(f"{path}: cannot be read: {exc.strerror}; `station init` writes one") from exc
    except UnicodeDecodeError as exc:
        raise ConfigurationError(f"{path}: is not UTF-8 text: {exc.reason} at byte {exc.start}") from exc
    except tomllib.TOMLDecodeError as exc:
        raise ConfigurationError(f"{path}: is not TOML: {exc}") from exc
    return from_document(document, str(path), path.resolve().parent, environment)


def shown_address(url: str) -> str:
    """A network camera's address without user, password and query, which may hold secrets."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


@contextmanager
def blamed_on(path: Path) -> Iterator[None]:
    """Let errors that come to light only when a configuration is put to use name its file as well."""
    try:
        yield
    except ConfigurationError as exc:
        raise ConfigurationError(f"{path}: {exc}") from exc


def from_document(
    document: Mapping[str, Any], origin: str, folder: Path, environment: Mapping[str, str] = os.environ
) -> Settings:
    """Check a configuration that is already parsed.

    Args:
        document: the tables as `tomllib` gives them.
        origin: the file's name for error texts.
        folder: what relative paths are relative to.
        environment: variables whose names begin with ``STATION_`` override keys.

    Raises:
        ConfigurationError: as for `load`.
    """
    merged = _with_environment(document, environment)
    try:
        settings = Settings.model_validate(merged)
    except ValidationError as exc:
        raise ConfigurationError("\n".join(_explain(exc, origin))) from None
    return _absolute(settings, folder)


def _with_environment(document: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    merged = _copy(document)
    for variable in sorted(environment):
        path = variable.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
        # A single word is not a key: service managers and shells have variables of their own with this prefix.
        if not variable.startswith(ENVIRONMENT_PREFIX) or len(path) < 2:  # noqa: PLR2004
            continue
        table = merged
        for level in path[:-1]:
            below = table.setdefault(level, {})
            if not isinstance(below, dict):
                raise ConfigurationError(f"environment: {variable}: {level} is a value, not a table")
            table = below
        table[path[-1]] = _environment_value(environment[variable])
    return merged


def _copy(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in table.items()}


def _environment_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


_SECRET_KEYS = frozenset({"password", "url"})


def _explain(error: ValidationError, origin: str) -> list[str]:
    lines = []
    for item in error.errors(include_url=False):
        # The discriminator of a union stands in the location as a level of its own; it is no key of the file.
        location = [str(level) for level in item["loc"]]
        if len(location) > 2 and location[0] in ("camera", "sensors", "alert", "reject"):  # noqa: PLR2004
            location = location[:2] + location[3:]
        if location[:2] == ["changeover", "modbus"]:
            location = location[:2] + location[3:]
        if location[2:3] == ["part_id"]:
            location = location[:3] + location[4:]
        key = ".".join(location)
        found = item["input"]
        shown = "" if isinstance(found, Mapping) else f" = {found!r}"
        if location and location[-1] in _SECRET_KEYS:
            shown = " = ********"
        lines.append(f"{origin}: {key or 'file'}{shown}: {_allowed(item)}")
    return lines


def _allowed(item: Any) -> str:
    match item["type"]:
        case "is_instance_of" if item["ctx"]["class"] == "Path":
            return "must be a path, written as a string in quotes"
        case "too_short" if item["loc"] == ("camera",):
            return "at least one table [camera.<name>] is needed"
        case "string_pattern_mismatch" if item["loc"][-1] == "[key]":
            return "a name has letters, digits, _ and -, begins with a letter or digit, and is at most 63 long"
        case "extra_forbidden":
            return "unknown key; `station schema settings` lists the keys"
        case "missing":
            return "is missing"
        case "too_short" if item["loc"][0] == "process":
            return "at least one table [process.<group>.channel.<name>] is needed"
        case "union_tag_not_found":
            return f"kind is missing; allowed: {', '.join(_kinds(item['loc']))}"
        case "union_tag_invalid":
            return f"kind = {item['ctx']['tag']!r} is not known; allowed: {item['ctx']['expected_tags']}"
        case _:
            text = str(item["msg"])
            return text.removeprefix("Value error, ")


def _kinds(location: Sequence[int | str]) -> list[str]:
    tables = {
        "sensors": SensorSettings,
        "alert": AlertSettings,
        "reject": RejectSettings,
        "changeover": ModbusOrders,
    }
    union = tables.get(str(location[0]), CameraSettings)
    if location[-1] == "part_id":
        union = PartIdSettings
    return [one for kind in get_args(get_args(union)[0]) for one in get_args(kind.model_fields["kind"].annotation)]


S = TypeVar("S", bound=Section)

_PATH_KEYS = {
    "station": ("data_dir",),
    "broker": ("password_file",),
    "model": ("bundle",),
    "bundles": ("key_file",),
    "tls": ("ca_file", "certificate_file", "key_file"),
    "camera": ("bundle", "reference", "calibration", "path", "list_file"),
    "sensors": ("path", "password_file", "certificate_file", "key_file", "server_certificate_file"),
    "process": ("bundle",),
    "product": ("bundle", "reference"),
}


def _absolute(settings: Settings, folder: Path) -> Settings:
    def fix(section: S, keys: tuple[str, ...]) -> S:
        given = {key: getattr(section, key, None) for key in keys}
        return section.model_copy(
            update={key: folder / value for key, value in given.items() if isinstance(value, Path)}
        )

    def fix_broker(broker: BrokerSettings) -> BrokerSettings:
        fixed = fix(broker, _PATH_KEYS["broker"])
        return fixed.model_copy(update={"tls": fix(fixed.tls, _PATH_KEYS["tls"])}) if fixed.tls else fixed

    def fix_source(source: SensorSettings) -> SensorSettings:
        fixed = fix(source, _PATH_KEYS["sensors"])
        if isinstance(fixed, MqttSensors) and fixed.broker is not None:
            return fixed.model_copy(update={"broker": fix_broker(fixed.broker)})
        return fixed

    def fix_camera(camera: CameraSettings) -> CameraSettings:
        fixed = fix(camera, _PATH_KEYS["camera"])
        ids = fixed.part_id
        if isinstance(ids, MqttPartId) and ids.broker is not None:
            return fixed.model_copy(update={"part_id": ids.model_copy(update={"broker": fix_broker(ids.broker)})})
        return fixed

    def fix_changeover(changeover: ChangeoverSettings) -> ChangeoverSettings:
        orders = changeover.mqtt
        if orders is None or orders.broker is None:
            return changeover
        fixed = orders.model_copy(update={"broker": fix_broker(orders.broker)})
        return changeover.model_copy(update={"mqtt": fixed})

    def fix_product(product: ProductSettings) -> ProductSettings:
        keys = _PATH_KEYS["product"]
        views = {camera: fix(view, keys) for camera, view in product.camera.items()}
        return fix(product, keys).model_copy(update={"camera": views})

    return settings.model_copy(
        update={
            "station": fix(settings.station, _PATH_KEYS["station"]),
            "broker": fix_broker(settings.broker),
            "model": fix(settings.model, _PATH_KEYS["model"]),
            "bundles": fix(settings.bundles, _PATH_KEYS["bundles"]),
            "trust": settings.trust.model_copy(update={"keys": tuple(folder / one for one in settings.trust.keys)}),
            "camera": {name: fix_camera(camera) for name, camera in settings.camera.items()},
            "sensors": {name: fix_source(source) for name, source in settings.sensors.items()},
            "process": {name: fix(group, _PATH_KEYS["process"]) for name, group in settings.process.items()},
            "changeover": fix_changeover(settings.changeover),
            "product": {name: fix_product(product) for name, product in settings.product.items()},
        }
    )
