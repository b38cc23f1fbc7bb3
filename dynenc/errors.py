"""Everything dynenc raises on purpose, and the exit code of the command.

DynencError             1   (also: some files of a batch failed)
├── UsageError          2   an option's value makes no sense
├── ImageError          3   the picture cannot be read
├── BitstreamError      4   the .lat file cannot be read
│   ├── NotALatFile         its first bytes are not those of a .lat file
│   ├── UnsupportedVersion  written by a newer dynenc
│   ├── UnknownModel        names a coder or encoder that this dynenc does not have
│   ├── OtherLatents        holds latents that the decoder asked for cannot read
│   ├── TooLarge            more pixels than the limit
│   └── Corrupt             damaged, cut short, or contradicting itself
├── WeightsError        5   weights are missing, altered, or not for these latents
├── OutputExists        6   refused to overwrite; --force allows it
├── OutputError         7   the output cannot be written
│   └── DiskFull            no space, or read-only: no other output could be written either
├── DeviceError         8   the device is not there
├── EngineError         9   the cluster is not there, or what it needs is not installed
├── LatentsError       10   a file of latents cannot be read, or they are not of SD 1.x
└── OutOfMemory        11   the memory does not suffice for what was asked

PictureWarning, a warning of Python's, tells what of a picture is lost without failing.
"""


class PictureWarning(UserWarning):
    """Something of a picture cannot be kept and is left out; the rest is done."""


class DynencError(Exception):
    """Base of all errors that a user can cause and mend; its text is one sentence."""

    exit_code = 1


class UsageError(DynencError):
    """An option's value makes no sense."""

    exit_code = 2


class ImageError(DynencError):
    """The picture cannot be read."""

    exit_code = 3


class BitstreamError(DynencError):
    """The .lat file cannot be read."""

    exit_code = 4


class NotALatFile(BitstreamError):
    """The first bytes are not those of a .lat file."""


class UnsupportedVersion(BitstreamError):
    """The file was written by a newer dynenc."""


class UnknownModel(BitstreamError):
    """The file names a coder or encoder that this dynenc does not have."""


class OtherLatents(BitstreamError):
    """The file holds latents that the decoder asked for cannot read."""


class TooLarge(BitstreamError):
    """The file declares more pixels than the limit."""


class Corrupt(BitstreamError):
    """The file is damaged, cut short, or contradicts itself."""


class WeightsError(DynencError):
    """Weights are missing, altered, or not for these latents."""

    exit_code = 5


class OutputExists(DynencError):
    """The output exists and overwriting was not asked for."""

    exit_code = 6


class OutputError(DynencError):
    """The output cannot be written."""

    exit_code = 7


class DiskFull(OutputError):
    """No space is left, or the disk is read-only: no other output could be written either."""


class DeviceError(DynencError):
    """The device that was asked for is not there."""

    exit_code = 8


class EngineError(DynencError):
    """The cluster is not there, or what it needs is not installed."""

    exit_code = 9


class LatentsError(DynencError):
    """A file of latents to import cannot be read, or they are not those of SD 1.x."""

    exit_code = 10


class OutOfMemory(DynencError):
    """The memory does not suffice for what was asked."""

    exit_code = 11
