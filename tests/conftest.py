from pathlib import Path

import pytest

PHOTO = Path(__file__).parent / "images" / "chelsea.png"


@pytest.fixture
def photo_path() -> Path:
    """A real photograph, 451x300 RGB."""
    return PHOTO
