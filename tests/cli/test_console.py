"""Terminals, pipes and disks that the command prints to."""

import io
import os
import subprocess
import sys

import pytest
from PIL import Image

from dynenc.cli import console

DYNENC = [sys.executable, "-m", "dynenc"]
posix = pytest.mark.skipif(os.name == "nt", reason="no such devices there")


@pytest.fixture
def image(photo_path, tmp_path):
    """A 24x24 piece of a photograph, on disk."""
    path = tmp_path / "photo.png"
    Image.open(photo_path).crop((100, 60, 124, 84)).save(path)
    return path


def run(*arguments, **options):
    command = [*DYNENC, *map(str, arguments)]
    return subprocess.run(command, stderr=subprocess.PIPE, check=False, **options)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("photo 写真 é 👩‍👩.png", "photo 写真 é 👩‍👩.png"),
        ("a\x1b[2Jb\nc\x7f\x9b.png", r"a\x1b[2Jb\nc\x7f\x9b.png"),
        ("a\u202egnp.exe", r"a\u202egnp.exe"),
        ("a\udce9.png", r"a\xe9.png"),
    ],
)
def test_what_acts_on_a_terminal_is_escaped(name, shown):
    assert console.quoted(name) == shown


def test_names_beyond_the_encoding_of_stdout_are_escaped(monkeypatch):
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, "cp1252"))
    with console.guarded_stdout():
        console.print_result("写真.lat", "é\udcff.lat")
    sys.stdout.detach()
    assert buffer.getvalue().splitlines() == [rb"\u5199\u771f.lat", b"\xe9\xff.lat"]


@posix
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_behind_stdout_is_one_line(image, unbuffered):
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        for arguments in (["encode", image, "-e", "nano", "-f"], ["encode", "--help"]):
            result = run(*arguments, stdout=full, env=os.environ | {"PYTHONUNBUFFERED": unbuffered})
            assert result.returncode == 7
            assert result.stderr.decode() == (
                "dynenc: standard output cannot be written: No space left on device\n"
            )
    assert image.with_suffix(".lat").exists()


@posix
def test_a_closed_stdout_is_one_line(image):
    command = " ".join([*DYNENC, "encode", str(image), "-e nano >&-"])
    result = subprocess.run(command, shell=True, stderr=subprocess.PIPE, check=False)
    assert (result.returncode, result.stderr) == (7, b"dynenc: standard output is closed\n")


def on_a_terminal(*arguments):
    """Run with a terminal as all three standard streams; exit code and what it shows."""
    import pty

    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*DYNENC, *map(str, arguments)], stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 4096):
            shown += piece
    except OSError:  # Linux: the other end is closed
        pass
    os.close(ours)
    return process.wait(), shown.decode()


@posix
def test_binary_data_is_neither_read_from_a_terminal_nor_written_to_it(image):
    code, shown = on_a_terminal("encode", "-")
    assert (code, "refusing to read" in shown) == (2, True)
    code, shown = on_a_terminal("encode", image, "-o", "-")
    assert (code, "refusing to write" in shown) == (2, True)
    assert "override with --force" in shown


@posix
def test_names_are_quoted_on_a_terminal_and_nowhere_else(image):
    name = image.with_name("a\x1b[31m.png")
    image.rename(name)
    code, shown = on_a_terminal("encode", name, "-e", "nano")
    assert (code, r"a\x1b[31m.lat" in shown, "\x1b[31m" in shown) == (0, True, False)
    result = run("encode", name, "-e", "nano", "-f", stdout=subprocess.PIPE)
    assert b"a\x1b[31m.lat" in result.stdout
    result = run("encode", name, "-e", "nano")  # the message, that it exists, is for people
    assert rb"a\x1b[31m.lat exists" in result.stderr


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("encode", "standard input is empty"),
        ("import", "standard input is empty"),
        ("decode", "standard input: this is not a .lat file"),
    ],
)
def test_standard_input_is_called_so_once(command, message):
    done = subprocess.run([*DYNENC, command, "-"], input=b"", capture_output=True)
    assert done.stderr.decode().startswith(f"dynenc: {message}")
