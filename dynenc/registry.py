"""The append-only table of models: their numbers in .lat files, and their weight files.

Numbers are literals and never change meaning; coders of different spaces may have the same one. A
retrained encoder keeps its number, because decoding does not need the encoder; a retrained entropy
coder gets a new one.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from dynenc.arguments import checked_name
from dynenc.errors import UsageError, WeightsError
from dynenc.latent_space import AUTOENCODER, FLUX1, SD1, SD3, SDXL, LatentSpace

Network = Literal["encoder", "decoder"]  # an autoencoder's file holds both
Kind = Literal["encoder", "decoder", "autoencoder", "coder", "imported", "thumbnail", "perceptual"]
# imported: latents of other encoders; thumbnail: a decoder to images at 1/4 of the size;
# perceptual: features that refinement compares


@dataclass(frozen=True, slots=True)
class Model:
    """A network or entropy coder: its weight file, and its number in a .lat file if it has one."""

    name: str
    kind: Kind
    number: int = 0  # in .lat files; 0: it has none
    file: str = ""  # in the folder weights/; empty for `IMPORTED` only
    sha256: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)  # of the network's constructor
    space: LatentSpace = SD1  # of the latents
    coder: str = "full"  # entropy coder of new files of its latents ...
    has_trellis: bool = True  # ... and whether they use the trellis; of a coder: whether it can


LIGHT: dict[str, Any] = {"hidden": 0, "width": 64, "blocks": 3}
BASE: dict[str, Any] = {"hidden": 1, "width": 160, "blocks": 9}
EMBEDDED: dict[str, Any] = {"widths": (128, 64, 32), "blocks": (8, 4, 2)}
FINE: dict[str, Any] = {"widths": (256, 128, 64), "blocks": (8, 6, 4)}

MODELS = {
    model.name: model
    for model in (
        Model(
            "nano",
            "encoder",
            number=1,
            file="nano.safetensors",
            sha256="297f2ccaf1036cb1adb868b88a3cfd43f3a3725c109b27e4508c7977a94f9dd3",
            arguments={"hidden": 0, "width": 16, "blocks": 1},
            coder="fast",  # as fast as the encoder
            has_trellis=False,
        ),
        Model(
            "light",
            "encoder",
            number=2,
            file="light.safetensors",
            sha256="1bf34baf2ff217e88b18b8c192ced85499af34460870d6dcc98d27369fcc9776",
            arguments=LIGHT,
        ),
        Model(
            "base",
            "encoder",
            number=3,
            file="base.safetensors",
            sha256="2468db5dcb6346efee9a415317d5347ca21e66ba7371414a2db1c01457ab6fb8",
            arguments=BASE,
        ),
        Model(
            "autoencoder",
            "autoencoder",
            number=5,
            file="autoencoder.safetensors",
            sha256="fb1e0845c0212827fb2687cc367eaef3da10beedd55cfe50ecab10cbc2475be4",
            arguments={
                "encoder": {"hidden": 1, "width": 64, "blocks": 2},
                "widths": (88, 44, 24),
                "blocks": (2, 2, 2),
            },
            space=AUTOENCODER,
        ),
        Model(
            "embedded",
            "decoder",
            file="embedded.safetensors",
            sha256="5445fd4b7616a3052e28484cfc71d7abbc979a48578185608491788921a1de8f",
            arguments=EMBEDDED,
        ),
        Model(
            "thumbnail",
            "thumbnail",
            file="thumbnail.safetensors",
            sha256="c36c3a74b5876c6d3dac184601de3992334bbdb32a031b1022fd2be0a3127c80",
            arguments={"widths": (64,), "blocks": (3,)},
        ),
        Model(
            "perceptual",
            "perceptual",
            file="perceptual.safetensors",
            sha256="638b1ef4603977bb11c1f2ad7a16efe474a4b3d96607917e14e68137b1a3db5b",
            arguments={"widths": (48, 96), "blocks": (2, 3), "outputs": (96, 96)},
        ),
        Model(
            "fine",
            "decoder",
            file="fine.safetensors",
            sha256="7abc94d32540a6de4f605e8906d1622a414ac10e1ef325c6afa199e990758fbb",
            arguments=FINE,
        ),
        Model(
            "light-sdxl",
            "encoder",
            number=9,
            file="light-sdxl.safetensors",
            sha256="1bc077928b0eed1a6f401898954b6bb1cfb2ef58972ba91b209512bd2b32f8c2",
            arguments=LIGHT,
            space=SDXL,
            coder="full-sdxl",
        ),
        Model(
            "base-sdxl",
            "encoder",
            number=10,
            file="base-sdxl.safetensors",
            sha256="52e56f6c15edd20fa138c21726a5a901d77f676336d09eb5ceb9ed72ac3d34f9",
            arguments=BASE,
            space=SDXL,
            coder="full-sdxl",
        ),
        Model(
            "light-flux1",
            "encoder",
            number=11,
            file="light-flux1.safetensors",
            sha256="d359d72847fe8f9086791b57428a1d8c5ee8e4a067f89787d2d94c0c9f2ea893",
            arguments=LIGHT,
            space=FLUX1,
            coder="encoders-flux1",
        ),
        Model(
            "base-flux1",
            "encoder",
            number=12,
            file="base-flux1.safetensors",
            sha256="3af9f226638e2c69124e9cce114cc75d134983d8d307f0ef563b68dbc7b0fcd7",
            arguments=BASE | {"blocks": 6},
            space=FLUX1,
            coder="encoders-flux1",
        ),
        Model(
            "embedded-sdxl",
            "decoder",
            file="embedded-sdxl.safetensors",
            sha256="cb62f06e3961006d05627dd3fccbf390ff74e012be692de6fec6429d6cf2ac70",
            arguments=EMBEDDED,
            space=SDXL,
        ),
        Model(
            "embedded-flux1",
            "decoder",
            file="embedded-flux1.safetensors",
            sha256="a05e10e46694414019b592ed8acb57f42d36c86369ad9b361df458148cd16999",
            arguments=EMBEDDED,
            space=FLUX1,
        ),
        Model(
            "fast",
            "coder",
            number=1,
            file="coder_fast.safetensors",
            sha256="ab0fe25cef83acc22fa279d8311052ced7f144a8915f1efc0129652458e79392",
            has_trellis=False,
        ),
        Model(
            "full",
            "coder",
            number=2,
            file="coder_full.safetensors",
            sha256="723f00d5a92b9439687f6117c688b724ec036025ddd9f411553b289dbc2de847",
        ),
        Model(
            "full-sdxl",
            "coder",
            number=2,
            file="coder_sdxl.safetensors",
            sha256="b0d2ffacf7a656d2ef4a5863df454b721f225289ad098e606a1cf53503f16dfe",
            space=SDXL,
        ),
        Model(
            "full-flux1",
            "coder",
            number=2,
            file="coder_flux1.safetensors",
            sha256="29563c94696f834a91b9276b51aaa46b644ee3966b407aab2b8be2c569c27c8f",
            space=FLUX1,
        ),
        Model(
            "encoders-flux1",
            "coder",
            number=3,
            file="coder_flux1_encoders.safetensors",
            sha256="272b67f36f686c0dd52f08311fb765caa4e65f9ec871a7ada58b06621f5bab64",
            space=FLUX1,
        ),
        Model(
            "full-sd3",
            "coder",
            number=2,
            file="coder_sd3.safetensors",
            sha256="589dcca8e02e0c21cdce656e4286a838afc2268213112a19fe008e5bff7c2ab7",
            space=SD3,
        ),
    )
}

DEFAULT_ENCODER = "light"
IMPORTED = Model("imported", "imported", number=4)  # latents of any other encoder of SD 1.x
IMPORTED_MODELS = {  # latents of other encoders, by the name of their space
    model.space.name: model
    for model in (
        IMPORTED,
        Model("imported-sdxl", "imported", number=6, space=SDXL, coder="full-sdxl"),
        Model("imported-flux1", "imported", number=7, space=FLUX1, coder="full-flux1"),
        Model("imported-sd3", "imported", number=8, space=SD3, coder="full-sd3"),
    )
}
LATENT_MODELS = (  # models that a file can name for its latents; their numbers are unique
    *(m for m in MODELS.values() if m.kind in ("encoder", "autoencoder")),
    *IMPORTED_MODELS.values(),
)


def named(name: str, kind: Kind) -> Model:
    """The model of that name and kind; raises WeightsError if it is unknown."""
    model = MODELS.get(name)
    if model is None or not _is(model, kind):
        choices = ", ".join(names(kind))
        raise WeightsError(f"unknown {kind} {name!r}: choose one of {choices}")
    return model


def names(kind: Kind) -> list[str]:
    """The names of all models of a kind, in the order of `MODELS`."""
    return [model.name for model in MODELS.values() if _is(model, kind)]


def encoders(space: LatentSpace) -> list[str]:
    """The names of the encoders of a space's latents, the smallest first."""
    return [m.name for m in MODELS.values() if m.kind == "encoder" and m.space is space]


def base_name(model: Model) -> str:
    """A model's name without that of its space: light-sdxl is light in another space."""
    return model.name.removesuffix(f"-{model.space.name}")


def is_same_network(one: str, other: str) -> bool:
    """Whether names are those of the same network, perhaps for different spaces."""
    models = [MODELS[name] for name in (one, other) if name in MODELS]
    return len(models) == 2 and base_name(models[0]) == base_name(models[1])


def counterpart(name: str, space: LatentSpace) -> Model | None:
    """The model that is in a space what the named one is in its own, or None."""
    return next(
        (m for m in MODELS.values() if m.space is space and is_same_network(name, m.name)), None
    )


def small_decoder(space: LatentSpace) -> Model | None:
    """The small decoder of a space's latents, that of its autoencoder if it has one; or None."""
    autoencoders = (m for m in MODELS.values() if m.kind == "autoencoder" and m.space is space)
    return next(autoencoders, None) or counterpart("embedded", space)


def coders(space: LatentSpace) -> list[Model]:
    """The entropy coders of a space's latents; those of SD 1.x if it has none of its own."""
    all_coders = [m for m in MODELS.values() if m.kind == "coder"]
    return [m for m in all_coders if m.space is space] or [m for m in all_coders if m.space is SD1]


def full_coder(model: Model) -> Model:
    """The coder of a model's latents that has both lattices: that of its files, if it can."""
    both = (one for one in coders(model.space) if one.has_trellis)
    return MODELS[model.coder] if MODELS[model.coder].has_trellis else next(both)


def coder(number: int, space: LatentSpace) -> Model | None:
    """The coder that a number in a .lat file of a space stands for; None if it is unknown here."""
    return next((m for m in coders(space) if m.number == number), None)


def encoder_of_space(name: str, space: LatentSpace) -> Model:
    """The encoder that is in a space what the named one is in SD 1.x.

    Raises: WeightsError if there is none; UsageError if the named one is of a third space.
    """
    given = named(name, "encoder")
    if given.space not in (SD1, space):
        raise UsageError(f"{name} is for the latents of {given.space.title}, not of {space.title}")
    model = counterpart(given.name, space)
    if model is None:
        others = " or ".join(encoders(space))
        raise WeightsError(
            f"dynenc has no encoder {name} for {space.title}",
            hint=f"use {others}"
            if others
            else "encode with its VAE (`dynenc cache`), or import its latents (`dynenc import`)",
        )
    return model


def encoder_model(encoder: str) -> Model:
    """The model named in files that an encoder makes: one of `IMPORTED_MODELS` for a weight file.

    Raises: WeightsError if it is neither a known name nor a .safetensors file; UsageError if it is
    not a string.
    """
    encoder = checked_name("an encoder", encoder)
    if not is_weight_file(encoder):
        return named(encoder, "encoder")
    return IMPORTED_MODELS.get(_space_of(encoder).name, IMPORTED)


def _space_of(file: str) -> LatentSpace:
    """The latent space of the weights in a file; SD 1.x unless it says another."""
    try:
        model = MODELS.get(metadata_of(file).get("model", ""))
    except WeightsError:  # reported when the weights are read
        model = None
    return model.space if model else SD1


def metadata_of(file: str | Path) -> dict[str, str]:
    """The metadata of a safetensors file, without reading its tensors. Raises: WeightsError."""
    try:
        with safe_open(file, "np") as tensors:
            return dict(tensors.metadata() or {})
    except (OSError, SafetensorError) as exc:
        raise WeightsError(f"{file} cannot be read as safetensors: {exc}") from exc


def is_weight_file(name: str) -> bool:
    """Whether a name is the path of a weight file, existing or not, rather than a model's name."""
    return name.endswith(".safetensors")


def _is(model: Model, kind: Kind) -> bool:
    """Whether a model is of a kind; an autoencoder is also an encoder and a decoder."""
    return model.kind == kind or (model.kind == "autoencoder" and kind in ("encoder", "decoder"))


def latent_model(number: int) -> Model | None:
    """The model of the latents of a .lat file; None if this dynenc does not have it."""
    return next((m for m in LATENT_MODELS if m.number == number), None)


def folder() -> Path:
    """The folder of the weight files: inside the installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "weights"
    return inside if inside.is_dir() else package.parent / "weights"


def read_file(model: Model) -> bytes:
    """The bytes of a model's weight file; raises WeightsError if it is missing or altered."""
    path = folder() / model.file
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise WeightsError(f"{path} cannot be read ({exc.strerror}): reinstall dynenc") from exc
    if hashlib.sha256(data).hexdigest() != model.sha256:
        raise WeightsError(
            f"{path} is not the file that this dynenc was released with: reinstall dynenc"
        )
    return data
