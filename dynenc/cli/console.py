"""The terminal: results on stdout, messages on stderr, errors as one line and an exit code."""

import codecs
import gc
import io
import logging
import os
import signal
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import typer

from dynenc import runtime
from dynenc.errors import DiskFull, DynencError, OutputError, UsageError

OBJECTS_AT_START = 200_000  # more objects than a command creates before it starts to work
INTERRUPTED = 130  # exit code after Ctrl-C or SIGTERM
STDOUT_ERRORS = "dynenc.names"  # codec error handler of `_encode_name`
BIDI_CONTROLS = {*map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A))}


def quoted(text: str) -> str:
    """Text with control characters and the like escaped, so that it cannot act on a terminal.

    File names are untrusted: they may contain escape sequences, line breaks, characters that
    reverse the writing direction, and bytes that are not UTF-8.
    """
    return "".join(_escape(char) if _is_unsafe(char) else char for char in text)


def _is_unsafe(char: str) -> bool:
    return unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") or char in BIDI_CONTROLS


def _escape(char: str) -> str:
    if "\udc80" <= char <= "\udcff":  # a byte of a name that is not UTF-8
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")


def _encode_name(error: UnicodeError) -> tuple[str | bytes, int]:
    """Codec error handler: pass undecodable bytes of file names through, escape the rest."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    encoded = b""
    for char in error.object[error.start : error.end]:
        if "\udc80" <= char <= "\udcff":
            encoded += bytes([ord(char) - 0xDC00])
        else:
            encoded += _escape(char).encode("ascii")
    return encoded, error.end


def print_result(*lines: str, to_stderr: bool = False) -> None:
    """Print result lines on stdout: `quoted` on a terminal, otherwise verbatim for programs.

    Args:
        to_stderr: print them as messages, because stdout receives the output.
    Raises: OutputError if stdout is closed or cannot be written.
    """
    if to_stderr:
        for line in lines:
            print_message(line)
        return
    if sys.stdout is None:
        raise OutputError("standard output is closed")
    is_terminal = sys.stdout.isatty()
    for line in lines:
        sys.stdout.write((quoted(line) if is_terminal else line) + "\n")
    sys.stdout.flush()


def print_message(message: str) -> None:
    """Print a message on stderr, on one line whatever names it contains."""
    if sys.stderr is not None:
        with suppress(OSError):  # stderr cannot be written
            sys.stderr.write(quoted(message) + "\n")
            sys.stderr.flush()


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """The record on one line; tracebacks keep their lines."""
        first, *traceback = super().format(record).split("\nTraceback", 1)
        return "\nTraceback".join([f"dynenc: {quoted(first)}", *traceback])


@contextmanager
def session(*, quiet: bool = False, verbose: bool = False) -> Iterator[None]:
    """Run a command: show the library's log; turn expected errors into one line and an exit code.

    Bugs keep their traceback. SIGTERM acts like Ctrl-C, so that nothing half-written is left.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter())
    logger = logging.getLogger("dynenc")
    logger.setLevel(logging.ERROR if quiet else logging.DEBUG if verbose else logging.INFO)
    logger.addHandler(handler)
    try:
        if quiet and verbose:
            raise UsageError("--quiet and --verbose cannot be combined", hint="choose one")
        with runtime.tuned_process():
            yield
    except DynencError as exc:
        print_message(f"dynenc: {exc.sentence}")
        raise typer.Exit(exc.exit_code) from exc
    except KeyboardInterrupt:
        print_message("dynenc: interrupted; run the same command again to continue")
        raise typer.Exit(INTERRUPTED) from None
    finally:
        logger.removeHandler(handler)
        signal.signal(signal.SIGTERM, before)


@contextmanager
def deferred_gc() -> Iterator[None]:
    """A context that delays the first garbage collections, which take an eighth of the start-up."""
    before = gc.get_threshold()

    def restore(*_: object) -> None:
        gc.set_threshold(*before)
        with suppress(ValueError):
            gc.callbacks.remove(restore)

    gc.set_threshold(OBJECTS_AT_START)
    gc.callbacks.append(restore)
    try:
        yield
    finally:
        restore()


class _Stdout(io.TextIOWrapper):
    """Standard output that raises errors of dynenc; a closed pipe is left to Typer."""

    def write(self, text: str) -> int:
        """Write; raises OutputError."""
        with _translated():
            return super().write(text)

    def flush(self) -> None:
        """Flush; raises OutputError."""
        with _translated():
            super().flush()


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as exc:
        raise DiskFull(f"standard output cannot be written: {exc.strerror or exc}") from exc


@contextmanager
def guarded_stdout() -> Iterator[None]:
    """A context in which stdout raises OutputError, and can print any file name.

    Characters that the encoding of stdout lacks are escaped; undecodable bytes pass through.
    """
    plain = sys.stdout
    if not isinstance(plain, io.TextIOWrapper):  # closed, or a host program's own
        yield
        return
    codecs.register_error(STDOUT_ERRORS, _encode_name)
    plain.flush()
    sys.stdout = guarded = _Stdout(
        plain.buffer,
        plain.encoding,
        STDOUT_ERRORS,
        line_buffering=plain.line_buffering,
        write_through=plain.write_through,
    )
    try:
        yield
    finally:
        sys.stdout = plain
        try:
            guarded.detach()  # flushes
        except (OSError, OutputError):  # reported before; Python would report it again on exit
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), plain.fileno())


def occupy_standard_streams() -> None:
    """Open /dev/null in place of closed standard streams.

    Otherwise the next opened file would become stdout or stderr, and receive what libraries print.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor
