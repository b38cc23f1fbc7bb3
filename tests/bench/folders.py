"""Folders converted by dynenc, by a loop of API calls, and to WebP by Pillow.

    python tests/bench folders IMAGES
    python tests/bench folders IMAGES --ray

They take turns on the same files, each in a process of its own, start and import included. Prints
images a second of wall-clock time, and seconds of CPU time an image, which depend less on what
else the machine does.

--ray measures the Ray engine instead: the same files on clusters of one and of two nodes with a CPU
each, which share this machine, against local workers. The clock starts when the cluster is up.
"""

import argparse
import contextlib
import ctypes
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ARMS = ("dynenc.convert", "API loop", "API loop, one thread", "WebP, two processes")
FOLDER = Path(__file__).parent  # of the benchmarks
RAY_ARMS = ("one worker", "two workers", "Ray, one node", "Ray, two nodes")


def webp(path: Path) -> None:
    """Pillow's WebP, method 4, as `cwebp -m 4`."""
    from PIL import Image

    from dynenc.evaluation.reference_codecs import REFERENCE_CODECS

    with Image.open(path) as image:
        data = REFERENCE_CODECS["webp"].encode(image.convert("RGB"), 50, method=4)
    (Path(os.environ["OUT"]) / f"{path.stem}.webp").write_bytes(data)


def work(arm: str, files: list[Path], encoder: str) -> None:
    """Convert all files in one of the ways of ARMS."""
    out = Path(os.environ["OUT"])
    if arm == ARMS[0]:
        import dynenc

        dynenc.convert("encode", files, out, encoder=encoder, device="cpu", jobs=2)
    elif arm == ARMS[3]:
        with multiprocessing.Pool(2) as pool:
            pool.map(webp, files, chunksize=4)
    else:
        import torch
        from PIL import Image

        import dynenc

        if "one thread" in arm:
            torch.set_num_threads(1)
        codec = dynenc.Codec(encoder, device="cpu")
        for path in files:
            (out / f"{path.stem}.lat").write_bytes(codec.encode(Image.open(path)))


def work_on_ray(arm: str, files: list[Path], encoder: str) -> float:
    """As `work`, for RAY_ARMS; seconds of the conversion."""
    import dynenc

    options = {"encoder": encoder, "device": "cpu"}
    out, count = os.environ["OUT"], 1 + RAY_ARMS.index(arm) % 2
    if not arm.startswith("Ray"):
        return dynenc.convert("encode", files, out, jobs=count, **options).seconds
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    if count == 2:
        cluster.add_node(num_cpus=1)
    options |= {"engine": "ray", "address": cluster.address}
    seconds = dynenc.convert("encode", files, out, **options).seconds
    cluster.shutdown()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--encoder", default="light")
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--arm", choices=ARMS + RAY_ARMS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    files = sorted(arguments.images.iterdir())[: arguments.count]
    if arguments.arm in RAY_ARMS:
        print(work_on_ray(arguments.arm, files, arguments.encoder))
        return
    if arguments.arm:
        work(arguments.arm, files, arguments.encoder)
        return
    ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: count the CPU of grandchildren, too
    arms = RAY_ARMS if arguments.ray else ARMS
    figures: dict[str, list[tuple[float, float]]] = {arm: [] for arm in arms}
    for _ in range(arguments.rounds):
        for arm in arms:
            with tempfile.TemporaryDirectory() as out:
                before = resource.getrusage(resource.RUSAGE_CHILDREN)
                start = time.perf_counter()
                command = [sys.executable, str(FOLDER), "folders", *sys.argv[1:], "--arm", arm]
                environment = {**os.environ, "OUT": out}
                done = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE)
                seconds = float(done.stdout or time.perf_counter() - start)
                with contextlib.suppress(ChildProcessError):
                    while True:
                        os.wait()
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                assert len(list(Path(out).iterdir())) == len(files)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            figures[arm].append((len(files) / seconds, cpu / len(files)))
    print("| | images/s | CPU an image |\n|---|---|---|")
    for arm, pairs in figures.items():
        rate, cpu = (statistics.median(values) for values in zip(*pairs, strict=True))
        print(f"| {arm} | {rate:.1f} | {1e3 * cpu:.1f} ms |")
