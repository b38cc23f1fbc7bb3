"""The settings of a process: tuned where it is dynenc's own, untouched in a host program."""

import gc
import os
import subprocess
import sys
import threading
import warnings

import pytest
import torch
from PIL import AvifImagePlugin, Image
from threadpoolctl import ThreadpoolController

from dynenc import Codec
from dynenc.coding.entropy import load_coder
from dynenc.errors import DynencError
from dynenc.runtime import ONE_THREAD_PIXELS, threads_for, tuned_process


@pytest.fixture
def two_threads():
    """Torch and numpy have two threads for the time of a test."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with ThreadpoolController().select(user_api="blas").limit(limits=2):
        yield
    torch.set_num_threads(before)


def blas_threads():
    """How many threads numpy's products may take."""
    pools = ThreadpoolController().select(user_api="blas").info()
    return {pool["num_threads"] for pool in pools}


def test_small_images_take_one_thread_in_a_process_of_our_own(two_threads):
    with tuned_process():
        for pixels, expected in ((1, 1), (ONE_THREAD_PIXELS, 1), (ONE_THREAD_PIXELS + 1, 2)):
            with threads_for(pixels):
                assert torch.get_num_threads() == expected
            assert torch.get_num_threads() == 2
        with pytest.raises(KeyError), threads_for(1):
            raise KeyError
        assert torch.get_num_threads() == 2
    with threads_for(1):
        assert torch.get_num_threads() == 2


def test_a_worker_keeps_to_its_threads(two_threads):
    before = AvifImagePlugin.DEFAULT_MAX_THREADS
    with tuned_process(threads=1), threads_for(ONE_THREAD_PIXELS + 1):
        assert (torch.get_num_threads(), AvifImagePlugin.DEFAULT_MAX_THREADS) == (1, 1)
    assert (torch.get_num_threads(), AvifImagePlugin.DEFAULT_MAX_THREADS) == (2, before)


def state():
    """What a library call must leave to its host."""
    return (
        torch.get_num_threads(),
        blas_threads(),
        AvifImagePlugin.DEFAULT_MAX_THREADS,
        Image.MAX_IMAGE_PIXELS,
        list(warnings.filters),
        sys.modules["__main__"],
        dict(os.environ),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
    )


def test_calls_from_several_threads_leave_a_host_program_as_it_was(two_threads):
    codec, image = Codec("nano", "embedded", "cpu"), Image.new("RGB", (40, 30), (90, 120, 40))
    before, seen, blobs = state(), [], []

    def work():
        for _ in range(3):
            blobs.append(codec.encode(image))
            codec.decode(blobs[-1])
            seen.append(state())

    load_coder.cache_clear()
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    assert len(set(blobs)) == 1
    assert len(seen) == 9
    assert all(each[1:] == before[1:] for each in [*seen, state()])
    assert state() == before


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' OpenMP survives a fork")
def test_a_forked_child_is_told_why_it_would_hang(two_threads, monkeypatch):
    with threads_for(1):
        pass
    pid = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: pid + 1)
    with pytest.raises(DynencError, match="forked"), threads_for(1):
        pass
    torch.set_num_threads(1)
    with threads_for(1):
        pass


def test_importing_the_library_changes_nothing():
    code = """if True:
        import os, torch, numpy
        from threadpoolctl import ThreadpoolController
        def state():
            pools = ThreadpoolController().select(user_api="blas").info()
            return torch.get_num_threads(), dict(os.environ), [p["num_threads"] for p in pools]
        torch.set_num_threads(2)
        before = state()
        import dynenc.codec, dynenc.batch.converter, dynenc.networks.encoder
        assert state() == before
    """
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ})


def test_coding_with_an_effort_changes_nothing():
    code = """if True:
        import os, sys, torch, warnings
        from PIL import Image
        from dynenc.codec import Codec
        before = dict(os.environ), warnings.filters[:], torch.get_num_threads()
        codec = Codec("nano", "embedded", "cpu")
        codec.decode(codec.encode(Image.linear_gradient("L").resize((16, 16)), effort=1))
        assert (dict(os.environ), warnings.filters, torch.get_num_threads()) == before
        assert "torch._dynamo" not in sys.modules  # which takes seconds to import
    """
    subprocess.run([sys.executable, "-c", code], check=True)
