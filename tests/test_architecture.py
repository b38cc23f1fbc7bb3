"""The structure of the package: imports point one way, and modules and functions stay small."""

import ast
from collections.abc import Iterator
from pathlib import Path

import dynenc

PACKAGE = Path(dynenc.__file__).parent
ORDER = (  # packages and top-level modules; each may import those before it, and itself
    *("errors", "arguments", "latent_space", "metrics", "registry", "runtime", "view", "native"),
    *("io", "coding", "networks", "imaging"),
    *("distortion", "refine", "backend", "encoding", "codec", "pillow"),
    *("interop", "batch", "evaluation", "training", "web", "c"),
    *("__init__", "cli", "__main__"),
)
# What may import torch at the top. All else reaches these from within functions, so that what needs
# no network runs without torch; tests/cli/test_start.py sees that it does.
TORCH = (
    *("metrics", "distortion", "refine", "backend", "imaging.tensors", "networks", "training"),
    *("interop.diffusers_vae", "interop.paper_checkpoints", "interop.torch_dataset"),
    *("evaluation", "cli.doctor"),
)
NOT_TORCH = (
    "networks.decoder_choice",
    "networks.integer_decoder",
    "networks.integer_tensors",
    "networks.vae_files",
)  # of those packages
MAX_MODULE, MAX_FUNCTION, MAX_PARAMETERS = 400, 60, 8  # lines, lines with docstring, parameters

# Exceptions, each with its reason. They are to become fewer.
UPWARD_IMPORTS: dict[str, str] = {}
LONG_MODULES: dict[str, str] = {}
LONG_FUNCTIONS = {"batch.convert:convert": "public; most of it documents its arguments"}
MANY_PARAMETERS = {
    "interop.diffusers_vae:Vae.__init__": "has those of AutoencoderKL, which become its config",
    "batch.cache:make_cache": "public, with the options of the command as keywords",
    "batch.convert:convert": "public, with the options of the command as keywords",
    "codec:Codec.encode": "public, with the options of the command as keywords",
    "networks.layers:DynamicConv.__init__": "has those of torch.nn.Conv2d",
}


def sources() -> dict[str, str]:
    """The source of every module by its name below dynenc; "" is the package itself."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = path.read_text(encoding="utf-8")
    return found


SOURCES = sources()
MODULES = {name: ast.parse(source) for name, source in SOURCES.items()}


def imports_of(tree: ast.Module) -> Iterator[str]:
    """Modules of dynenc that a module imports anywhere, in functions and for types, too.

    Facts of the package itself, such as `dynenc.__version__`, are no import: it is always there.
    """
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name != "dynenc"]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "dynenc":
            names = [f"dynenc.{node.attr}"]
        for name in names:
            root, _, rest = name.partition(".")
            if root == "dynenc" and not rest.startswith("__"):
                while rest and rest not in MODULES:
                    rest = rest.rpartition(".")[0]
                yield rest


def imports_at_the_top(tree: ast.Module) -> Iterator[str]:
    """All that is imported with a module; what is imported for types is not."""
    nodes: list[ast.AST] = [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            nodes += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            nodes += ast.iter_child_nodes(node)


def may_import_torch(name: str) -> bool:
    """Whether something is torch, or in a module that may import it at the top."""
    if name.partition(".")[0] in ("torch", "diffusers") or name.startswith("safetensors.torch"):
        return True
    names = [f"{name}.".startswith(f"dynenc.{listed}.") for listed in (*TORCH, *NOT_TORCH)]
    return any(names[: len(TORCH)]) and not any(names[len(TORCH) :])


def rank(module: str) -> int:
    """The place of a module's package in ORDER."""
    return ORDER.index(module.partition(".")[0] or "__init__")


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function and method, by module and name."""
    for module, tree in MODULES.items():
        parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                name, parent = node.name, parents[node]
                while not isinstance(parent, ast.Module):
                    if hasattr(parent, "name"):
                        name = f"{parent.name}.{name}"
                    parent = parents[parent]
                yield f"{module}:{name}", node


def is_command(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether Typer makes a command or callback of it, whose parameters are its options."""
    decorators = [ast.unparse(one) for one in function.decorator_list]
    return any(".command" in one or ".callback" in one for one in decorators)


def test_every_package_has_a_place_in_the_order():
    names = {module.partition(".")[0] or "__init__" for module in MODULES}
    assert names - set(ORDER) == set()


def test_imports_point_one_way():
    upward = {
        f"{module} -> {target}"
        for module, tree in MODULES.items()
        for target in imports_of(tree)
        if rank(target) > rank(module)
    }
    assert upward - UPWARD_IMPORTS.keys() == set()


def test_torch_stays_at_the_networks():
    found = {
        f"{module} -> {name}"
        for module, tree in MODULES.items()
        if not may_import_torch(f"dynenc.{module}")
        for name in imports_at_the_top(tree)
        if may_import_torch(name)
    }
    assert found == set()


def test_modules_stay_short():
    long = {name for name, text in SOURCES.items() if len(text.splitlines()) > MAX_MODULE}
    assert long - LONG_MODULES.keys() == set()


def test_functions_stay_short():
    long = {
        name
        for name, node in functions()
        if node.end_lineno - node.lineno >= MAX_FUNCTION and not is_command(node)
    }
    assert long - LONG_FUNCTIONS.keys() == set()


def test_functions_take_few_parameters():
    many = set()
    for name, node in functions():
        arguments = node.args
        parameters = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        parameters = [one for one in parameters if one.arg not in ("self", "cls")]
        if len(parameters) > MAX_PARAMETERS and not is_command(node):
            many.add(name)
    assert many - MANY_PARAMETERS.keys() == set()
