"""All errors that dynenc raises on purpose, with the exit codes of the command.

DynencError             1   base class (also: some of several files failed)
├── UsageError          2 * an argument is invalid
├── ImageError          3 * the image cannot be read
├── BitstreamError      4 * the .lat file cannot be read
│   ├── NotALatFile         it does not start with the magic bytes of a .lat file
│   ├── UnsupportedVersion  written by a newer dynenc
│   ├── UnknownModel        needs an entropy coder or encoder that this dynenc does not have
│   ├── OtherLatents        the chosen decoder cannot read its latents
│   ├── MissingFormat       part of it needs an image format that this Pillow lacks
│   ├── TooLarge            more pixels than the limit
│   └── Corrupt             damaged, truncated, or inconsistent
├── WeightsError        5 * weights are missing, altered, or not for these latents
├── OutputExists        6   the output exists and must not be overwritten
├── OutputError         7   the output cannot be written
│   └── DiskFull            no space left, or read-only: every other output would fail too
├── DeviceError         8 * no such device
├── EngineError         9   the cluster cannot be reached, or a package for it is missing
├── LatentsError       10 * a file of latents cannot be imported
├── OutOfMemory        11   not enough memory
├── TargetMissed       12   no file meets the target, and `strict` is set
└── UnexpectedError     1   a bug in the conversion of one of several files

Those marked * are caused by the value of an argument, and are also `ValueError`s.
`ImageWarning`, a Python warning, says what is lost of an image that is otherwise processed.
"""


class ImageWarning(UserWarning):
    """Part of an image cannot be kept and is dropped; the rest is processed."""


class DynencError(Exception):
    """Base class of all errors that dynenc raises on purpose.

    Args:
        message: one sentence that says what is wrong, without a full stop at the end.
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


def first_line(exc: BaseException) -> str:
    """The first line of an exception's message, or the name of its type if it has none."""
    return (str(exc).strip() or type(exc).__name__).splitlines()[0]


def with_name(error: DynencError, name: str) -> DynencError:
    """The error with the name of its file in the message, unless it is already there."""
    if name in str(error) or isinstance(error, UnexpectedError):
        return error
    return type(error)(f"{name}: {error}", hint=error.hint)


class UsageError(DynencError, ValueError):
    """An argument is invalid."""

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
    """The file needs an entropy coder or encoder that this dynenc does not have."""


class OtherLatents(BitstreamError):
    """The chosen decoder cannot read the latents of the file."""


class MissingFormat(BitstreamError):
    """Part of the file needs an image format that this Pillow cannot read."""


class TooLarge(BitstreamError):
    """The file declares more pixels than the limit."""


class Corrupt(BitstreamError):
    """The file is damaged, truncated, or inconsistent."""


class WeightsError(DynencError, ValueError):
    """Weights are missing, altered, or not for these latents."""

    exit_code = 5


class OutputExists(DynencError):
    """The output exists and must not be overwritten."""

    exit_code = 6


class OutputError(DynencError):
    """The output cannot be written."""

    exit_code = 7


class DiskFull(OutputError):
    """No space is left, or the disk is read-only: every other output would fail too."""


class DeviceError(DynencError, ValueError):
    """The device does not exist."""

    exit_code = 8


class EngineError(DynencError):
    """The cluster cannot be reached, or a package that it needs is not installed."""

    exit_code = 9


class LatentsError(DynencError, ValueError):
    """A file of latents cannot be imported: unreadable, or not latents of a known space."""

    exit_code = 10


class OutOfMemory(DynencError):
    """There is not enough memory."""

    exit_code = 11


class TargetMissed(DynencError):
    """No quantiser step meets the target, and `strict` is set."""

    exit_code = 12


class UnexpectedError(DynencError):
    """A bug: an unexpected exception while one of several files was converted.

    Args:
        traceback: of that exception, as text, since it may come from another process.
    """

    def __init__(self, message: str = "", *, traceback: str = "") -> None:
        super().__init__(message, hint="--verbose shows where; please report it")
        self.traceback = traceback
