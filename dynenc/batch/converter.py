"""Files: a picture to a .lat file and back, one by one or the members of a tar shard.

The way of a file is: read, convert (files of equal size together), write.
"""

import io
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import AvifImagePlugin, Image

from dynenc import metrics, registry
from dynenc.batch.plan import Job, input_suffixes
from dynenc.batch.records import Result, Roundtrip, Settings
from dynenc.codec import Codec, Encoded, require_sd
from dynenc.coding import bitstream, quantize
from dynenc.coding.lat_file import LatFile, model_of, read_bytes
from dynenc.coding.rate_control import Goal
from dynenc.errors import (
    BitstreamError,
    DeviceError,
    DiskFull,
    DynencError,
    ImageError,
    LatentsError,
    OutputError,
    OutputExists,
    UsageError,
    WeightsError,
)
from dynenc.imaging import extras, formats, image, notes, pixels, preview, save
from dynenc.imaging.extras import Extras
from dynenc.interop import latent_files
from dynenc.io import shards, storage
from dynenc.io.names import suffix_of, with_suffix
from dynenc.latent_space import SD1
from dynenc.networks import external_vae

FATAL = (WeightsError, DeviceError, UsageError, DiskFull)  # all other files would fail as well
GPU_BATCH = 16  # pictures in one pass; on a CPU one at a time is as fast and needs less memory
PICTURE_OUT = ("decode", "roundtrip")  # tasks
WRITERS = 4  # threads that write; most of the time they wait for the disk
BATCH_PIXELS = 64_000_000  # in one pass
SMALL = 2**20  # bytes; larger members of archives that are not converted are copied in chunks
MAX_INPUT = 2**30  # bytes of a file that must be read whole, such as a member of an archive

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Input:
    """A file to convert, or to copy as it is."""

    source: str
    target: str
    data: bytes | None = None  # None: read it from `source`
    member: str = ""  # name of the output in a shard
    mtime: float = 0  # of the member it is made of, s
    convert: bool = True


@dataclass(frozen=True, slots=True)
class Loaded:
    """An input, read and understood."""

    value: Any  # Pillow image; of a .lat file `LatFile`; `latent_files.Foreign`
    n_bytes: int  # of the input
    shape: tuple[int, ...]  # equal ones may share a pass of the network
    extras: Extras = Extras()  # noqa: RUF009  # frozen
    note: str = ""  # what of the picture is lost


@dataclass(frozen=True, slots=True)
class Made:
    """An output that is not written yet."""

    data: bytes
    width: int  # px
    height: int  # px
    n_bytes_in: int
    n_lat: int  # bytes of the .lat file
    figures: Roundtrip | None = None
    note: str = ""  # for the user
    preview: Image.Image | None = None


class Converter:
    """Converts files with networks that are loaded once, when first used.

    Raises: WeightsError, DeviceError, UsageError or DiskFull at any time if all files would fail;
    the errors of one file become its result.
    """

    def __init__(
        self, settings: Settings, on_step: Callable[[int, int], None] | None = None
    ) -> None:
        if settings.threads:
            torch.set_num_threads(settings.threads)
            AvifImagePlugin.DEFAULT_MAX_THREADS = settings.threads
        self.settings = settings
        self.on_step = on_step
        self.codec = Codec(settings.encoder, settings.decoder, settings.device)
        self.batch_size = settings.batch_size or (
            1 if self.codec.device.type == "cpu" else GPU_BATCH
        )
        self.window = 2 * self.batch_size if self.batch_size > 1 else 1  # files read at a time
        self.writers = ThreadPoolExecutor(WRITERS)
        self.warm = False
        self.note = ""  # which decoder "auto" is, for the user
        own = settings.task == "roundtrip" and self.codec.model.kind == "autoencoder"
        if settings.task in PICTURE_OUT and settings.decoder == "auto" and not own:
            choice = external_vae.resolve(settings.decoder)
            self.note = f"decoder: {choice.name}, {choice.note}"

    def run(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, list[Result]]]:
        """Convert; yield each job with a result for every picture of it."""
        jobs = list(jobs)
        inputs = {Input(job.source, job.target): job for job in jobs if not job.is_shard}
        under_way: deque[tuple[Input, Future[Made | DynencError]]] = deque()
        try:
            for item, made in self._convert(inputs):
                task = self.writers.submit(self._attempt, self._write, item, made)
                under_way.append((item, task))
                if len(under_way) > WRITERS:
                    item, future = under_way.popleft()
                    yield inputs[item], [self._result(item, future.result())]
            while under_way:
                item, future = under_way.popleft()
                yield inputs[item], [self._result(item, future.result())]
        finally:  # however it ends, no file is left half-written
            wait([future for _, future in under_way])
        for job in jobs:
            if job.is_shard:
                outcome = self._attempt(self._shard, job)
                if isinstance(outcome, DynencError):
                    outcome = [self._result(Input(job.source or job.target, job.target), outcome)]
                yield job, outcome

    def _shard(self, job: Job) -> list[Result]:
        """Convert the members of an archive, or pack pictures into a tar; others are copied."""
        results: list[Result] = []
        target, overwrite = job.target, self.settings.overwrite
        storage.refuse_existing(target, overwrite)
        with storage.writing(target, overwrite) if target else nullcontext() as file:
            writer = shards.Writer(file) if file else None
            for item, made in self._members(job, writer):
                if isinstance(made, Made) and writer:
                    try:
                        writer.add(item.member, made.data, item.mtime)
                    except OutputError as exc:  # only this one: OSError ends the shard
                        made = exc
                if item.convert or isinstance(made, DynencError):
                    where = f"{target}/{item.member}" if target else ""
                    results.append(self._result(Input(item.source, where), made))
            if writer:
                writer.close()
        return results

    def _members(
        self, job: Job, writer: shards.Writer | None
    ) -> Iterator[tuple[Input, Made | DynencError]]:
        """What becomes of the members of a shard, in their order; large others are copied here."""
        if job.members:
            inputs = (Input(source, job.target, member=name) for source, name in job.members)
            yield from self._convert(inputs)
            return
        suffixes = input_suffixes(self.settings.task)
        window: list[Input] = []
        with storage.reading(job.source) as file:
            for member in shards.members(file, job.source):
                source = f"{job.source}/{member.name}"
                if suffix_of(member.name).lower() in suffixes:
                    name = with_suffix(member.name, self.settings.suffix)
                    limit, convert = MAX_INPUT, True
                else:
                    name, limit, convert = member.name, SMALL, False
                item = Input(source, job.target, None, name, member.mtime, convert)
                if convert or member.size <= limit:
                    data = self._attempt(
                        storage.read_at_most, member.file, limit, source, ImageError
                    )
                    if isinstance(data, bytes):
                        window.append(replace(item, data=data))
                        if len(window) >= self.window:
                            yield from self._convert(window)
                            window.clear()
                        continue
                    error: DynencError | None = data
                else:
                    error = None
                yield from self._convert(window)  # what is before it in the archive
                window.clear()
                if error is None and writer:
                    error = self._attempt(writer.copy, member)
                if error:
                    yield item, error
            yield from self._convert(window)

    def _convert(self, inputs: Iterable[Input]) -> Iterator[tuple[Input, Made | DynencError]]:
        """Read, convert in groups of one shape, and yield in the order of the inputs."""
        rest = iter(inputs)
        while window := list(islice(rest, self.window)):
            outcome: dict[int, Made | DynencError] = {}
            groups: dict[tuple[int, ...], list[tuple[int, Loaded]]] = {}
            for i, item in enumerate(window):
                if not item.convert:
                    outcome[i] = Made(item.data or b"", 0, 0, 0, 0)
                    continue
                loaded = self._attempt(self._load, item)
                if isinstance(loaded, DynencError):
                    outcome[i] = loaded
                else:
                    groups.setdefault(loaded.shape, []).append((i, loaded))
            for shape, group in groups.items():
                size = max(1, min(self.batch_size, BATCH_PIXELS // (shape[0] * shape[1])))
                for start in range(0, len(group), size):
                    part = group[start : start + size]
                    made = self._make([window[i] for i, _ in part], [one for _, one in part])
                    outcome.update(zip([i for i, _ in part], made, strict=True))
            yield from ((item, outcome[i]) for i, item in enumerate(window))

    def _load(self, item: Input) -> Loaded:
        task, blob = self.settings.task, item.data
        if not item.member:
            if task in PICTURE_OUT and item.target:
                save.picture_format(item.target)
            storage.refuse_existing(item.target, self.settings.overwrite)
        if task == "import":
            blob = read_foreign(item.source) if blob is None else blob
            foreign = latent_files.read(blob, item.source, self.settings.scale)
            return Loaded(foreign, len(blob), tuple(foreign.latents.shape[-2:]))
        if task in ("decode", "export"):
            blob = read_bytes(item.source) if blob is None else blob
            lat = LatFile.parse(blob, max_pixels=self.settings.max_pixels)
            height, width = lat.symbols.shape[-2:]
            shape = SD1.patch * height, SD1.patch * width, lat.header.model_id
            return Loaded(lat, len(blob), shape, extras_of(lat))
        if blob is None and storage.is_sequential(item.source):
            blob = read_picture(item.source)
        with notes.collected() as lost:
            picture = image.open_image(
                item.source if blob is None else blob,
                name=item.source,
                max_pixels=self.settings.max_pixels,
                keep_metadata=self.settings.keep_metadata,
            )
        width, height = (-(-side // SD1.patch) * SD1.patch for side in picture.size)
        n_bytes = Path(item.source).stat().st_size if blob is None else len(blob)
        return Loaded(picture, n_bytes, (height, width), note=notes.joined(*lost))

    def _make(self, items: list[Input], group: list[Loaded]) -> Sequence[Made | DynencError]:
        """The outputs of files of one shape; one by one if they fail together."""
        tasks = {
            "encode": self._encode,
            "decode": self._decode,
            "roundtrip": self._roundtrip,
            "export": self._export,
            "import": self._import,
        }
        made = self._attempt(tasks[self.settings.task], items, group)
        if not isinstance(made, DynencError):
            return made
        if len(group) == 1:
            return [made]
        return [self._make([item], [one])[0] for item, one in zip(items, group, strict=True)]

    def _encode(self, _: list[Input], group: list[Loaded]) -> list[Made]:
        encoded = self._encode_batch([one.value for one in group])
        return [
            Made(
                made.blob,
                one.value.width,
                one.value.height,
                one.n_bytes,
                len(made.blob),
                note=notes.joined(one.note, made.note),
            )
            for made, one in zip(encoded, group, strict=True)
        ]

    def _encode_batch(self, pictures: Sequence[Image.Image]) -> list[Encoded]:
        settings = self.settings
        return self.codec.encode_batch(
            pictures,
            settings.goal,
            settings.effort,
            keep_metadata=settings.keep_metadata,
            on_step=self.on_step,
        )

    def _decode(self, items: list[Input], group: list[Loaded]) -> list[Made]:
        pictures = self.codec.decode_batch([one.value for one in group])
        name = self.codec.decoder_of(group[0].value.model).name
        return [
            self._saved(item, picture, one, one.n_bytes, name, one.extras)
            for item, picture, one in zip(items, pictures, group, strict=True)
        ]

    def _export(self, _: list[Input], group: list[Loaded]) -> list[Made]:
        made = []
        for one in group:
            file: LatFile = one.value
            require_sd(file)
            header, latents = file.header, torch.from_numpy(file.latents)[None]
            data = latent_files.write(self.settings.suffix, header, latents)
            note = "its alpha is left out" if one.extras.alpha else ""
            n_bytes = one.n_bytes
            made.append(Made(data, header.width, header.height, n_bytes, n_bytes, note=note))
        return made

    def _import(self, _: list[Input], group: list[Loaded]) -> list[Made]:
        made = []
        for one in group:
            foreign: latent_files.Foreign = one.value
            width, height = foreign.width, foreign.height
            known = foreign.step_q if self.settings.keep_step else None
            model, latents = foreign.made_by, foreign.latents[0].numpy()
            if known is not None:
                file = LatFile.of_quantized(latents, (width, height), known, model)
            else:
                quality, trellis = self.settings.goal.value, model.has_trellis
                step_q = quantize.quality_to_step(quality, has_trellis=trellis)
                file = LatFile.of_latents(latents, (width, height), step_q, model)
            blob = file.to_bytes()
            made.append(Made(blob, width, height, one.n_bytes, len(blob), note=foreign.note))
        return made

    def _roundtrip(self, items: list[Input], group: list[Loaded]) -> list[Made]:
        return [self._measure(item, one) for item, one in zip(items, group, strict=True)]

    def _measure(self, item: Input, one: Loaded) -> Made:
        """Encode and decode one picture; the networks run once before the clock starts."""
        picture: Image.Image = one.value
        codec, goal = self.codec, self.settings.goal
        if not self.warm:
            codec.decode(codec.encode(picture.crop((0, 0, 64, 64))))
            self.warm = True
        start = time.perf_counter()
        [encoded] = self._encode_batch([picture])
        blob, middle = encoded.blob, time.perf_counter()
        decoded = codec.decode(blob, max_pixels=sys.maxsize)
        done = time.perf_counter()
        tensors = [image.to_tensor(pixels.to_rgb(each)) for each in (decoded, picture)]
        width, height = picture.size
        figures = Roundtrip(
            image=item.source,
            width=width,
            height=height,
            encoder=codec.encoder_name,
            decoder=codec.decoder_of(codec.model).name,
            quality=goal.value if goal.kind == "quality" else None,
            effort=self.settings.effort,
            n_bytes=len(blob),
            bpp=metrics.bpp(len(blob), width, height),
            ratio_raw=width * height * 3 / len(blob),
            ratio_file=one.n_bytes / len(blob),
            psnr_db=metrics.psnr_db(*tensors),
            ms_ssim=metrics.ms_ssim(*tensors),
            encode_s=middle - start,
            decode_s=done - middle,
        )
        if item.target:
            made = self._saved(
                item, decoded, one, len(blob), figures.decoder, figures=figures, note=encoded.note
            )
        else:
            note = notes.joined(one.note, encoded.note)
            made = Made(b"", width, height, one.n_bytes, len(blob), figures, note)
        if columns := self.settings.preview:
            made = replace(made, preview=preview.side_by_side(picture, decoded, columns))
        return made

    def _saved(
        self,
        item: Input,
        picture: Image.Image,
        one: Loaded,
        n_lat: int,
        decoder_name: str,
        extras: Extras = Extras(),  # noqa: B008  # frozen
        figures: Roundtrip | None = None,
        note: str = "",
    ) -> Made:
        """A picture with its extras as the bytes of a file that says which decoder made it."""
        name = item.member or item.target
        with notes.collected() as lost:
            data = save.picture_bytes(picture, extras, name, decoder_name)
        note = notes.joined(one.note, note, *lost)
        return Made(data, picture.width, picture.height, one.n_bytes, n_lat, figures, note)

    def _write(self, item: Input, made: Made | DynencError) -> Made | DynencError:
        if isinstance(made, DynencError) or not item.target:
            return made
        with storage.writing(item.target, self.settings.overwrite) as file:
            file.write(made.data)
        return made

    def _result(self, item: Input, made: Made | DynencError) -> Result:
        if isinstance(made, OutputExists) and self.settings.existing == "skip":
            return Result(item.source, item.target, "skipped", error=made)
        if isinstance(made, DynencError):
            return Result(item.source, item.target, "failed", error=made)
        return Result(
            item.source,
            item.target,
            "done",
            n_bytes_in=made.n_bytes_in,
            n_bytes_out=len(made.data),
            width=made.width,
            height=made.height,
            bpp=metrics.bpp(made.n_lat, made.width, made.height),
            figures=made.figures,
            note=made.note,
            preview=made.preview,
        )

    def _attempt(self, function: Callable[..., T], *arguments: Any) -> T | DynencError:
        """Call; return the error that concerns one file only, and raise any other."""
        try:
            return function(*arguments)
        except FATAL:
            raise
        except DynencError as exc:
            return exc
        except Exception as exc:
            if self.settings.strict:
                raise
            return DynencError(f"it fails with {type(exc).__name__}: {exc}")


def is_current(job: Job, settings: Settings) -> bool:
    """Whether an existing output is what this job would write: newer, and of the same settings.

    Of a shard the first converted member is looked at. BMP and other formats without metadata do
    not tell which decoder made them, and count as made by another.
    """
    sources = [source for source, _ in job.members] or [job.source]
    written = storage.modified(job.target)
    for source in sources:
        changed = storage.modified(source)
        if written is not None and changed is not None and changed > written:
            return False
    try:
        with storage.reading(job.target) as file:
            if not job.is_shard:
                data = storage.read_at_most(file, MAX_INPUT, job.target)
                return _is_made_so(data, settings)
            for member in shards.members(file, job.target):
                if suffix_of(member.name).lower() == settings.suffix.lower():
                    data = storage.read_at_most(member.file, MAX_INPUT, member.name)
                    return _is_made_so(data, settings)
    except (OSError, DynencError):
        pass
    return False


def _is_made_so(data: bytes, settings: Settings) -> bool:
    if settings.task == "export":
        return True  # there is nothing to choose but the format, which its name says
    if settings.task == "import":
        header = bitstream.read(data, sys.maxsize).header
        return settings.keep_step or _meets(settings.goal, header, len(data))
    if settings.task == "encode":
        header = bitstream.read(data, sys.maxsize).header
        is_so = header.model_id == registry.encoder_model(settings.encoder).number
        return is_so and _meets(settings.goal, header, len(data))
    with formats.open_file(io.BytesIO(data), "the output") as picture:
        made_by: str | None = picture.getexif().get(save.SOFTWARE)
    names = [external_vae.resolve(settings.decoder).name, *registry.names("autoencoder")]
    return made_by in [save.software(name) for name in names]


def _meets(goal: Goal, header: bitstream.Header, n_bytes: int) -> bool:
    """Whether a file is as asked for, as far as it tells: only decoding would tell its PSNR."""
    if goal.kind == "quality":
        has_trellis = model_of(header).has_trellis
        return header.step_q == quantize.quality_to_step(goal.value, has_trellis=has_trellis)
    bpp = metrics.bpp(n_bytes, header.width, header.height)
    return goal.kind != "dB" and not goal.note(bpp if goal.kind == "bpp" else n_bytes)


def info_file(source: str, *, max_pixels: int) -> tuple[LatFile, int]:
    """A .lat file and its size in bytes; all of it is checked."""
    blob = read_bytes(source)
    file = LatFile.parse(blob, max_pixels=max_pixels)
    extras_of(file)
    return file, len(blob)


def extras_of(file: LatFile) -> Extras:
    """What the image of a file has beside its colours; raises Corrupt if that is damaged."""
    return extras.from_chunks(file.chunks, file.header.width, file.header.height)


def verify(paths: list[str], *, max_pixels: int) -> Iterator[tuple[str, str]]:
    """Check .lat files, and all those in folders, whole but without decoding pixels.

    Yields: each file and what is wrong with it, empty if nothing is. A folder that cannot be read
        or holds no .lat file is wrong, too: what was not checked must not pass for good.
    """
    for path in paths:
        if not Path(path).is_dir():
            yield path, _fault(path, max_pixels)
            continue
        unread: list[OSError] = []
        walk = list(os.walk(path, onerror=unread.append))
        yield from ((e.filename, f"cannot be read: {e.strerror}") for e in unread)
        names = (Path(folder, name) for folder, _, files in walk for name in files)
        for file in (found := sorted(name for name in names if name.suffix.lower() == ".lat")):
            fault = _fault(str(file), max_pixels) if file.is_file() else "is not a file"
            yield str(file), fault
        if not found and not unread:
            yield path, "holds no .lat file"


def _fault(source: str, max_pixels: int) -> str:
    try:
        info_file(source, max_pixels=max_pixels)
    except BitstreamError as exc:
        return str(exc).removeprefix(f"{source} ")
    return ""


def read_picture(source: str) -> bytes:
    """The bytes of a picture that cannot be read in any order: a URL, a FIFO or stdin."""
    try:
        with storage.reading(source) as file:
            return storage.read_at_most(file, MAX_INPUT, source, ImageError)
    except OSError as exc:
        raise ImageError(f"{source} cannot be read: {exc.strerror}") from exc


def read_foreign(source: str) -> bytes:
    """The bytes of another program's file of latents, a URL or stdin; raises LatentsError."""
    try:
        with storage.reading(source) as file:
            return storage.read_at_most(file, latent_files.MAX_BYTES, source, LatentsError)
    except OSError as exc:
        raise LatentsError(f"{source} cannot be read: {exc.strerror}") from exc
