"""Every exception that the station raises on purpose.

::

    StationError
    ├── ConfigurationError        a setting is wrong; the process exits 78 (EX_CONFIG)
    ├── DeviceError
    │   ├── CameraError           transient: the camera is closed and opened again with back-off
    │   ├── SensorError           transient: a source of readings is away; it is tried again with back-off
    │   ├── OutputError           transient: a reject output's device is away; it is connected to anew with back-off
    │   │   └── OutputRefused     the device answers, and does not do what it is told
    │   └── EndOfStream           not a fault: the source has no more pictures
    ├── CalibrationError          a calibration cannot be made, read or written; nothing has changed
    ├── AlarmRefused              an alarm's state does not allow what was asked for; nothing has changed
    ├── LogError                  a sensor log cannot be read: file, line and column are named; fatal for that log
    ├── ProtocolError             a peer said something that is not the protocol, or refused us; transient
    │   └── LoginRefused          the broker refused the credentials
    ├── NotRunning                no station runs that could be told something
    ├── NotAnswered               a running station was told something and gave no answer
    ├── StorageError              the disk: full, read-only, failing; transient
    │   ├── JournalCorrupt        the journal is not a database any more; it is set aside, never deleted
    │   └── JournalInUse          another station keeps this journal; a second one must not start
    └── ModelError
        ├── BundleError           a bundle is missing, cut short, altered or of the wrong kind; fatal for that bundle
        ├── BundleLocked          a bundle is encrypted, and the key is missing or another one; nothing is wrong with it
        ├── GoldenMismatch        the deployed path does not give the scores that were validated; fatal for that bundle
        └── InferenceError        one picture could not be judged; the frame is `unknown`

An adapter translates its vendor's exceptions into these once, at its edge, with ``raise … from exc``.
"""


class StationError(Exception):
    """Base of every deliberate error; its text is one line that says what to do."""


class ConfigurationError(StationError):
    """A setting is wrong: the text names the file, the key, the value found and what is allowed."""


class CalibrationError(StationError):
    """A calibration cannot be made, read or written; the text names the file and says what to do."""


class AlarmRefused(StationError):
    """An alarm cannot do what was asked for; the text says what it can do."""


class DeviceError(StationError):
    """A device does not do what it should."""


class CameraError(DeviceError):
    """A camera cannot be opened or read now; opening it again may help."""


class SensorError(DeviceError):
    """A source of readings cannot be reached or does not answer as it should; trying again may help."""


class OutputError(DeviceError):
    """The device of a reject output cannot be reached or does not answer; trying again may help."""


class OutputRefused(OutputError):
    """The device of a reject output answers with a refusal."""


class EndOfStream(DeviceError):
    """A video file or a folder read once has no more pictures."""


class LogError(StationError):
    """A sensor log is not a table of times and numbers: the text names the file, the line and the column."""


class NotRunning(StationError):
    """No station runs on this data folder."""


class NotAnswered(StationError):
    """A running station did not answer; the text says whether it may still act."""


class ProtocolError(StationError):
    """A peer refused the connection or broke the protocol."""


class LoginRefused(ProtocolError):
    """The broker refused the user name, the password or the certificate."""


class StorageError(StationError):
    """The disk refused a write."""


class JournalCorrupt(StorageError):
    """The journal file cannot be read as a journal."""


class JournalInUse(StorageError):
    """Another process keeps this journal."""


class ModelError(StationError):
    """A model cannot be used."""


class BundleError(ModelError):
    """A bundle is missing, incomplete, altered, or not for this task."""


class BundleLocked(ModelError):
    """A bundle is encrypted with a key that is not here."""


class GoldenMismatch(ModelError):
    """A golden input gave another outcome or other scores than the bundle promises."""


class InferenceError(ModelError):
    """The model could not judge one picture."""
