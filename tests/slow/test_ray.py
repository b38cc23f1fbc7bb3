"""The Ray engine on a real cluster of two nodes in separate processes, one of which is lost."""

import os
import time

import pytest
from conftest import PHOTO
from PIL import Image

from dynenc import convert
from dynenc.errors import EngineError

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # Ray warns a lot
N_IMAGES = 240


@pytest.fixture(scope="module")
def images(tmp_path_factory, photo):
    folder = tmp_path_factory.mktemp("images")
    for i in range(N_IMAGES):
        photo.crop((i, i % 100, i + 96, i % 100 + 96)).save(folder / f"{i:04}.png")
    return folder


@pytest.fixture(scope="module")
def photo():
    return Image.open(PHOTO).convert("RGB")


@pytest.fixture(scope="module")
def expected(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("expected")
    convert("encode", images, folder, encoder="nano", jobs=1)
    return contents(folder)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def cluster(monkeypatch):
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "300")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_two_nodes_give_what_one_machine_gives(cluster, images, expected, tmp_path):
    cluster.add_node(num_cpus=1)
    (images / "broken.jpg").write_bytes(b"\xff\xd8\xff junk")
    results = []
    summary = convert(
        "encode",
        images,
        tmp_path / "out",
        encoder="nano",
        engine="ray",
        address=cluster.address,
        on_result=lambda result, _: results.append(result),
    )
    (images / "broken.jpg").unlink()
    assert (summary.done, summary.failed) == (N_IMAGES, 1)
    assert "broken.jpg" in summary.failures[0].reason
    assert len({result.source for result in results}) == len(results) == N_IMAGES + 1
    assert contents(tmp_path / "out") == expected
    again = convert("encode", images, tmp_path / "out", engine="ray", address=cluster.address)
    assert (again.done, again.skipped) == (0, N_IMAGES)
    assert "RAY_BACKEND_LOG_LEVEL" not in os.environ  # as before
    assert ray.data.DataContext.get_current().enable_progress_bars


def test_a_node_lost_in_the_middle_loses_and_doubles_nothing(cluster, images, expected, tmp_path):
    node = cluster.add_node(num_cpus=1)
    results = []
    killed = []

    def kill_one(result, summary):
        results.append(result)
        if summary.done == N_IMAGES // 4 and not killed:
            killed.append(time.monotonic())
            cluster.remove_node(node, allow_graceful=False)

    summary = convert(
        "encode",
        images,
        tmp_path / "out",
        encoder="nano",
        engine="ray",
        address=cluster.address,
        on_result=kill_one,
    )
    assert killed
    assert (summary.done, summary.failed) == (N_IMAGES, 0)
    assert sorted(result.source for result in results) == sorted(map(str, images.iterdir()))
    assert contents(tmp_path / "out") == expected


def test_a_cluster_that_is_not_there(images, tmp_path):
    with pytest.raises(EngineError, match="no Ray cluster at auto"):
        convert("encode", images, tmp_path, engine="ray", address="auto")
    with pytest.raises(EngineError, match=r"no Ray cluster at 127\.0\.0\.1:1"):
        convert("encode", images, tmp_path, engine="ray", address="127.0.0.1:1")
