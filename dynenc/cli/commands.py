"""How commands are declared and documented: groups of options, help in sections, examples."""

import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import wraps
from typing import Any, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from dynenc.cli import console
from dynenc.errors import DynencError

Function = Callable[..., None]
RANGE = re.compile(r"  \[(\d+<=)?x[<>]=\d+\]|; (\d+<=)?x[<>]=\d+(?=\])")


GENERAL = "General"  # section of the help that holds --help
SECTIONS = ("Options", "Output", "Quality", "Decoder", "Input", "Execution", GENERAL)


class Command(TyperCommand):
    """A command whose help lists its options in sections, most used first."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The parts of the usage line after the name of the command."""
        return ["[OPTIONS]", *(each.metavar for each in arguments(self))]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then each section of options."""
        if found := arguments(self):
            with formatter.section("Arguments"):
                formatter.write_dl([(each.metavar, each.help) for each in found])
        for title, parameters in sections(self, ctx).items():
            with formatter.section(title):
                formatter.write_dl([record(each, ctx) for each in parameters])


def arguments(command: Any) -> list[Any]:
    """The positional arguments of a command."""
    return [each for each in command.params if each.param_type_name == "argument"]


def record(option: Any, ctx: Any) -> tuple[str, str]:
    """Names and help of an option, with its default, without its range, which the metavar shows."""
    names, text = option.get_help_record(ctx)
    return names, RANGE.sub("", text)


def sections(command: Any, ctx: Any) -> dict[str, list[Any]]:
    """The options of a command by section of the help, in display order."""
    found: dict[str, list[Any]] = {title: [] for title in SECTIONS}
    for option in command.get_params(ctx):
        if option.param_type_name == "option" and not option.hidden:
            default = GENERAL if option.name == "help" else "Options"
            found[getattr(option, "rich_help_panel", None) or default].append(option)
    return {title: options for title, options in found.items() if options}


class Program(TyperGroup):
    """The `dynenc` program: its help lists the commands in sections, in declaration order."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run; if stdout cannot be written, print one line and exit."""
        console.occupy_standard_streams()
        try:
            with console.guarded_stdout(), console.deferred_gc():
                return super().main(*args, **kwargs)
        except DynencError as exc:  # from --help and --version; commands run in a session
            console.print_message(f"dynenc: {exc.sentence}")
            sys.exit(exc.exit_code)

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of the commands, in declaration order."""
        return list(self.commands)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write each section of commands."""
        found: dict[str, list[tuple[str, str]]] = {}
        for name, command in self.commands.items():
            title = getattr(command, "rich_help_panel", None) or "Commands"
            found.setdefault(title, []).append((name, command.get_short_help_str(200)))
        for title, records in found.items():
            with formatter.section(title):
                formatter.write_dl(records)


def examples(*lines: str) -> str:
    """The examples at the end of a help text, kept verbatim."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


def grouped(function: Function) -> Function:
    """Make a command of a function that takes groups of options as dataclasses.

    Each field, annotated as a Typer option, becomes an option of the command, and the function
    receives an instance of the class. So several commands can share one declaration.
    """
    # not get_type_hints: on Python 3.10 it hides the option of an argument that is None by default
    signature = inspect.signature(function, eval_str=True)
    groups: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        if is_dataclass(parameter.annotation):
            groups[parameter.name] = parameter.annotation
            parameters += _options(parameter.annotation)
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    @wraps(function)
    def command(**values: Any) -> None:
        for name, kind in groups.items():
            values[name] = kind(**{each.name: values.pop(each.name) for each in fields(kind)})
        function(**values)

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    return command


def _options(group: Any) -> list[inspect.Parameter]:
    """The fields of a group as keyword parameters."""
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            each.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if each.default is MISSING else each.default,
            annotation=hints[each.name],
        )
        for each in fields(group)
    ]


@dataclass
class Section:
    """A section of commands in the help of the program."""

    title: str
    commands: list[tuple[str, str, Function]] = field(default_factory=list)

    def command(self, name: str, *lines: str) -> Callable[[Function], Function]:
        """Declare a command: its name, and examples for the end of its help."""

        def declare(function: Callable[..., None]) -> Callable[..., None]:
            self.commands.append((name, examples(*lines), function))
            return function

        return declare

    def add_to(self, app: typer.Typer) -> None:
        """Add them to a program."""
        for name, epilog, function in self.commands:
            app.command(name, cls=Command, epilog=epilog, rich_help_panel=self.title)(
                grouped(function)
            )
