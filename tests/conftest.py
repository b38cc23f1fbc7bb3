import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from dynenc import registry

PHOTO = Path(__file__).parent / "images" / "chelsea.png"
NOBODY = 65_534

# the same examples in every run, so that a change is judged by what it changes; for others, pytest
# takes --hypothesis-profile default
settings.register_profile("same", derandomize=True)
settings.load_profile("same")


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Ctrl-C works, also where a shell started the tests in the background, with SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def photo_path() -> Path:
    """A real photograph, 451x300 RGB."""
    return PHOTO


class UsersFolder(type(Path())):  # type: ignore[misc]
    """A folder in which `rights()` are those of its owner: for root, of a user without any."""

    @contextlib.contextmanager
    def rights(self) -> Iterator[None]:
        """Give root's rights up for a while."""
        root = os.geteuid() == 0
        if root:
            for path in (self, *self.rglob("*")):
                os.chown(path, NOBODY, NOBODY)
            os.seteuid(NOBODY)
        try:
            yield
        finally:
            if root:
                os.seteuid(0)


@pytest.fixture
def as_nobody() -> Iterator[UsersFolder]:
    """A folder to test permissions in, which do not bind root."""
    if not hasattr(os, "geteuid"):
        pytest.skip("no permissions of this kind here")
    folder = UsersFolder(tempfile.mkdtemp())
    with folder.rights():
        if not os.access(registry.folder(), os.R_OK, effective_ids=True):
            pytest.skip("dynenc is installed where only root may read")
    yield folder
    shutil.rmtree(folder)
