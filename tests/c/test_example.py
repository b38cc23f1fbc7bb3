"""The example in C writes the same files as the codec."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dynenc.c
from dynenc import Codec
from dynenc.c import tables
from dynenc.errors import UsageError
from dynenc.native import compile

EXAMPLE = Path(dynenc.c.__file__).with_name("encode.c")
PHOTO = Path(__file__).parents[1] / "images" / "chelsea.png"


@pytest.mark.parametrize(("name", "quality"), [("nano", 50), ("light", 31.4), ("light-flux1", 60)])
def test_the_example_writes_the_bytes_of_the_codec(tmp_path, name, quality):
    if (compiler := compile.find_compiler()) is None:
        pytest.skip("needs a C compiler")
    (tmp_path / "tables.h").write_text(tables.header(name))
    program, library = tmp_path / "encode", compile.LIBRARY
    command = [*compiler, "-std=c11", f"-I{compile.FOLDER}", f"-I{tmp_path}", EXAMPLE, library]
    command += [f"-Wl,-rpath,{library.parent}", "-lm", "-Wall", "-Werror", "-o", program]
    subprocess.run(command, check=True)
    codec, target = Codec(name, device="cpu"), tmp_path / "image.lat"
    photo = Image.open(PHOTO).convert("RGB")
    for image in (photo, photo.resize((13, 7)), Image.fromarray(np.asarray(photo)[:200, 100:101])):
        image.save(tmp_path / "image.ppm")
        subprocess.run([program, tmp_path / "image.ppm", target, str(quality)], check=True)
        assert target.read_bytes() == codec.encode(image, quality=quality, detail="off")
    written, pixels = target.read_bytes(), image.tobytes()
    commented, deep = tmp_path / "commented.ppm", tmp_path / "deep.ppm"
    commented.write_bytes(b"P6 # a\n#\n1 #2\n200 # 3\n255\n" + pixels)
    subprocess.run([program, commented, target, str(quality)], check=True)
    assert target.read_bytes() == written
    deep.write_bytes(b"P6 1 200 65535\n" + pixels * 2)
    wrong = [["a.ppm", target, "50"], [deep, target, "50"], []]
    for given in [*wrong, *([commented, target, text] for text in ("101", "nan", "5O", ""))]:
        done = subprocess.run([program, *given], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert done.stderr.startswith("encode: ")


def test_encoders_that_need_torch_have_no_tables():
    with pytest.raises(UsageError, match="base has layers that do not run in C"):
        tables.header("base")
