"""Workers that die; in a module of its own, which a worker process can import."""

import os
import signal
from pathlib import Path

from dynenc.batch import converter, local_engine

real_serve = local_engine._serve


class CrashingServe:
    """Stands in for `_serve`; a class of a module, so that it can be sent to a worker."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, pipe, settings, halt):
        real = converter.Converter._load

        def load(converter, item):
            left = Path(self.folder, f"deaths-n{Path(item.source).stem}")
            if left.exists() and (n := int(left.read_text())):
                left.write_text(str(n - 1))
                os.kill(os.getpid(), signal.SIGKILL)
            return real(converter, item)

        converter.Converter._load = load
        real_serve(pipe, settings, halt)
