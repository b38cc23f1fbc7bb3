"""Worker processes that crash, hang or are killed; the networks play no part here."""

import sys
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

import dynenc
from dynenc.batch import worker
from dynenc.errors import DynencError, UsageError, WeightsError

N_IMAGES = 12


@pytest.fixture
def images(tmp_path):
    (folder := tmp_path / "in").mkdir()
    for i in range(N_IMAGES):
        Image.new("RGB", (16 + 8 * (i % 3), 16), (20 * i, 0, 0)).save(folder / f"{i:02}.png")
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def encode(source, target, **options):
    return dynenc.convert("encode", source, target, encoder="nano", **options)


def test_processes_threads_and_batches_give_the_same_bytes(images, tmp_path):
    codec = dynenc.Codec("nano", device="cpu")
    expected = {}
    for path in sorted(images.iterdir()):
        expected[f"{path.stem}.lat"] = codec.encode(Image.open(path))
    for name, options in {
        "one": {"jobs": 1},
        "batch": {"jobs": 1, "batch_size": 4},
        "pool": {"jobs": 2, "batch_size": 2},
    }.items():
        summary = encode(images, tmp_path / name, **options)
        assert (summary.done, summary.finished, summary.jobs) == (N_IMAGES,) * 3
        assert contents(tmp_path / name) == expected


def test_batches_decode_to_the_same_pixels(images, tmp_path):
    encode(images, tmp_path / "lat", jobs=1)
    for size in (1, 5):
        dynenc.convert(
            "decode",
            tmp_path / "lat",
            tmp_path / str(size),
            decoder="embedded",
            jobs=1,
            batch_size=size,
        )
    one, many = contents(tmp_path / "1"), contents(tmp_path / "5")
    assert one.keys() == many.keys()
    for name in one:
        pair = [Image.open(tmp_path / size / name) for size in ("1", "5")]
        differ = max(abs(a - b) for a, b in zip(*(image.tobytes() for image in pair), strict=True))
        assert differ <= 1


@pytest.fixture
def crashing(monkeypatch, tmp_path):
    """A pipeline whose workers die over images named here, so often."""

    def install(**deaths):
        for name, times in deaths.items():
            (tmp_path / f"deaths-{name}").write_text(str(times))
        monkeypatch.setenv("DEATHS", str(tmp_path))
        program = Path(__file__).parents[1] / "helpers" / "crashing.py"
        monkeypatch.setattr(
            worker, "command", lambda entry: [sys.executable, str(program), entry, *sys.path]
        )

    return install


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_worker_that_dies_is_replaced(images, tmp_path, crashing, batch_size):
    crashing(n03=1, n07=9)
    results = []
    summary = encode(
        images,
        tmp_path / "out",
        jobs=2,
        batch_size=batch_size,
        on_result=lambda r, _: results.append(r),
    )
    assert (summary.done, summary.failed) == (N_IMAGES - 1, 1)
    assert len({result.source for result in results}) == len(results) == N_IMAGES
    (failure,) = summary.failures
    assert "07.png" in failure.reason
    assert "killed" in failure.reason
    assert len(contents(tmp_path / "out")) == N_IMAGES - 1


@pytest.mark.parametrize("existing", ["skip", "refuse"])
def test_what_a_worker_wrote_before_it_died_counts_as_done(images, tmp_path, crashing, existing):
    crashing(w03=1)
    summary = encode(images, tmp_path / "out", jobs=2, existing=existing)
    assert (summary.done, summary.skipped, summary.failed) == (N_IMAGES, 0, 0)
    before = contents(tmp_path / "out")
    for name in ("05.lat", "06.lat"):
        (tmp_path / "out" / name).unlink()
    crashing(w05=1)
    summary = encode(images, tmp_path / "out", jobs=2, existing=existing, quality=9)
    assert (summary.done, summary.skipped + summary.failed) == (2, N_IMAGES - 2)
    changed = {name for name, data in contents(tmp_path / "out").items() if data != before[name]}
    assert changed == {"05.lat", "06.lat"}


def test_missing_weights_end_the_run(images, tmp_path):
    with pytest.raises(WeightsError):
        dynenc.convert("encode", images, tmp_path / "out", encoder="huge", jobs=2)
    assert contents(tmp_path / "out") == {}


def test_an_error_of_the_caller_ends_the_workers_at_once(images, tmp_path):
    class Stop(Exception):
        pass

    def stop(*_):
        stop.at = time.monotonic()
        raise Stop

    with pytest.raises(Stop):
        encode(images, tmp_path / "out", jobs=2, on_result=stop)
    assert time.monotonic() - stop.at < 2
    assert all(not name.startswith(".") for name in contents(tmp_path / "out"))
    assert encode(images, tmp_path / "out", jobs=1).done > 0


@pytest.mark.parametrize(
    "options",
    [{"engine": "abacus"}, {"existing": "perhaps"}, {"quality": 101}, {"quality": float("nan")}],
)
def test_options_that_make_no_sense(images, tmp_path, options):
    with pytest.raises(UsageError):
        dynenc.convert("encode", images, tmp_path / "out", **options)
    with pytest.raises(UsageError):
        dynenc.convert("ponder", images)


def test_errors_nobody_expects_fail_one_file_only(images, tmp_path, monkeypatch):
    from dynenc.batch.tasks import load

    real = load.open_image

    def open_image(source, **options):
        if str(source).endswith("05.png"):
            raise ZeroDivisionError("a bug")
        return real(source, **options)

    monkeypatch.setattr(load, "open_image", open_image)
    summary = encode(images, tmp_path / "out", jobs=1)
    assert (summary.done, summary.failed) == (N_IMAGES - 1, 1)
    assert "05.png: unexpected ZeroDivisionError: a bug" in summary.failures[0].reason
    with pytest.raises(ZeroDivisionError):  # of a file named by itself a bug shows its traceback
        encode(images / "05.png", tmp_path / "x.lat")


def test_one_file_raises_its_error_and_leaves_no_threads(tmp_path):
    before = set(threading.enumerate())
    with pytest.raises(DynencError, match="does not exist") as caught:
        encode(tmp_path / "none.png", None)
    assert caught.tb  # keeps what the call made alive
    assert set(threading.enumerate()) <= before


def test_memory_urls_are_converted_in_this_process(images):
    import fsspec

    fsspec.filesystem("memory").put(str(images), "/photos", recursive=True)
    summary = encode("memory://photos", "memory://latents")
    assert (summary.done, summary.failed) == (N_IMAGES, 0)
    again = encode("memory://photos", "memory://latents")
    assert (again.done, again.skipped) == (0, N_IMAGES)
    summary = dynenc.convert(
        "decode", "memory://latents/0*.lat", "memory://back", decoder="embedded"
    )
    assert summary.done == 10
