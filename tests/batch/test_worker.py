"""How workers are started: what they import, and what their parent keeps."""

import multiprocessing
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy  # noqa: F401  # its first import adds warning filters
import pytest
from PIL import Image

import dynenc
from dynenc.batch import forking, local_engine, worker

N_IMAGES = 10
OPEN_FILES = Path("/proc/self/fd")
ROOT = str(Path(dynenc.__file__).parents[1])
CONVERT = (
    "import dynenc; summary = dynenc.convert('encode', '../in', '../out', encoder='nano', jobs=2); "
    f"assert summary.done == {N_IMAGES}"
)


@pytest.fixture
def images(tmp_path):
    (folder := tmp_path / "in").mkdir()
    for i in range(N_IMAGES):
        Image.new("RGB", (16, 16), (20 * i, 0, 0)).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def here(tmp_path):
    """A current folder whose modules leave a trace when they are imported."""
    (folder := tmp_path / "here").mkdir()
    for name in ("torch", "random", "numpy", "signal", "PIL", "sitecustomize", "usercustomize"):
        trace = f"open({str(tmp_path / 'trace')!r}, 'a').write(__file__)\n"
        (folder / f"{name}.py").write_text(trace)
    return folder


ENCODE = ["encode", "../in", "-o", "../out", "-e", "nano", "-j", "2"]


@pytest.mark.parametrize(
    "arguments",
    [["-m", "dynenc", *ENCODE], ["../spawn.py"], ["../late.py"]],
    ids=["-m", "spawn", "path entries added later"],
)
def test_workers_import_nothing_from_the_current_folder(images, here, tmp_path, arguments):
    (tmp_path / "spawn.py").write_text(
        f"import multiprocessing; multiprocessing.set_start_method('spawn'); {CONVERT}"
    )
    (tmp_path / "late.py").write_text(  # the parent has imported what it needs by then
        f"import sys, dynenc.codec; sys.path[:0] = ['', '.', {str(here)!r}]; {CONVERT}"
    )
    environment = {**os.environ, "PYTHONPATH": ROOT}
    subprocess.run([sys.executable, *arguments], cwd=here, env=environment, check=True)
    assert len(list((tmp_path / "out").iterdir())) == N_IMAGES
    assert not (tmp_path / "trace").exists()


def test_dynenc_is_found_where_the_parent_has_it_even_if_that_is_the_current_folder(images):
    environment = {name: os.environ[name] for name in os.environ if name != "PYTHONPATH"}
    code = CONVERT.replace("../in", str(images)).replace("../out", str(images.parent / "out"))
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)


def test_the_host_process_stays_as_it_was(images, tmp_path):
    main, environment = sys.modules["__main__"], dict(os.environ)
    filters, limit = list(warnings.filters), Image.MAX_IMAGE_PIXELS
    seen = []

    def look(*_):
        seen.append((sys.modules["__main__"] is main, dict(os.environ) == environment))

    dynenc.convert("encode", images, tmp_path / "out", encoder="nano", jobs=2, on_result=look)
    assert seen == [(True, True)] * N_IMAGES
    assert (list(warnings.filters), Image.MAX_IMAGE_PIXELS) == (filters, limit)
    assert multiprocessing.active_children() == []


def convert_in_pool(folder):
    return dynenc.convert("encode", folder, folder.parent / "out", encoder="nano", jobs=2).done


def test_within_a_daemonic_process_below_a_long_tmpdir_and_without_semaphores(
    images, tmp_path, monkeypatch
):
    (long := tmp_path / ("t" * 105)).mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    code = (
        "import multiprocessing, sys; from pathlib import Path\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_worker import convert_in_pool\n"
        "if __name__ == '__main__':\n"
        "    import _multiprocessing, dynenc.codec\n"
        "    with multiprocessing.get_context('fork').Pool(1) as pool:\n"
        "        del _multiprocessing.SemLock\n"
        f"        assert pool.apply(convert_in_pool, [Path({str(images)!r})]) == {N_IMAGES}\n"
    )
    (script := tmp_path / "host.py").write_text(code)
    subprocess.run([sys.executable, script], check=True)


@pytest.mark.parametrize("jobs", [2, None])
def test_this_process_does_the_work_if_no_worker_starts(
    images, tmp_path, monkeypatch, caplog, jobs
):
    caplog.set_level("DEBUG", "dynenc")
    monkeypatch.setattr(local_engine, "cores", lambda: 2)
    for name, command in {"missing": ["/no/such/python"], "broken": ["false"]}.items():
        monkeypatch.setattr(worker, "command", lambda _, command=command: command)
        summary = dynenc.convert("encode", images, tmp_path / name, encoder="nano", jobs=jobs)
        assert (summary.done, summary.failed) == (N_IMAGES, 0)
        assert "this process does the work" in caplog.text
        caplog.clear()
    monkeypatch.undo()
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert dynenc.convert("encode", images, tmp_path / "frozen", jobs=2).done == N_IMAGES


def test_workers_start_by_themselves_where_forking_is_not_safe(images, tmp_path, monkeypatch):
    for can_fork in (True, False):
        monkeypatch.setattr(forking, "CAN_FORK", can_fork)
        out = tmp_path / str(can_fork)
        assert dynenc.convert("encode", images, out, encoder="nano", jobs=2).done == N_IMAGES
    written = [
        sorted(path.read_bytes() for path in (tmp_path / name).iterdir())
        for name in ("True", "False")
    ]
    assert written[0] == written[1]


@pytest.mark.skipif(not OPEN_FILES.exists(), reason="no list of open files here")
def test_ctrl_c_while_workers_start_leaves_neither_tracebacks_nor_open_files(
    images, tmp_path, monkeypatch, capfd
):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(forking.WorkerFactory, "_answer", interrupt)
    before = len(list(OPEN_FILES.iterdir()))
    with pytest.raises(KeyboardInterrupt):
        dynenc.convert("encode", images, tmp_path / "out", encoder="nano", jobs=2)
    assert len(list(OPEN_FILES.iterdir())) <= before  # earlier tests may have left some
    time.sleep(0.5)  # the worker reports by itself, after its parent has gone on
    assert capfd.readouterr().err == ""
