"""The Ray engine: the same jobs on a cluster, as a Ray Data pipeline of actors.

Each actor holds the networks. Ray scales the number of actors with the load, and retries the files
of a lost node elsewhere. Outputs are written completely or not at all, and a retry overwrites them,
so nothing is lost or duplicated. File names must mean the same on every node.
"""

import logging
import os
import pickle
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from dynenc import runtime
from dynenc.batch.plan import Job
from dynenc.batch.results import Result
from dynenc.batch.settings import ConversionSettings
from dynenc.errors import DynencError, EngineError, first_line
from dynenc.latent_space import ceil_div

BLOCK = 64  # most jobs handed out at a time; a lost node loses at most one block
CPUS = 1  # per actor
CONNECT = 5.0  # s

logger = logging.getLogger(__name__)


class Actor:
    """Converts batches of jobs, pickled because Arrow strings must be valid UTF-8."""

    def __init__(self, settings: ConversionSettings) -> None:
        here = os.path.realpath(Path.cwd())  # must not be importable: a stray torch.py would run
        sys.path[:] = [path for path in sys.path if path and os.path.realpath(path) != here]
        from dynenc.batch.converter import Converter

        self.converter: Converter | None = None
        self.error: DynencError | None = None
        runtime.tuned_process(settings.run.threads).__enter__()  # until the actor ends
        try:
            self.converter = Converter(settings)
        except DynencError as exc:
            self.error = exc

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """{"job": pickled jobs} -> {"answer": their pickled results, or a DynencError}."""
        answers: list[bytes] = []
        if self.converter is None:
            return {"answer": [pickle.dumps(self.error)]}
        try:
            jobs = [pickle.loads(job) for job in batch["job"]]
            for _, results in self.converter.run(jobs):
                answers.append(pickle.dumps(results))
        except DynencError as exc:  # returned, because Ray would retry if it were raised
            answers.append(pickle.dumps(exc))
        return {"answer": answers}


def run(jobs: Sequence[Job], settings: ConversionSettings) -> Iterator[list[Result]]:
    """Convert on a Ray cluster; yield the results of each job as it ends, in any order.

    There are at most `settings.run.jobs` actors; None means one per CPU, or per GPU if that is the
    device. The cluster is at `settings.run.address`; None means the one this process is connected
    to, or a new one on this machine.
    Raises: EngineError if Ray is not installed, or the cluster cannot be reached or fails, and
        everything the local engine raises.
    """
    try:
        import ray
        from ray import data
    except ImportError as exc:
        raise EngineError("Ray is not installed: pip install 'dynenc[ray]'") from exc
    with _quiet(data.DataContext.get_current()):
        yield from _on_cluster(ray, data, jobs, settings)


@contextmanager
def _quiet(context: Any) -> Iterator[None]:
    """Silence Ray's own messages; its C++ core bypasses logging and reads the environment."""
    variable, messages = "RAY_BACKEND_LOG_LEVEL", logging.getLogger("ray.data")
    is_ours, level = variable not in os.environ, messages.level
    has_bars = context.enable_progress_bars
    os.environ.setdefault(variable, "fatal")
    messages.setLevel(logging.ERROR)
    context.enable_progress_bars = False
    try:
        yield
    finally:
        context.enable_progress_bars = has_bars
        messages.setLevel(level)
        if is_ours:
            os.environ.pop(variable, None)


def _on_cluster(
    ray: Any, data: Any, jobs: Sequence[Job], settings: ConversionSettings
) -> Iterator[list[Result]]:
    address = settings.run.address
    ours = not ray.is_initialized()
    try:
        if ours:
            _check_reachable(address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, OSError) as exc:
        where = address or "this machine"
        raise EngineError(f"no Ray cluster at {where}: {first_line(exc)}") from exc
    try:
        yield from _run(ray, data, jobs, settings)
    except (ray.exceptions.RayError, RuntimeError) as exc:
        reason = str(exc).strip().splitlines()[-1]
        raise EngineError(f"the Ray cluster failed: {reason}; run the command again") from exc
    finally:
        if ours:
            ray.shutdown()


def _for_actors(settings: ConversionSettings) -> ConversionSettings:
    """The settings of an actor: it overwrites outputs, which a lost node may have written."""
    output = replace(settings.output, existing="force")
    return replace(settings, output=output, run=replace(settings.run, threads=CPUS))


def _check_reachable(address: str | None) -> None:
    """Raise OSError at once if nothing listens at HOST:PORT; Ray would wait for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=CONNECT).close()


def _run(
    ray: Any, data: Any, jobs: Sequence[Job], settings: ConversionSettings
) -> Iterator[list[Result]]:
    there = ray.cluster_resources()
    gpu = settings.codec.device == "cuda" or (
        settings.codec.device == "auto" and there.get("GPU", 0) >= 1
    )
    most = settings.run.jobs or max(1, int(there.get("GPU" if gpu else "CPU", 1)))
    logger.info("ray: up to %d actors, one per %s", most, "GPU" if gpu else "CPU")
    window = max(1, min(BLOCK, len(jobs) // (4 * most)))
    rows = data.from_items(
        [{"job": pickle.dumps(job)} for job in jobs],
        override_num_blocks=ceil_div(len(jobs), window),
    )
    answers = rows.map_batches(
        Actor,
        fn_constructor_args=(_for_actors(settings),),
        batch_size=None,
        compute=data.ActorPoolStrategy(min_size=1, max_size=most),
        num_cpus=CPUS,
        num_gpus=1 if gpu else None,
    )
    for row in answers.iter_rows():
        answer = pickle.loads(row["answer"])
        if isinstance(answer, DynencError):
            raise answer
        yield answer
