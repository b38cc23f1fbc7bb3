import pytest

from dynenc.io import names


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("file:///a/b", "/a/b"),
        ("file:///a%20b/%C3%A4.png", "/a b/ä.png"),
        ("FILE://localhost/a", "/a"),
        ("file:/a", "/a"),
        ("file:///C:/x.png", "C:/x.png"),
        ("file:a", "file:a"),
        ("a%20b", "a%20b"),
        ("s3://b/a%20b", "s3://b/a%20b"),
    ],
)
def test_file_urls_are_local_paths(url, path):
    assert names.without_file_scheme(url) == path


def test_parts_of_urls():
    assert names.basename("https://x.y/a.png?key=1/2") == "a.png"
    assert not names.is_url("C:/x")
    assert names.join("memory://", "a/b.lat") == "memory://a/b.lat"
    assert names.join("s3://b/x/", "a.lat") == "s3://b/x/a.lat"
    chained = "zip://x/a.png::s3://b/y.zip"
    assert names.basename(chained) == "a.png"
    assert names.parent(chained) == "zip://x::s3://b/y.zip"
    assert names.join(names.parent(chained), "c/b.png") == "zip://x/c/b.png::s3://b/y.zip"


@pytest.mark.parametrize(
    ("name", "suffix"), [(r"C:\v1.2\photo", ""), (r"..\a.b.png", ".png"), (r"..\photo", "")]
)
def test_suffixes_of_paths_with_backslashes(monkeypatch, name, suffix):
    monkeypatch.setattr(names.os, "sep", "\\")
    assert names.suffix_of(name) == suffix
    assert names.with_suffix(name, ".lat") == name.removesuffix(suffix) + ".lat"
