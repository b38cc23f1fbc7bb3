"""README, docs and changelog agree with each other, with the command and with the code."""

import hashlib
import re
import shlex
from pathlib import Path

import pytest
import write_docs
from typer.main import get_command
from write_docs import CONSOLE, PAGES, ROOT

from dynenc import __version__, registry
from dynenc.cli.main import app
from dynenc.coding import bitstream

README = (ROOT / "README.md").read_text(encoding="utf-8")
TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
GROUP = get_command(app)
HOW = "python tests/write_docs.py rewrites the pages"

every_page = pytest.mark.parametrize("name", TEXTS)
PYTHON = [
    pytest.param(block, id=f"{name}-{number}")
    for name, text in TEXTS.items()
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
]


def command_lines(text):
    """The dynenc command lines of the `sh` and `console` blocks."""
    for block in re.findall(r"```(?:sh|console)\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").split("\n"):
            yield from re.findall(r"(?:^|&& |\| )(?:\$ )?dynenc ([^|&#>]*)", line)


def all_names(parameter):
    """Of an option, those that switch it off included."""
    return [*parameter.opts, *parameter.secondary_opts, "--help"]


def anchors(text):
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


def test_changelog_ends_at_this_version():
    top = re.search(r"^## \[([^]]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert top
    assert top.group(1) == __version__


def test_readme_is_short():
    assert 150 <= README.count("\n") <= 200


@pytest.mark.parametrize("name", ["README.md", "docs/contributing.md"])
def test_torch_is_installed_in_a_version_that_is_allowed(name):
    """Otherwise `pip install .` would replace the CPU build."""
    [range_] = re.findall(
        r'"(torch[^"]*)"', (ROOT / "pyproject.toml").read_text().split("[tool")[0]
    )
    assert f"pip install '{range_}' --index-url" in TEXTS[name]


def test_header_of_the_specification_is_that_of_the_code():
    rows = re.findall(r"^\| (\d+) \| (\d) \| `(\w+)` \|", TEXTS["docs/format.md"], re.MULTILINE)
    position = bitstream.PREFIX.size
    expected = [("0", "4", "magic"), ("4", "1", "version")]
    for field in bitstream.fields(bitstream.Header):
        size = {"H": 2, "B": 1}[field.metadata["fmt"]]
        expected.append((str(position), str(size), field.name))
        position += size
    assert rows == expected


def test_weights_in_the_specifications_are_those_of_the_code():
    """All those that hold integers."""
    text = TEXTS["docs/format.md"] + TEXTS["docs/decoder.md"]
    rows = re.findall(r"^\| `([\w-]+)` \|.* `(\w{64})` \|$", text, re.MULTILINE)
    integers = re.compile("coder_|embedded|fine|thumbnail")
    files = {
        Path(model.file).stem: model.sha256 for model in registry.MODELS.values() if model.file
    }
    assert dict(rows) == {name: files[name] for name in files if integers.match(name)}
    for name, sha256 in rows:
        data = (ROOT / "weights" / f"{name}.safetensors").read_bytes()
        assert hashlib.sha256(data).hexdigest() == sha256


def test_worked_example_of_the_specification_is_a_golden_file():
    [name] = re.findall(r"^`(tests/golden/\w+\.lat)`", TEXTS["docs/format.md"], re.MULTILINE)
    assert f"\n    {(ROOT / name).read_bytes().hex(' ').upper()}\n" in TEXTS["docs/format.md"]


@every_page
def test_every_command_line_parses(name):
    for line in command_lines(TEXTS[name]):
        command, *arguments = shlex.split(line)
        GROUP.commands[command].make_context(command, arguments).close()


@every_page
def test_options_in_the_text_exist(name):
    """Of commands in backticks, which may leave out arguments."""
    for span in re.findall(r"`dynenc ([a-z][^`]*)`", TEXTS[name]):
        command, *words = span.split()
        options = {option for p in GROUP.commands[command].params for option in all_names(p)}
        assert {word for word in words if re.match("--?[A-Za-z]", word)} <= options, span


@every_page
def test_links_lead_somewhere(name):
    page = ROOT / name
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", TEXTS[name]):
        file, _, anchor = target.partition("#")
        there = (page.parent / file).resolve() if file else page
        assert there.exists(), target
        if anchor:
            assert anchor in anchors(there.read_text(encoding="utf-8")), target


@every_page
def test_files_that_are_named_exist(name):
    """Paths in backticks or in commands: modules, weights, tests, pages."""
    named = re.findall(r"(?:dynenc|tests|weights|docs)/[\w/.*]*\w(?:\.\w+)?", TEXTS[name])
    for path in named:
        assert list(ROOT.glob(path)) or list(ROOT.glob(path + "/")), path


def test_every_module_is_in_the_table_of_modules():
    [table] = write_docs.TABLE.findall(TEXTS["docs/modules.md"])
    shown = re.findall(r"^\| `([\w/]+)` \|", table, re.MULTILINE)
    assert sorted(shown) == sorted(name for name, _ in write_docs.modules()), HOW


@every_page
def test_console_examples_print_what_they_show(name):
    with write_docs.sandbox():
        for block in CONSOLE.findall(TEXTS[name]):
            for line, shown in write_docs.commands(block):
                now = write_docs.run(line)
                assert write_docs.same(shown, now), f"{line} prints\n{now}\n{HOW}"


@pytest.mark.parametrize("block", PYTHON)
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12, in a DataLoader
@pytest.mark.filterwarnings("ignore:.*worker processes in total")  # the same, with one core
def test_python_of_the_docs_runs(block):
    with write_docs.sandbox():
        exec(compile(block, "docs", "exec"), {})
