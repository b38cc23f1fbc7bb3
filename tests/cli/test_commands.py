import io
import json
import os
import shlex
import stat
import subprocess
import sys

import pytest
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner

from dynenc import __version__
from dynenc.cli.main import app
from dynenc.coding.entropy import load_coder

runner = CliRunner()
COMMANDS = get_command(app).commands


def run(*arguments, stdin=None):
    return runner.invoke(app, [str(a) for a in arguments], input=stdin)


@pytest.fixture
def image(photo_path, tmp_path):
    """A 75x50 piece of a photograph, on disk."""
    path = tmp_path / "photo.png"
    Image.open(photo_path).crop((100, 60, 175, 110)).save(path)
    return path


@pytest.fixture
def lat(image):
    assert run("encode", image, "-e", "nano").exit_code == 0
    return image.with_suffix(".lat")


def test_encode_writes_beside_the_image(image):
    result = run("encode", image, "--encoder", "nano")
    target = image.with_suffix(".lat")
    assert result.exit_code == 0
    assert target.read_bytes().startswith(b"\x89LAT")
    assert str(target) in result.stdout
    assert f"{target.stat().st_size} bytes" in result.stdout


def test_encode_to_a_named_place(image, tmp_path):
    target = tmp_path / "other.lat"
    assert run("encode", image, "-o", target, "-e", "nano", "-q").stdout == ""
    assert target.exists()


def test_verbose_says_what_is_done(image, tmp_path):
    result = run("encode", image, "-e", "nano", "-v", "--device", "cpu")
    assert "encoder: nano in the native kernel" in result.stderr


def test_higher_quality_is_larger(image, tmp_path):
    sizes = []
    for quality in (0, 50, 100):
        target = tmp_path / f"{quality}.lat"
        run("encode", image, "-o", target, "--quality", quality)
        sizes.append(target.stat().st_size)
    assert sizes == sorted(set(sizes))


def test_decode_writes_an_image_of_the_same_size(lat, tmp_path):
    result = run("decode", lat, "-o", tmp_path / "out.png", "-d", "embedded")
    assert result.exit_code == 0
    assert result.stdout.strip() == str(tmp_path / "out.png")
    assert result.stderr == ""
    with Image.open(tmp_path / "out.png") as decoded:
        assert (decoded.format, decoded.mode, decoded.size) == ("PNG", "RGB", (75, 50))


@pytest.mark.parametrize("suffix", ["jpg", "webp", "tif", "bmp", "PNG"])
def test_decode_writes_what_the_suffix_says(lat, tmp_path, suffix):
    target = tmp_path / f"out.{suffix}"
    assert run("decode", lat, "-o", target, "-d", "embedded").exit_code == 0
    with Image.open(target) as decoded:
        assert decoded.size == (75, 50)


def test_decode_says_which_decoder_auto_is(lat, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("DYNENC_SD_VAE", raising=False)
    assert run("decode", lat, "-o", tmp_path / "out.png").stderr == ""
    result = run("decode", lat, "-o", tmp_path / "out.png", "-f", "-v")
    assert result.exit_code == 0
    assert "embedded" in result.stderr
    assert "sd-vae" in result.stderr


def test_standard_streams(image, tmp_path):
    encoded = run("encode", "-", "-e", "nano", stdin=image.read_bytes())
    assert encoded.exit_code == 0
    assert encoded.stdout_bytes.startswith(b"\x89LAT")
    decoded = run("decode", "-", "-d", "embedded", stdin=encoded.stdout_bytes)
    with Image.open(io.BytesIO(decoded.stdout_bytes)) as shown:
        assert shown.size == (75, 50)
    assert list(tmp_path.iterdir()) == [image]


def test_roundtrip_json(image):
    result = run("roundtrip", image, "--json", "-d", "embedded", "--quality", 60)
    figures = json.loads(result.stdout)
    assert (figures["width"], figures["height"]) == (75, 50)
    assert (figures["encoder"], figures["decoder"]) == ("light", "embedded")
    assert figures["quality"] == 60
    assert figures["bpp"] == pytest.approx(8 * figures["n_bytes"] / (75 * 50))
    assert figures["ms_ssim"] is None
    assert figures["psnr_db"] > 15
    assert figures["encode_s"] > 0
    assert figures["decode_s"] > 0


def test_roundtrip_of_a_photograph(photo_path, tmp_path):
    kept = tmp_path / "kept.png"
    result = run("roundtrip", photo_path, "-o", kept, "-d", "embedded")
    assert result.exit_code == 0
    for word in ("PSNR", "MS-SSIM", "bpp", "ms to encode"):
        assert word in result.stdout
    with Image.open(kept) as decoded:
        assert decoded.size == (451, 300)


def test_info(lat):
    fields = json.loads(run("info", lat, "--json").stdout)
    assert fields["version"] == 1
    assert (fields["width"], fields["height"], fields["encoder"]) == (75, 50, "nano")
    assert fields["n_bytes"] == lat.stat().st_size
    assert "75" in run("info", lat).stdout


def test_existing_output_is_kept(image):
    (target := image.with_suffix(".lat")).write_bytes(b"keep")
    result = run("encode", image, "-e", "nano")
    assert (result.exit_code, result.stdout, target.read_bytes()) == (6, "", b"keep")
    assert "--force" in result.stderr
    assert run("encode", image, "-e", "nano", "--force").exit_code == 0
    assert target.read_bytes() != b"keep"


@pytest.mark.parametrize("command", ["decode", "roundtrip"])
def test_existing_image_is_kept(command, lat, image, tmp_path):
    (target := tmp_path / "out.png").write_bytes(b"keep")
    source = lat if command == "decode" else image
    assert run(command, source, "-o", target, "-d", "embedded").exit_code == 6
    assert target.read_bytes() == b"keep"
    assert run(command, source, "-o", target, "-d", "embedded", "-f").exit_code == 0
    assert target.read_bytes() != b"keep"


def sentence(result, code):
    """The one line on stderr of a command that failed as it should."""
    assert result.exit_code == code
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("dynenc: ")
    return lines[0]


def test_not_an_image(tmp_path):
    (path := tmp_path / "notes.png").write_text("not an image")
    assert "notes.png" in sentence(run("encode", path), 3)
    assert list(tmp_path.iterdir()) == [path]


def test_missing_image(tmp_path):
    assert "does not exist" in sentence(run("encode", tmp_path / "none.png"), 3)
    assert "does not exist" in sentence(run("roundtrip", tmp_path / "none.png"), 3)


def test_missing_lat(tmp_path):
    assert "cannot be read" in sentence(run("decode", tmp_path / "none.lat"), 4)


def test_a_folder_is_not_an_image(tmp_path):
    sentence(run("encode", tmp_path, "-o", tmp_path / "x.lat"), 3)


@pytest.mark.parametrize("command", ["decode", "info"])
@pytest.mark.parametrize("damage", ["empty", "foreign", "truncated", "flipped", "newer", "longer"])
def test_damaged_files(command, damage, lat, tmp_path):
    blob = lat.read_bytes()
    flipped = bytearray(blob)
    flipped[len(blob) // 2] ^= 16
    (bad := tmp_path / "bad.lat").write_bytes(
        {
            "empty": b"",
            "foreign": b"GIF89a" + bytes(40),
            "truncated": blob[:-7],
            "flipped": bytes(flipped),
            "newer": blob[:4] + b"\x07" + blob[5:],
            "longer": blob + b"x",
        }[damage]
    )
    options = [] if command == "info" else ["-o", tmp_path / "out.png"]
    assert "bad.lat: " in sentence(run(command, bad, *options), 4)
    assert not (tmp_path / "out.png").exists()


def test_unwritable_image_format(lat, tmp_path):
    assert "suffix" in sentence(run("decode", lat, "-o", tmp_path / "x.lat2"), 7)


def test_missing_target_folder(image, tmp_path):
    sentence(run("encode", image, "-o", tmp_path / "no" / "x.lat", "-e", "nano"), 7)


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)
def test_read_only_target(image, tmp_path):
    (folder := tmp_path / "closed").mkdir()
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    sentence(run("encode", image, "-o", folder / "x.lat", "-e", "nano"), 7)


def test_full_disk_leaves_nothing(image, tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    message = sentence(run("encode", image, "-e", "nano"), 7)
    assert "No space left" in message
    assert sorted(p.name for p in tmp_path.iterdir()) == ["photo.png"]


def test_output_that_appears_meanwhile_is_kept(image, monkeypatch):
    target = image.with_suffix(".lat")
    monkeypatch.setattr(
        "dynenc.batch.tasks.base.refuse_existing", lambda *_: target.write_bytes(b"other")
    )
    sentence(run("encode", image, "-e", "nano"), 6)
    assert target.read_bytes() == b"other"


@pytest.mark.parametrize("data", [None, b"altered"])
def test_missing_or_altered_weights(image, lat, tmp_path, monkeypatch, data):
    (folder := tmp_path / "weights").mkdir()
    monkeypatch.setattr("dynenc.registry.folder", lambda: folder)
    for module in ("encode_latents", "lat_file"):
        monkeypatch.setattr(f"dynenc.coding.{module}.load_coder", load_coder.__wrapped__)
    if data:
        for name in ("nano", "embedded", "coder_fast"):
            (folder / f"{name}.safetensors").write_bytes(data)
    assert "reinstall" in sentence(run("encode", image, "-e", "nano", "-f"), 5)
    assert "reinstall" in sentence(run("decode", lat, "-f", "-d", "embedded"), 5)


@pytest.mark.parametrize(
    "arguments",
    [
        ["encode", "x.png", "--encoder", "huge"],
        ["encode", "x.png", "--quality", "101"],
        ["encode", "x.png", "--quality", "best"],
        ["encode", "x.png", "--device", "tpu"],
        ["encode"],
        ["encode", "x.png", "--no-such-flag"],
        ["explode"],
    ],
)
def test_wrong_usage_is_exit_code_2(arguments):
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""


def test_a_device_that_is_not_there(image, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "cuda" in sentence(run("encode", image, "--device", "cuda"), 8)


@pytest.mark.parametrize("command", ["encode", "roundtrip"])
def test_an_image_beyond_the_limit(image, command):
    result = run(command, image, "-e", "nano", "--max-pixels", "100")
    assert "the limit is 100: raise --max-pixels" in sentence(result, 3)


def test_version():
    assert run("--version").stdout.splitlines() == [
        f"dynenc {__version__}",
        "format   reads 1, writes 1",
        "space    sd1: nano 1, light 2, base 3, imported 4; coded by fast 1, full 2",
        "space    sdxl: imported-sdxl 6, light-sdxl 9, base-sdxl 10; coded by full-sdxl 2",
        "space    flux1: imported-flux1 7, light-flux1 11, base-flux1 12; coded by full-flux1 2, "
        "encoders-flux1 3",
        "space    sd3: imported-sd3 8; coded by full-sd3 2",
        "space    autoencoder: autoencoder 5; coded by fast 1, full 2",
    ]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples_that_parse(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: root {command} ")
    _, _, lines = result.stdout.partition("Examples:\n")
    examples = [line.split("|") for line in lines.splitlines() if line.strip()]
    assert examples
    for parts in examples:
        [own] = [part for part in parts if "dynenc" in part][:1]
        words = shlex.split(own.split(">")[0])
        assert words[:2] == ["dynenc", command]
        COMMANDS[command].make_context(command, words[2:])


def test_completion_knows_the_commands_and_their_options():
    def complete(line):
        words = {"COMP_WORDS": line, "COMP_CWORD": str(len(f"{line}x".split()) - 1)}
        words |= {"_DYNENC_COMPLETE": "complete_bash"}
        return runner.invoke(app, prog_name="dynenc", env=words).stdout.split()

    assert {"encode", "decode", "doctor"} <= set(complete("dynenc "))
    assert complete("dynenc ver") == ["verify"]
    assert "--keep-metadata" in complete("dynenc encode --keep")


def test_doctor(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("DYNENC_SD_VAE", raising=False)
    result = run("doctor")
    assert result.exit_code == 0
    for word in (
        "torch",
        "dtype",
        "jxl",
        "auto selects embedded",
        str(tmp_path / "hub"),
        "WebP",
        "ray",
    ):
        assert word in result.stdout


def test_doctor_finds_what_is_wrong(monkeypatch, tmp_path):
    monkeypatch.setattr("dynenc.registry.folder", lambda: tmp_path)
    monkeypatch.setenv("DYNENC_SD_VAE", str(tmp_path / "none.safetensors"))
    result = run("doctor", "--json")
    assert result.exit_code == 1
    weights, decoder = json.loads(result.stdout)["problems"]
    assert "reinstall dynenc" in weights
    assert "DYNENC_SD_VAE" in decoder
    assert weights in result.stderr


def test_doctor_finds_variables_that_are_wrong(monkeypatch):
    monkeypatch.setenv("DYNENC_SIMD", "mmx")
    monkeypatch.setenv("DYNENC_CPU_DTYPE", "float8")
    result = run("doctor", "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    dtype, simd = report["problems"]
    assert "DYNENC_CPU_DTYPE" in dtype
    assert "DYNENC_SIMD" in simd
    assert report["findings"]["DYNENC_SIMD"] == "mmx"


def test_help_does_not_import_torch():
    code = (
        "import sys; from typer.testing import CliRunner; from dynenc.cli.main import app;"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0;"
        "assert not {'torch', 'numpy', 'PIL', 'diffusers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_encode_does_not_import_diffusers(image):
    code = (
        "import sys; from dynenc.cli.main import app;"
        f"app(['encode', {str(image)!r}, '-e', 'nano'], standalone_mode=False);"
        "heavy = {'diffusers', 'huggingface_hub', 'torchvision', 'matplotlib'};"
        "assert not heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_compare_takes_a_free_name_and_wants_common_names(image, lat, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("compare.html", "compare-2.html"):
        assert run("compare", image, lat, "-d", "embedded").stdout == f"{name}\n"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.png").write_bytes(image.read_bytes())
    result = run("compare", tmp_path, tmp_path / "other")
    assert "has the name of an image in" in sentence(result, 2)


@pytest.mark.parametrize("arguments", [["decode", ""], ["encode", "x.png", "-o", ""]])
def test_empty_names_are_refused(arguments):
    assert "'' cannot be the name of an" in sentence(run(*arguments), 2)
