"""Write the tables of an encoder for C programs: `python -m dynenc.c.tables light light.h`.

The C header holds the weights of the encoder and of the entropy coder of its files, as dynenc.h
takes them, and the numbers that belong in these files.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import numpy.typing as npt
from safetensors.numpy import load as load_tensors

from dynenc import __version__, registry
from dynenc.coding import entropy, quantize
from dynenc.errors import DynencError, UsageError
from dynenc.io.writing import writing
from dynenc.native import encoder

PER_LINE = 8  # values


def header(name: str) -> str:
    """The C header for an encoder; raises WeightsError, or UsageError if it does not run in C."""
    model = registry.encoder_model(name)
    if not encoder.runs_natively(model, "cpu"):
        raise UsageError(f"{name} has layers that do not run in C")
    coder = registry.named(model.coder, "coder")
    tensors = entropy.packed(load_tensors(registry.read_file(coder)), has_trellis=model.has_trellis)
    weights = encoder.load(model).tensors
    numbers = {
        "DYNENC_MODEL_ID": model.number,
        "DYNENC_CODER_ID": coder.number,
        "DYNENC_LATTICE": int(model.has_trellis),
        "DYNENC_CHANNELS": model.space.channels,
        "DYNENC_WIDTH": model.arguments["width"],
        "DYNENC_BLOCKS": model.arguments["blocks"],
    }
    unit = quantize.TRELLIS_STEP if model.has_trellis else 1
    lines = [
        f"/* {name}: its encoder, and the entropy coder of its files, by dynenc {__version__}. */",
        "#ifndef DYNENC_TABLES_H",
        "#define DYNENC_TABLES_H",
        "#include <stdint.h>",
        f"enum {{ {', '.join(f'{key} = {value}' for key, value in numbers.items())} }};",
        f"static const double DYNENC_STEP_50 = {quantize.MIDDLE_STEP * unit * quantize.STEP_UNIT};",
        f"static const double DYNENC_BIT = {quantize.LAMBDA};",
        *_array("float DYNENC_ENCODER", weights, (f"{float(value).hex()}f" for value in weights)),
        *_array("int32_t DYNENC_CODER", tensors, map(str, tensors.tolist())),
        "#endif",
    ]
    return "\n".join(lines) + "\n"


def _array(name: str, array: npt.NDArray[Any], values: Iterable[str]) -> Iterator[str]:
    """The lines of a constant array."""
    yield f"static const {name}[{array.size}] = {{"
    texts = list(values)
    for start in range(0, len(texts), PER_LINE):
        yield ", ".join(texts[start : start + PER_LINE]) + ","
    yield "};"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("encoder", metavar="ENCODER", help="such as nano or light")
    parser.add_argument("output", metavar="FILE.h")
    arguments = parser.parse_args()
    try:
        text = header(arguments.encoder)
        with writing(arguments.output, overwrite=True) as file:
            file.write(text.encode())
    except DynencError as exc:
        sys.exit(exc.sentence)
