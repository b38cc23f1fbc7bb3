"""What errors promise: exit codes, hints that survive a process boundary, ValueErrors."""

import ast
import pickle
import re
from pathlib import Path

import pytest

import dynenc
from dynenc import errors
from dynenc.errors import DynencError, OutputExists

ERRORS = {
    name for name, kind in vars(errors).items() if isinstance(kind, type) and "Error" in str(kind)
} | {kind.__name__ for kind in errors.BitstreamError.__subclasses__()}


def test_the_hint_is_no_part_of_the_message():
    error = OutputExists("a.lat exists", hint="overwrite it with --force")
    assert str(error) == "a.lat exists"
    assert error.sentence == "a.lat exists: overwrite it with --force"
    assert DynencError("it fails").sentence == "it fails"


def test_errors_travel_between_processes_with_their_hint():
    error = pickle.loads(pickle.dumps(OutputExists("a.lat exists", hint="use --force")))
    assert isinstance(error, OutputExists)
    assert error.sentence == "a.lat exists: use --force"


@pytest.mark.parametrize("name", dynenc.__all__)
def test_public_names_are_listed_and_there(name):
    assert name in dir(dynenc)
    assert getattr(dynenc, name) is not None


def test_the_tree_of_the_docstring_is_that_of_the_code():
    rows = [line.strip("│├└─ ") for line in (errors.__doc__ or "").splitlines()]
    for kind in [DynencError, *DynencError.__subclasses__()]:
        star = " *" if issubclass(kind, ValueError) else ""
        assert any(row.split()[:2] == [kind.__name__, str(kind.exit_code)] for row in rows)
        assert any(f"{kind.exit_code}{star} " in row for row in rows if kind.__name__ in row)


def test_messages_of_the_library_name_no_option_of_the_command():
    package = Path(dynenc.__file__).parent
    for path in sorted(package.rglob("*.py")):
        if path.parent.name == "cli":
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ERRORS:
                message = "".join(
                    each.value
                    for argument in node.args
                    for each in ast.walk(argument)
                    if isinstance(each, ast.Constant) and isinstance(each.value, str)
                )
                assert not re.search(r"(^|\W)--?[a-z]", message), f"{path}:{node.lineno}"
