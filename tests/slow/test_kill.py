"""Kill a run at 30 random moments: what all the runs leave is what one run leaves."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from conftest import PHOTO
from PIL import Image

from dynenc import convert

pytestmark = pytest.mark.slow
N_IMAGES, N_KILLS = 2400, 30


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_killed_at_random_moments(tmp_path):
    (images := tmp_path / "in").mkdir()
    photo = Image.open(PHOTO).convert("RGB")
    for i in range(N_IMAGES):
        x, y = i % 300, i // 5
        photo.crop((x, y, x + 64, y + 64)).save(images / f"{i:04}.png")
    convert("encode", images, tmp_path / "whole", encoder="nano", jobs=1)
    expected = contents(tmp_path / "whole")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "dynenc", "encode", images, "-o", out, "-e", "nano"]
    chance = random.Random(1)
    finished_at = []
    for number in range(N_KILLS):
        process = subprocess.Popen(
            [*command, "-j", "2"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for _ in range(chance.randrange(80)):
            process.stdout.readline()
        time.sleep(chance.random() / 20)
        if number % 2:
            os.killpg(process.pid, signal.SIGKILL)  # the workers, too
        process.kill()
        process.communicate()
        there = contents(out) if out.is_dir() else {}
        final = {name: data for name, data in there.items() if not name.startswith(".")}
        assert final.items() <= expected.items()
        finished_at.append(len(final))
    print(finished_at)
    assert finished_at[-1] < N_IMAGES
    summary = convert("encode", images, out, encoder="nano", jobs=1)
    assert summary.failed == 0
    assert summary.done == N_IMAGES - finished_at[-1]
    assert contents(out) == expected  # nor is any partial file left
