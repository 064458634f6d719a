"""What a user can cause, as a tree.

CompressError            shown as one line, exit code 1
├── ParamsError          a setting is missing, unknown or out of range
├── DataError            images or their folders cannot be used
├── ModelError           a network or checkpoint cannot be used, or does not fit the data
├── ArtifactError        a file of an earlier stage is missing, damaged or stale
├── DeviceError          the device asked for is not there
├── TrainingError        training cannot go on
├── ParityError          the exported file does not compute what the network computes
├── SelectionError       no student satisfies the constraints
├── ServeError           the server cannot start, or could not end well (compress.serve.errors)
└── TrackingError        the tracking server or registry refuses a request a person made

Wrong calls raise ValueError or TypeError; broken invariants of our own fail an assert.
"""


class CompressError(Exception):
    """Something a user can put right; the message says what is wrong and what to do."""


class ParamsError(CompressError):
    """A setting is missing, unknown or out of range."""


class DataError(CompressError):
    """Images or their folders cannot be used."""


class ModelError(CompressError):
    """A network or checkpoint cannot be used, or does not fit the data."""


class ArtifactError(CompressError):
    """A file that an earlier stage wrote is missing, damaged or stale."""


class DeviceError(CompressError):
    """The device asked for is not there."""


class TrainingError(CompressError):
    """Training cannot go on."""


class ParityError(CompressError):
    """The exported file does not compute what the network computes."""


class SelectionError(CompressError):
    """No student satisfies the constraints."""


class TrackingError(CompressError):
    """The tracking server or registry refuses a request a person made."""
