from pathlib import PurePosixPath

import pytest

from dynenc.batch.plan import (
    InputFile,
    Job,
    OutputRule,
    fits,
    input_suffixes,
    plan,
    select,
)
from dynenc.errors import UsageError
from dynenc.io.names import casefolded, suffix_of, with_suffix


def found(*relatives, folder="in"):
    return [InputFile(f"{folder}/{relative}", relative) for relative in relatives]


def planned(files, *output, **naming):
    return plan(files, OutputRule(*output, **naming))


def test_outputs_stand_beside_the_inputs():
    assert planned(found("b.png", "a.jpg"), None, ".lat") == [
        Job("in/b.png", "in/b.lat"),
        Job("in/a.jpg", "in/a.lat"),
    ]


def test_subfolders_are_kept():
    assert planned(found("x/y/a.png"), "out", ".lat") == [Job("in/x/y/a.png", "out/x/y/a.lat")]


def test_urls():
    (job,) = planned([InputFile("s3://b/in/x/a.png", "x/a.png")], "gs://c/out/", ".lat")
    assert job.target == "gs://c/out/x/a.lat"
    (job,) = planned([InputFile("s3://b/in/a.png", "a.png")], None, ".lat")
    assert job.target == "s3://b/in/a.lat"


def test_no_output():
    assert planned(found("a.png"), "", ".png") == [Job("in/a.png", "")]


def test_two_inputs_for_one_output_are_refused_with_both_names():
    with pytest.raises(UsageError, match=r"in/a\.jpg and in/a\.png .*in/a\.lat"):
        planned(found("a.jpg", "a.png"), None, ".lat")


def test_names_that_differ_in_case_clash_only_where_case_is_ignored():
    files = found("A.png", "a.png")
    assert len(planned(files, "out", ".lat")) == 2
    with pytest.raises(UsageError, match="both become"):
        planned(files, "out", ".lat", same_name=casefolded)
    with pytest.raises(UsageError, match="both become"):
        planned(found("\u00e9.png", "e\u0301.png"), "out", ".lat", same_name=casefolded)


def test_an_input_is_never_overwritten():
    with pytest.raises(UsageError, match="is an input"):
        planned(found("a.png", "b.png"), None, ".png")
    with pytest.raises(UsageError, match="is an input"):
        planned([InputFile("a.png", "a.png", True)], "a.png", ".png", into_folder=False)


def test_tars_become_tars():
    files = found("x/0.tar", "1.tar.gz", "2.TGZ")
    targets = [job.target for job in planned(files, "out", ".lat")]
    assert targets == ["out/x/0.tar", "out/1.tar", "out/2.tar"]
    assert all(job.is_shard for job in planned(files, "out", ".lat"))
    with pytest.raises(UsageError, match="is an archive, and its output needs a folder"):
        planned(files, None, ".lat")


def test_packing():
    jobs = planned(found("a.png", "x/b.png", "c.png"), "out", ".lat", shard_size=2)
    assert jobs == [
        Job("", "out/000000.tar", (("in/a.png", "a.lat"), ("in/x/b.png", "x/b.lat"))),
        Job("", "out/000001.tar", (("in/c.png", "c.lat"),)),
    ]
    assert all(job.is_shard for job in jobs)
    with pytest.raises(UsageError, match="shards need an output folder"):
        planned(found("a.png"), None, ".lat", shard_size=2)
    with pytest.raises(UsageError, match=r"both become out/a\.lat"):
        planned(found("a.png", "a.jpg"), "out", ".lat", shard_size=1)
    with pytest.raises(UsageError, match="already an archive"):
        planned(found("a.tar"), "out", ".lat", shard_size=1)


def test_an_image_on_the_web_needs_an_output():
    with pytest.raises(UsageError, match="on the web"):
        planned([InputFile("https://x.y/a.png", "a.png", True)], None, ".lat")


def test_select_takes_images_once_sorted_and_counts_the_others():
    files = [*found("b.png", "a.txt", "a.PNG", "s.tar"), InputFile("in/b.png", "b.png", True)]
    taken, ignored = select(files, frozenset({".png"}))
    assert [file.path for file in taken] == ["in/a.PNG", "in/b.png", "in/s.tar"]
    assert [file.path for file in ignored] == ["in/a.txt"]


def test_a_file_named_itself_is_taken_whatever_its_suffix():
    taken, ignored = select([InputFile("notes", "notes", True)], frozenset({".png"}))
    assert (len(taken), ignored) == (1, [])


def test_patterns():
    files = found("cats/a.png", "cats/b.png", "dogs/a.png")

    def names(**patterns):
        return [file.relative for file in select(files, frozenset({".png"}), **patterns)[0]]

    assert names(include=["a.*"]) == ["cats/a.png", "dogs/a.png"]
    assert names(include=["cats/*"]) == ["cats/a.png", "cats/b.png"]
    assert names(include=["cats/*", "dogs/*"], exclude=["b.*"]) == ["cats/a.png", "dogs/a.png"]
    assert fits("x/[1].png", "[[]1].png")


@pytest.mark.parametrize("name", ["a.png", "a", ".a", "x.y/a", "x/a.b.c", "x/.a.b", "a."])
def test_suffixes_are_those_of_pathlib(name):
    if name != "a.":  # of which Python's versions differ
        assert suffix_of(name) == PurePosixPath(name).suffix
    assert with_suffix(name, ".lat").endswith(".lat")


def test_what_is_an_image():
    assert {".png", ".jpg", ".jpeg", ".webp", ".tif", ".bmp", ".gif"} <= input_suffixes("encode")
    assert not {".lat", ".tar", ".pdf", ".h5", ".mpg", ".eps", ".txt"} & input_suffixes("encode")
    assert input_suffixes("decode") == {".lat"}
