import json

from PIL import Image
from typer.testing import CliRunner

from dynenc.cli.main import app


def run(*arguments):
    return CliRunner().invoke(app, ["cache", *map(str, arguments)])


def test_command(tmp_path):
    (images := tmp_path / "images").mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (128, 64), "teal").save(images / f"{name}.png")
    arguments = (images, "-o", tmp_path / "cache")
    first = run(*arguments)
    assert first.exit_code == 0, (first.output, first.exc_info)
    assert first.stdout == "128x64  2 images\n"
    (images / "a.png").unlink()
    (images / "c.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    frames = [Image.new("RGB", (128, 64), colour) for colour in ("teal", "navy")]
    frames[0].save(images / "d.gif", save_all=True, append_images=frames[1:])
    second = run(*arguments, "--json")
    assert second.exit_code == 1
    assert second.stderr.splitlines() == [
        f"dynenc: {images}/d.gif: frames after the first are dropped",
        f"dynenc: {images}/c.png cannot be read as an image: no known format",
    ]
    figures = json.loads(second.stdout)
    assert (figures["made"], figures["kept"], figures["orphans"]) == (1, 1, ["a"])
    assert run(*arguments, "-Q", "50").exit_code == 2
    assert run(*arguments, "-e", "own.safetensors").exit_code == 2
    assert "FILE" not in run("--help").stdout.partition("--model")[2].partition("\n")[0]
    refused = run(*arguments, "--space", "sd3")
    assert refused.exit_code == 5
    assert "no encoder light for SD 3" in refused.stderr
