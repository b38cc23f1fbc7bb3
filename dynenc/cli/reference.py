"""The reference of the command, docs/cli.md, written from the command itself.

`python -m dynenc.cli.reference > docs/cli.md`
"""

import inspect
import sys
from collections.abc import Iterator
from typing import Any

from typer.main import get_command

from dynenc.cli import commands, main
from dynenc.errors import DynencError

HEAD = """\
# Command reference

<!-- Written by `python -m dynenc.cli.reference > docs/cli.md`; a test keeps it true. -->

Results go to standard output, messages to standard error. `dynenc COMMAND --help` prints what
stands here, and `dynenc --install-completion` makes the Tab key complete commands, options and
their values.
"""


def markdown() -> str:
    """The whole page."""
    program: Any = get_command(main.app)
    found: dict[str, list[str]] = {}
    for name, command in program.commands.items():
        found.setdefault(command.rich_help_panel, []).append(name)
    lines = [HEAD]
    for title, names in found.items():
        links = ", ".join(f"[{name}](#dynenc-{name})" for name in names)
        lines.append(f"- {title}: {links}")
    lines += ["", *_exit_codes()]
    for name, command in program.commands.items():
        lines += ["", *_command(f"dynenc {name}", command)]
    return "\n".join(lines) + "\n"


def _exit_codes() -> Iterator[str]:
    yield "Exit codes; in Python each is an exception of `dynenc.errors`:"
    yield ""
    yield "| code | exception | meaning |"
    yield "|---|---|---|"
    yield "| 0 | | success |"
    yield f"| {DynencError.exit_code} | `DynencError` | some of several files failed |"
    for kind in DynencError.__subclasses__():
        meaning = str(kind.__doc__).splitlines()[0].rstrip(".")
        yield f"| {kind.exit_code} | `{kind.__name__}` | {meaning[0].lower()}{meaning[1:]} |"
    yield "| 130 | | interrupted by Ctrl-C or SIGTERM |"


def _command(name: str, command: Any) -> Iterator[str]:
    """The part of one command."""
    context = command.context_class(command, info_name=name, **main.SETTINGS)
    yield f"## {name}"
    yield ""
    yield inspect.cleandoc(command.help)
    yield ""
    yield "```text"
    yield f"{name} {' '.join(command.collect_usage_pieces(context))}"
    yield "```"
    if arguments := commands.arguments(command):
        yield from _table("Arguments", [(each.metavar, each.help) for each in arguments])
    for title, options in commands.sections(command, context).items():
        yield from _table(title, [commands.record(each, context) for each in options])
    yield ""
    yield "```sh"
    for line in command.epilog.splitlines()[2:]:
        yield line.strip()
    yield "```"


def _table(title: str, rows: list[tuple[str, str]]) -> Iterator[str]:
    yield ""
    yield f"| {title} | |"
    yield "|---|---|"
    for name, text in rows:
        cells = f"`{name}`", text.replace("  ", " ").replace("<", "&lt;").replace("*", "\\*")
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    sys.stdout.write(markdown())
