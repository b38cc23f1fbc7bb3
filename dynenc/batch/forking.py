"""Start workers; where forking is safe, from a process that has already imported everything.

Importing torch takes seconds and some 150 MB. A template process imports it once, runs no network,
and forks workers that share its memory. On macOS and Windows each worker is started separately.
Requests, with the pipes of the worker, are sent over a socket pair.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import traceback
from importlib import import_module
from typing import IO

from dynenc.batch import worker

CAN_FORK = hasattr(os, "fork") and sys.platform != "darwin"
NUMBER = struct.Struct("<q")  # request: 0 to fork, else a process id to get the exit code of
RUNNING = 2**32  # in place of an exit code
POLL = 0.01  # s


class ForkedWorker:
    """A forked worker, with the part of `subprocess.Popen` that is needed."""

    def __init__(
        self, factory: WorkerFactory, pid: int, stdin: IO[bytes], stdout: IO[bytes]
    ) -> None:
        self.factory, self.pid, self.stdin, self.stdout = factory, pid, stdin, stdout

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, negative for a signal. Raises: subprocess.TimeoutExpired."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.factory.exit_code(self.pid)) == RUNNING:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("worker", timeout or 0)
            time.sleep(POLL)
        return code

    def kill(self) -> None:
        """Kill it."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


Process = subprocess.Popen[bytes] | ForkedWorker


class WorkerFactory:
    """Starts workers. Not thread-safe.

    Args:
        needs_torch: whether the workers need torch.
    """

    def __init__(self, *, needs_torch: bool) -> None:
        self.preload = "dynenc.backend" if needs_torch else "dynenc.batch.converter"
        self.template: subprocess.Popen[bytes] | None = None
        self.control: socket.socket | None = None

    def start(self) -> Process:
        """Start a worker.

        Raises: OSError, also in a frozen application, which has no Python interpreter to start.
        """
        if getattr(sys, "frozen", False):
            raise OSError("a frozen application has no Python interpreter")
        if CAN_FORK:
            return self._fork()
        return subprocess.Popen(
            worker.command("serve"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=worker.environment(),
        )

    def _fork(self) -> ForkedWorker:
        if self.control is None:
            self._start_template()
        assert self.control
        jobs, to_worker = os.pipe()
        from_worker, answers = os.pipe()
        try:
            socket.send_fds(self.control, [NUMBER.pack(0)], [jobs, answers])
            pid = self._answer()
        except BaseException:  # also Ctrl-C
            os.close(to_worker)
            os.close(from_worker)
            raise
        finally:
            os.close(jobs)
            os.close(answers)
        return ForkedWorker(self, pid, os.fdopen(to_worker, "wb"), os.fdopen(from_worker, "rb"))

    def _start_template(self) -> None:
        self.control, theirs = socket.socketpair()
        with theirs:
            self.template = subprocess.Popen(
                worker.command(f"fork:{theirs.fileno()}:{self.preload}"),
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=worker.environment(),
            )

    def _answer(self) -> int:
        assert self.control
        answer = self.control.recv(NUMBER.size, socket.MSG_WAITALL)
        if len(answer) < NUMBER.size:
            raise OSError("the process that forks workers has ended")
        return int(NUMBER.unpack(answer)[0])

    def exit_code(self, pid: int) -> int:
        """The exit code of a forked worker, or RUNNING."""
        assert self.control
        try:
            self.control.sendall(NUMBER.pack(pid))
            return self._answer()
        except OSError:  # the template is dead, and its workers are not our children
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            return -signal.SIGKILL

    def close(self) -> None:
        """Stop the template; workers end on their own."""
        if self.control:
            self.control.close()
        if self.template:
            self.template.wait()


def fork_on_request(descriptor: int, module: str) -> None:
    """Main loop of the template process: fork workers until the parent closes the socket."""
    import_module("dynenc.batch.converter")
    import_module(module)
    gc.freeze()  # the garbage collector would write to shared pages
    with socket.socket(fileno=descriptor) as control:
        while True:
            message, pipes, _, _ = socket.recv_fds(control, NUMBER.size, 2)
            if len(message) < NUMBER.size:
                return
            (pid,) = NUMBER.unpack(message)
            answer = _fork(control, *pipes) if pid == 0 else _exit_code(pid)
            try:
                control.sendall(NUMBER.pack(answer))
            except BrokenPipeError:  # the parent has closed the socket without waiting
                return


def _fork(control: socket.socket, jobs: int, answers: int) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            control.close()
            for descriptor, standard in ((jobs, 0), (answers, 1)):
                os.dup2(descriptor, standard)
                os.close(descriptor)
            worker.serve()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(jobs)
    os.close(answers)
    return pid


def _exit_code(pid: int) -> int:
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else RUNNING
