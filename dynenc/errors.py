"""Every error that dynenc raises on purpose, and the exit code that the command ends with.

DynencError             1   base class (also: some of several files failed)
├── UsageError          2 * an argument has a value that makes no sense
├── ImageError          3 * the image cannot be read
├── BitstreamError      4 * the .lat file cannot be read
│   ├── NotALatFile         it does not start with the magic bytes of a .lat file
│   ├── UnsupportedVersion  written by a newer dynenc
│   ├── UnknownModel        names an entropy coder or encoder that this dynenc does not have
│   ├── OtherLatents        its latents are not those that the chosen decoder reads
│   ├── MissingFormat       a part of it is of an image format that Pillow lacks here
│   ├── TooLarge            more pixels than the limit
│   └── Corrupt             damaged, truncated, or inconsistent
├── WeightsError        5 * weights are missing, altered, or not for these latents
├── OutputExists        6   the output exists and is not to be overwritten
├── OutputError         7   the output cannot be written
│   └── DiskFull            no space left, or read-only: no other output could be written either
├── DeviceError         8 * no such device
├── EngineError         9   the cluster cannot be reached, or a package for it is missing
├── LatentsError       10 * a file of latents cannot be imported
├── OutOfMemory        11   not enough memory
├── TargetMissed       12   no file meets the target, and `strict` was asked for
└── UnexpectedError     1   a bug in the conversion of one of several files

Those marked * are caused by the value of an argument, and are also `ValueError`s.
`PictureWarning`, a Python warning, names what is lost of an image that is otherwise processed.
"""


class PictureWarning(UserWarning):
    """Part of an image cannot be kept and is left out; the rest is processed."""


class DynencError(Exception):
    """Base class of all errors that a user can cause and fix.

    Args:
        message: one sentence that says what is wrong with what; it does not end with a full stop.
        hint: what to do about it on the command line, in a few words. The command prints it after
            the message; `str()` of the error leaves it out.
    """

    exit_code = 1

    def __init__(self, message: str = "", *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    @property
    def sentence(self) -> str:
        """The message and the hint, as the command prints them."""
        return f"{self}: {self.hint}" if self.hint else str(self)


def named(error: DynencError, name: str) -> DynencError:
    """An error with the name of the file that it is about, unless its message has that."""
    if name in str(error) or isinstance(error, UnexpectedError):
        return error
    return type(error)(f"{name}: {error}", hint=error.hint)


class UsageError(DynencError, ValueError):
    """An argument has a value that makes no sense."""

    exit_code = 2


class ImageError(DynencError, ValueError):
    """The image cannot be read."""

    exit_code = 3


class BitstreamError(DynencError, ValueError):
    """The .lat file cannot be read."""

    exit_code = 4


class NotALatFile(BitstreamError):
    """The file does not start with the magic bytes of a .lat file."""


class UnsupportedVersion(BitstreamError):
    """The file was written by a newer dynenc."""


class UnknownModel(BitstreamError):
    """The file names an entropy coder or encoder that this dynenc does not have."""


class OtherLatents(BitstreamError):
    """The latents of the file are not those that the chosen decoder reads."""


class MissingFormat(BitstreamError):
    """A part of the file is of an image format that Pillow cannot read here."""


class TooLarge(BitstreamError):
    """The file declares more pixels than the limit."""


class Corrupt(BitstreamError):
    """The file is damaged, truncated, or inconsistent."""


class WeightsError(DynencError, ValueError):
    """Weights are missing, altered, or not for these latents."""

    exit_code = 5


class OutputExists(DynencError):
    """The output exists and is not to be overwritten."""

    exit_code = 6


class OutputError(DynencError):
    """The output cannot be written."""

    exit_code = 7


class DiskFull(OutputError):
    """No space is left, or the disk is read-only: no other output could be written either."""


class DeviceError(DynencError, ValueError):
    """There is no such device."""

    exit_code = 8


class EngineError(DynencError):
    """The cluster cannot be reached, or a package that it needs is not installed."""

    exit_code = 9


class LatentsError(DynencError, ValueError):
    """A file of latents cannot be imported: unreadable, or not latents of a known space."""

    exit_code = 10


class OutOfMemory(DynencError):
    """There is not enough memory for what was asked."""

    exit_code = 11


class TargetMissed(DynencError):
    """No quantiser step meets the target, and it was to be met strictly."""

    exit_code = 12


class UnexpectedError(DynencError):
    """A bug: an exception that nobody expected, in the conversion of one of several files.

    Args:
        traceback: of that exception, as text, since it may come from another process.
    """

    def __init__(self, message: str = "", *, traceback: str = "") -> None:
        super().__init__(message, hint="--verbose shows where; please report it")
        self.traceback = traceback
