"""docs/cli.md says what the command is."""

from pathlib import Path

from dynenc.cli import reference

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def test_the_reference_is_that_of_the_command():
    assert PAGE.read_text("utf-8") == reference.markdown(), (
        "run: python -m dynenc.cli.reference > docs/cli.md"
    )
