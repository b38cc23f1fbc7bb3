"""The README, the changelog and the command agree with each other and with the code."""

import re
from pathlib import Path

import pytest
from typer.main import get_command

from dynenc import __version__, errors
from dynenc.cli import main
from dynenc.coding import bitstream

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_changelog_ends_at_this_version():
    top = re.search(r"^## \[([^]]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert top
    assert top.group(1) == __version__


@pytest.mark.parametrize("name", sorted(get_command(main.app).commands))
def test_every_command_stands_in_the_readme(name):
    assert f"dynenc {name}" in README


def test_every_exit_code_stands_in_the_readme():
    kinds = [errors.DynencError, *errors.DynencError.__subclasses__()]
    for kind in kinds:
        assert re.search(rf"^\| {kind.exit_code} \|.*`{kind.__name__}`", README, re.MULTILINE)


def test_header_of_the_readme_is_that_of_the_code():
    rows = re.findall(r"^\| (\d+) \| (\d) \| `(\w+)` \|", README, re.MULTILINE)
    position = bitstream.PREFIX.size
    expected = [("0", "4", "magic"), ("4", "1", "version")]
    for field in bitstream.fields(bitstream.Header):
        size = {"H": 2, "B": 1}[field.metadata["fmt"]]
        expected.append((str(position), str(size), field.name))
        position += size
    assert rows == expected


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12, in a DataLoader
@pytest.mark.filterwarnings("ignore:.*worker processes in total")  # the same, with one core
def test_python_of_the_readme_runs(block, tmp_path, monkeypatch, photo_path):
    (tmp_path / "photo.png").write_bytes(photo_path.read_bytes())
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})
