"""A worker process: reads jobs from its parent, converts them and sends back the results.

It is a separate program and not a multiprocessing child, so the parent's state need not change:
`__main__` is not run again, there are no semaphores and no socket in TMPDIR, and daemonic processes
can start workers too. Messages are pickles on standard input and output:

    parent -> worker   ConversionSettings, then Jobs; at the end of the stream, the worker finishes
                       its current job and ends
    worker -> parent   WorkerReady, then (Job, list of Results) for each; a DynencError ends the run
"""

from __future__ import annotations

import os
import pickle
import queue
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from dynenc import runtime
from dynenc.batch.plan import Job
from dynenc.batch.settings import ConversionSettings
from dynenc.errors import DynencError

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
PACKAGE = Path(__file__).absolute().parents[1] / "__init__.py"
PREFETCH = 8  # files sent to a worker at once, so that it can write while it converts

# The program of a worker. Isolated mode (-I) drops the script's folder, the current folder and
# PYTHONPATH. The parent's sys.path is appended, except the current folder, where a stray torch.py
# would be run. dynenc is loaded from where the parent has it, even if that is the current folder.
START = """
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
import os, sysconfig
from importlib import util
package, entry, *parents_path = sys.argv[1:]
own = {os.path.realpath(path) for path in sysconfig.get_paths().values()}
try:
    here = os.path.realpath(os.getcwd())
except OSError:  # it has been removed
    here = ""
def is_safe(path):
    real = os.path.realpath(path)
    return os.path.isabs(path) and (real != here or real in own)
sys.path[:] = filter(is_safe, dict.fromkeys(sys.path + parents_path))
spec = util.spec_from_file_location("dynenc", package)
sys.modules["dynenc"] = module = util.module_from_spec(spec)
spec.loader.exec_module(module)
from dynenc.batch import worker
worker.enter(entry)
"""


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """The first message of a worker, once its networks can be loaded."""

    device: str  # type of a torch device
    window: int  # jobs that it takes at once
    note: str  # for the user


def command(entry: str) -> list[str]:
    """The command line of a worker process; `entry` is what `enter` takes."""
    from multiprocessing import spawn

    flags = ["-I", "-X", f"utf8={sys.flags.utf8_mode}"]  # file names are decoded as here
    if sys.dont_write_bytecode:
        flags.append("-B")
    python = os.fsdecode(spawn.get_executable())  # respects multiprocessing.set_executable
    return [python, *flags, "-c", START, str(PACKAGE), entry, *sys.path]


def environment() -> dict[str, str]:
    """The environment of a worker process: one thread for each library."""
    return {**os.environ, **dict.fromkeys(ONE_THREAD, "1")}


def enter(entry: str) -> None:
    """Run as a worker ("serve"), or import MODULE and fork workers ("fork:N:MODULE").

    Fork requests are read from file descriptor N.
    """
    if entry == "serve":
        serve()
    else:
        from dynenc.batch.forking import fork_on_request

        _, descriptor, module = entry.split(":")
        fork_on_request(int(descriptor), module)


def serve() -> None:
    """Answer jobs until the parent closes the stream, or dies."""
    received, answers = _streams()
    try:
        settings: ConversionSettings = pickle.load(received)
    except EOFError:  # the parent was interrupted
        return
    inbox: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
    stopped = threading.Event()

    def receive() -> None:
        try:
            while True:
                inbox.put(pickle.load(received))
        except (EOFError, OSError, pickle.UnpicklingError):
            stopped.set()
            inbox.put(None)

    threading.Thread(target=receive, daemon=True).start()
    try:
        with runtime.tuned_process(settings.run.threads):
            _convert_jobs(settings, inbox, stopped, answers)
    except DynencError as exc:
        send(answers, exc)
    except BrokenPipeError:  # the parent has died
        pass


def _streams() -> tuple[IO[bytes], IO[bytes]]:
    """The message streams; output printed by libraries is redirected to standard error."""
    received, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    try:
        os.dup2(2, 1)
    except OSError:  # standard error is closed
        os.dup2(nothing, 1)
    return received, answers


def _convert_jobs(
    settings: ConversionSettings,
    inbox: queue.SimpleQueue[Job | None],
    stopped: threading.Event,
    answers: IO[bytes],
) -> None:
    from dynenc.batch.converter import Converter

    converter = Converter(settings)
    window = max(PREFETCH, converter.window)
    send(answers, WorkerReady(converter.device, window, converter.note))
    while (job := inbox.get()) is not None:
        jobs = [job]
        while len(jobs) < window and not inbox.empty():
            if (job := inbox.get()) is not None:
                jobs.append(job)
        for answer in converter.run(jobs):
            send(answers, answer)
            if stopped.is_set():
                return


def send(stream: IO[bytes], message: Any) -> None:
    """Write one message."""
    stream.write(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))
    stream.flush()
