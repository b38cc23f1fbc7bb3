"""10,000 files, 100 of them broken in ten ways, in memory that does not grow."""

import os
import sys
from pathlib import Path

import pytest
from conftest import PHOTO
from PIL import Image

from dynenc import convert

pytestmark = pytest.mark.slow
N_IMAGES = 10_000


def broken(i, good):
    """The bytes of a file that is no image any more, in one of ten ways."""
    return (
        b"",
        b"no image",
        good[:20],
        good[: len(good) // 2],
        good[:8] + bytes(len(good) - 8),
        good[8:],
        b"\x89PNG\r\n\x1a\n" * 9,
        b"\xff\xd8\xff\xe0" + b"\x00" * 60,
        good[:16] + b"\xff\xff\xff\xff" * 2 + good[24:],  # four thousand million px wide
        None,  # a link that leads nowhere
    )[i % 10]


def resident(pid):
    """Memory of a process that is its own, in bytes."""
    fields = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    wanted = ("Private_Clean", "Private_Dirty")
    return sum(1024 * int(line.split()[1]) for line in fields if line.startswith(wanted))


def descendants(pid):
    """The child processes of a process, and theirs."""
    children = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        name, _, rest = path.read_text().rpartition(")")
        if int(rest.split()[1]) == pid:
            children.append(int(name.split()[0]))
    return [*children, *(each for child in children for each in descendants(child))]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ten_thousand_files(tmp_path):
    (images := tmp_path / "in").mkdir()
    photo = Image.open(PHOTO).convert("RGB")
    for i in range(N_IMAGES):
        path = images / f"{i:05}.png"
        photo.crop((i % 400, i % 260, i % 400 + 24 + i % 9, i % 260 + 32)).save(path)
        if i % 100 == 7:
            bad = broken(i // 100, path.read_bytes())
            path.unlink()
            path.symlink_to("nowhere") if bad is None else path.write_bytes(bad)
    memory = {}

    def look(_, summary):
        if summary.finished in (1000, N_IMAGES):
            workers = descendants(os.getpid())
            memory[summary.finished] = (resident("self"), *map(resident, workers))

    summary = convert("encode", images, tmp_path / "out", encoder="nano", jobs=2, on_result=look)
    assert (summary.done, summary.failed) == (N_IMAGES - 100, 100)
    assert len(list((tmp_path / "out").iterdir())) == N_IMAGES - 100
    assert len({failure.source for failure in summary.failures}) == 100
    assert all(failure.source in failure.reason for failure in summary.failures)
    print({n: [round(m / 1e6, 1) for m in each] for n, each in memory.items()})
    print(*(failure.reason for failure in summary.failures[:10]), sep="\n")
    print(summary.seconds, summary.per_second)
    assert sum(memory[N_IMAGES]) < 1.1 * sum(memory[1000])
