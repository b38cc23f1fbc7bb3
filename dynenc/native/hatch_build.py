"""Build hook of hatchling: compiles the native kernel and tags the wheel for its platform."""

import importlib.util
import os
import platform
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


def _load_compile() -> ModuleType:
    """The module compile.py beside this file, whose package cannot be imported yet."""
    path = Path(__file__).with_name("compile.py")
    spec = importlib.util.spec_from_file_location("compile_kernel", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def platform_tag() -> str:
    """The platform in a wheel's name; on macOS that of this machine's processor alone."""
    tag = sysconfig.get_platform()
    if tag.startswith("macosx-"):
        target = os.environ.get("MACOSX_DEPLOYMENT_TARGET", tag.split("-")[1])
        if platform.machine() == "arm64" and int(target.split(".")[0]) < 11:
            target = "11.0"
        tag = f"macosx-{target}-{platform.machine()}"
    return tag.replace("-", "_").replace(".", "_")


class NativeBuildHook(BuildHookInterface):  # type: ignore[misc]  # hatchling is not here then
    """Compiles the library into the source tree, from where the wheel takes it."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """The compiler from PyPI, where no other one works and none is chosen."""
        compile_kernel = _load_compile()
        is_found = os.environ.get("CC") or compile_kernel.find_compiler()
        return [] if is_found else [compile_kernel.FALLBACK]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the library; `version` is "standard", or "editable" to be used from the sources."""
        compile_kernel = _load_compile()
        try:
            compile_kernel.build()
        except compile_kernel.NoCompiler as exc:
            self.app.abort(str(exc))
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform_tag()}"
        build_data["artifacts"].append(f"/dynenc/native/{compile_kernel.LIBRARY.name}")
