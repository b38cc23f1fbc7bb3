"""Rewrite what is generated in README.md and docs/: `python tests/write_docs.py [PAGE ...]`.

- `console` blocks: every line that starts with `$ dynenc` is run, in a folder with `photo.png`
  and `photos/`, and its output replaces what stands below it. The blocks of a page share a folder.
- The table of modules in docs/modules.md: each module with the first line of its docstring.

With --check nothing is written, and the exit code is the number of pages that would change.
"""

import ast
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from typer.testing import CliRunner

from dynenc.cli.main import app

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "dynenc"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CONSOLE = re.compile(r"(?<=```console\n).*?(?=```)", re.DOTALL)
TABLE = re.compile(r"(?<=<!-- modules -->\n).*?(?=<!-- end -->)", re.DOTALL)
PROMPT = "$ "
TIME = re.compile(r"[\d.]+ (s/image|images/s|m?s\b)")  # differs from run to run
NUMBER = re.compile(r"\d+(?:\.\d+)?")
TOLERANCE = 0.05  # of a figure: an encoding may differ by some symbols between machines


@contextmanager
def sandbox() -> Iterator[Path]:
    """A folder with the images that the examples name, as the current one."""
    photo = Image.open(ROOT / "tests" / "images" / "chelsea.png")
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(photo.filename, folder / "photo.png")
        (folder / "photos" / "2024").mkdir(parents=True)
        shutil.copy(photo.filename, folder / "photos" / "cat.png")
        photo.crop((0, 0, 240, 200)).save(folder / "photos" / "2024" / "ear.jpg")
        photo.crop((200, 40, 440, 280)).save(folder / "photos" / "2024" / "eye.png")
        os.chdir(folder)
        try:
            yield folder
        finally:
            os.chdir(before)


def run(line: str) -> str:
    """What a command line prints on stdout and stderr, as in a terminal."""
    name, *arguments = shlex.split(line)
    if name != "dynenc":
        raise ValueError(f"{line!r} is not a dynenc command")
    result = CliRunner().invoke(app, arguments)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def commands(block: str) -> list[tuple[str, str]]:
    """The command lines of a block, each with the output that stands below it."""
    parts = re.split(rf"^{re.escape(PROMPT)}(.*)\n", block, flags=re.MULTILINE)
    if parts[0]:
        raise ValueError(f"a console block begins with {parts[0]!r} instead of a command")
    return list(zip(parts[1::2], parts[2::2], strict=True))


def fresh(block: str) -> str:
    """A block with the output that its commands have now; times stay if nothing else changed."""
    parts = []
    for line, shown in commands(block):
        now = run(line)
        kept = shown if TIME.sub("", now) == TIME.sub("", shown) else now
        parts.append(f"{PROMPT}{line}\n{kept}")
    return "".join(parts)


def same(old: str, new: str) -> bool:
    """Whether two outputs have the same words, and figures within the tolerance."""
    old, new = TIME.sub("", old), TIME.sub("", new)
    if NUMBER.sub("#", old) != NUMBER.sub("#", new):
        return False
    pairs = zip(NUMBER.findall(old), NUMBER.findall(new), strict=True)
    return all(abs(float(a) - float(b)) <= TOLERANCE * abs(float(a)) + 0.051 for a, b in pairs)


def modules() -> Iterator[tuple[str, str]]:
    """Every module of the package, by its name below dynenc, and what its docstring says first."""
    for path in sorted(PACKAGE.rglob("*.py"), key=lambda path: (path.parent != PACKAGE, path)):
        if not path.name.startswith("__"):
            text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            name = path.relative_to(PACKAGE).with_suffix("").as_posix()
            yield name, text.partition("\n")[0].removesuffix(".")


def module_table() -> str:
    """The table of modules, as Markdown."""
    rows = [f"| `{name}` | {text.replace('|', chr(92) + '|')} |\n" for name, text in modules()]
    return "| module | what it is |\n|---|---|\n" + "".join(rows)


def main(arguments: list[str]) -> int:
    """Rewrite the pages, or check them; the number of pages that differ if they are checked."""
    check = "--check" in arguments
    names = [Path(name).resolve() for name in arguments if name != "--check"]
    differing = 0
    for page in names or PAGES:
        text = page.read_text(encoding="utf-8")
        with sandbox():
            now = CONSOLE.sub(lambda match: fresh(match[0]), text)
        now = TABLE.sub(lambda _: module_table(), now)
        if check:
            differing += not same(text, now)
        elif now != text:
            page.write_text(now, encoding="utf-8")
            print(page.relative_to(ROOT))
    return differing


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
