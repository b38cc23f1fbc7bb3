"""What a command imports: those that need no network start without torch."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

TESTS = Path(__file__).parents[1]
PLUGIN = "import dynenc.pillow; from PIL import Image; Image.open('a.lat').size"
CODEC = "import dynenc; c = dynenc.Codec.from_pretrained(); c.decode(c.encode('a.png'))"


def imported(*arguments, cwd=None):
    """The modules that a run of Python imports."""
    command = [sys.executable, "-X", "importtime", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=cwd)
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}


@pytest.mark.parametrize("arguments", [["-m", "dynenc", "--help"], ["-c", "import dynenc.cli"]])
def test_help_needs_neither_torch_nor_numpy(arguments):
    modules = imported(*arguments)
    assert "dynenc.cli" in modules
    assert not {"torch", "diffusers", "numpy"} & modules


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with images, a .lat file, and files of latents."""
    folder = tmp_path_factory.mktemp("start")
    (folder / "a.png").write_bytes((TESTS / "images" / "chelsea.png").read_bytes())
    (software := Image.Exif())[0x0131] = "dynenc, decoder embedded"
    Image.new("RGB", (8, 8)).save(folder / "old.png", exif=software)
    (folder / "a.lat").write_bytes((TESTS / "golden" / "v1_light_33x40.lat").read_bytes())
    for form in ("npz", "safetensors"):
        imported("-m", "dynenc", "export", "a.lat", "--to", form, cwd=folder)
    return folder


@pytest.mark.parametrize(
    "arguments",
    [
        "info a.lat",
        "verify .",
        "export a.lat --to npz -o new.npz",
        "export a.lat --to safetensors -o new.safetensors",
        "export a.lat --to comfy",
        "import a.npz -o npz.lat",
        "import a.safetensors -o safetensors.lat",
        "encode a.png -e nano -o nano.lat",
        "encode a.png -e light -o light.lat --target-size 2KB",
        "decode a.lat -o decoded.png",
        "decode a.lat -o part.png --region 1,2,3,4 --scale 1/4",
        "encode a.png -u --dry-run",
        "decode a.lat -o old.png -u --dry-run",
        "roundtrip a.png -o old.png -u --dry-run",
        "export a.lat --to npz -u --dry-run",
        "import a.npz -u --dry-run",
    ],
)
def test_what_needs_no_network_runs_without_torch(folder, arguments):
    modules = imported("-m", "dynenc", *arguments.split(), cwd=folder)
    assert "dynenc.cli" in modules
    assert not {"torch", "diffusers", "huggingface_hub.file_download"} & modules


@pytest.mark.parametrize(("code", "module"), [(PLUGIN, "pillow"), (CODEC, "encoding")])
def test_the_library_needs_no_torch_without_networks(folder, code, module):
    modules = imported("-c", code, cwd=folder)
    assert f"dynenc.{module}" in modules
    assert "torch" not in modules


def test_ctrl_c_at_the_start_is_no_traceback():
    code = (
        "import sys, threading, _thread; from dynenc.cli import run;"
        "sys.meta_path.insert(0, type('', (), {'find_spec': lambda *_: _thread.interrupt_main()}));"
        "run()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "dynenc: interrupted\n")


@pytest.mark.skipif(sys.platform == "win32", reason="the current folder cannot be removed")
def test_the_current_folder_may_be_gone(folder, tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    in_gone = ["sh", "-c", 'cd "$0" && rmdir "$0" && exec "$@"', gone, sys.executable]
    done = subprocess.run(
        [*in_gone, "-m", "dynenc", "encode", folder, "-o", folder, "-e", "nano"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
