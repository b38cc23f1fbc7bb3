"""File names as strings: local paths, `-` for a standard stream, and fsspec URLs.

Nothing here touches a file system. A chained URL such as `zip://a.png::s3://bucket/x.zip` names a
file inside another; below, "path of a URL" means the part before the first `::`.
"""

import os
import re
import unicodedata
from pathlib import Path
from urllib.parse import unquote, urlsplit

STREAM = "-"  # stdin or stdout


def display_name(name: str) -> str:
    """A name as shown in messages."""
    return "standard input" if name == STREAM else name


def is_url(name: str) -> bool:
    """Whether a name is a URL rather than a local path.

    `without_file_scheme` turns `file:` URLs into paths.
    """
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", name) is not None


def is_web(name: str) -> bool:
    """Whether a name is an http(s) URL, which cannot be listed reliably or written."""
    return name.lower().startswith(("http://", "https://"))


def is_chained(name: str) -> bool:
    """Whether a name is a URL of a file inside another file."""
    return is_url(name) and "::" in name


def without_file_scheme(name: str | os.PathLike[str]) -> str:
    """A name as a str; `file:` URLs become local paths, percent-decoded (RFC 8089)."""
    text = os.fspath(name)
    if "::" in text or not text.lower().startswith("file:/"):
        return text
    path = text[len("file:") :]
    path = path.removeprefix("//localhost") if path.startswith("//localhost/") else path
    path = unquote(path.removeprefix("//"), errors="surrogateescape")
    return path[1:] if re.match(r"/[A-Za-z]:", path) else path  # a Windows drive


def split_url(url: str) -> tuple[str, str, str]:
    """The protocol of a URL, its path, and the rest of its chain, starting with `::`."""
    first, separator, rest = url.partition("::")
    protocol, _, path = first.partition("://")
    return protocol, path, separator + rest


def with_path(url: str, path: str) -> str:
    """The same URL with another path."""
    protocol, _, chain = split_url(url)
    return f"{protocol}://{path}{chain}"


def join(folder: str, relative: str) -> str:
    """The name of a file below a folder; `relative` has slashes on every system."""
    if not is_url(folder):
        return os.path.join(folder, *relative.split("/"))  # noqa: PTH118  # names may be URLs
    path = split_url(folder)[1].rstrip("/")
    return with_path(folder, f"{path}/{relative}" if path else relative)


def parent(name: str) -> str:
    """The folder of a file."""
    if not is_url(name):
        return os.path.dirname(name)  # noqa: PTH120
    return with_path(name, split_url(name)[1].rpartition("/")[0])


def basename(name: str) -> str:
    """The last component of a name, without the query of a web address."""
    if not is_url(name):
        return Path(name).name
    path = urlsplit(name).path if is_web(name) else split_url(name)[1]
    return path.rstrip("/").rpartition("/")[2]


def suffix_of(name: str) -> str:
    """The last suffix of a name with its dot, or ""."""
    last = name.replace(os.sep, "/").rpartition("/")[2]
    stem, dot, suffix = last.rpartition(".")
    return dot + suffix if stem else ""


def with_suffix(name: str, suffix: str) -> str:
    """A name with its last suffix replaced, or with one added if it has none."""
    old = suffix_of(name)
    return name[: len(name) - len(old)] + suffix


def casefolded(name: str) -> str:
    """A name as compared by file systems that ignore case and Unicode normalisation."""
    return unicodedata.normalize("NFC", name).casefold()
