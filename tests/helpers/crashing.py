"""A worker that dies over files named by the environment; run in place of a worker's program.

It dies when it reads the file 03 if there is a file `deaths-n03`, and when it has written its
output if there is `deaths-w03`, as often as that says.
"""

import os
import signal
import sys
from pathlib import Path

sys.path[:0] = sys.argv[2:]

from dynenc.batch import converter, worker  # noqa: E402
from dynenc.batch.tasks import EncodeTask  # noqa: E402

real_load, real_write = EncodeTask.load, converter.Converter._write


def die(when, item):
    left = Path(os.environ["DEATHS"], f"deaths-{when}{Path(item.source).stem}")
    if left.exists() and (n := int(left.read_text())):
        left.write_text(str(n - 1))
        os.kill(os.getpid(), signal.SIGKILL)


def load(self, item):
    die("n", item)
    return real_load(self, item)


def write(self, item, made):
    done = real_write(self, item, made)
    die("w", item)
    return done


EncodeTask.load = load
converter.Converter._write = write
worker.enter(sys.argv[1])
