"""Run a benchmark: `python tests/bench NAME [ARGUMENTS]`.

`python tests/bench NAME --help` says what it measures, and what it needs. Benchmarks measure and
print Markdown; nothing passes or fails.
"""

import ast
import importlib
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def main() -> None:
    """Hand the arguments to the benchmark that is named first."""
    names = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__main__")
    sys.path.insert(0, str(FOLDER.parent))  # the oracles that tests compare with
    if len(sys.argv) > 1 and sys.argv[1] in names:
        name = sys.argv.pop(1)
        sys.argv[0] = f"{FOLDER} {name}"
        importlib.import_module(name).main()
        return
    print(__doc__)
    for name in names:
        tree = ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))
        print(f"{name:10} {(ast.get_docstring(tree) or '').partition(chr(10))[0]}")
    sys.exit(0 if "--help" in sys.argv else 2)


if __name__ == "__main__":
    main()
