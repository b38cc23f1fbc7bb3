import json

from PIL import Image
from typer.testing import CliRunner

from dynenc.cli.main import app


def run(*arguments):
    return CliRunner().invoke(app, ["cache", *map(str, arguments)])


def test_command(tmp_path):
    (pictures := tmp_path / "pictures").mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (128, 64), "teal").save(pictures / f"{name}.png")
    arguments = (pictures, "-o", tmp_path / "cache")
    first = run(*arguments)
    assert first.exit_code == 0, (first.output, first.exc_info)
    assert first.stdout == "128x64  2 images\n"
    (pictures / "a.png").unlink()
    (pictures / "c.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    frames = [Image.new("RGB", (128, 64), colour) for colour in ("teal", "navy")]
    frames[0].save(pictures / "d.gif", save_all=True, append_images=frames[1:])
    second = run(*arguments, "--json")
    assert second.exit_code == 1
    assert second.stderr.splitlines() == [
        f"dynenc: {pictures}/d.gif: frames after the first are dropped",
        f"dynenc: {pictures}/c.png cannot be read as an image: no known format",
    ]
    figures = json.loads(second.stdout)
    assert (figures["made"], figures["kept"], figures["orphans"]) == (1, 1, ["a"])
    assert run(*arguments, "-Q", "50").exit_code == 2
    refused = run(*arguments, "--space", "sd3")
    assert refused.exit_code == 5
    assert "no encoder light for SD 3" in refused.stderr
