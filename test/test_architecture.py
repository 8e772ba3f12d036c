# SPDX-License-Identifier: Apache-2.0
"""The rooms of the package: which may import which, and that no private name crosses a module's border."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "sqsegv3_ros"
# a room may import those in lower layers, and itself; rooms of one layer do not form a circle (checked by module)
LAYERS = (
    {"files", "errors", "process"},
    {"pointcloud2"},
    {"data"},
    {"inference"},
    {"network"},
    {"benchmark", "labelling", "viewing", "evaluation", "training", "simulation"},
    {"commands", "ros"},
    {"cli"},
)
MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """(module, imported name) of everything that a module imports of this package, also within functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE.name:
            for alias in node.names:
                module = ".".join((node.module or "").split(".")[1:])
                submodule = f"{module}.{alias.name}".lstrip(".")
                is_module = (PACKAGE / Path(*submodule.split("."))).with_suffix(".py").is_file()
                yield (submodule, "") if is_module else (module, alias.name)


def layer_of(module: str) -> int:
    room = module.split(".")[0]
    return next(number for number, rooms in enumerate(LAYERS) if room in rooms)


@pytest.mark.parametrize("path", [p for p in MODULES if name_of(p)], ids=name_of)
def test_a_module_imports_only_from_its_own_layer_and_below(path: Path) -> None:
    module = name_of(path)
    up = [f"{name} from {other}" for other, name in imports(path) if other and layer_of(other) > layer_of(module)]
    assert not up, f"{module} imports {', '.join(up)}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    edges = {name_of(path): {module for module, _ in imports(path) if module} for path in MODULES}
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join((*above[above.index(module) :], module))
        if module not in done:
            for other in sorted(edges.get(module, ())):
                if other != module:
                    visit(other, (*above, module))
            done.add(module)

    for module in edges:
        visit(module, ())


def test_only_the_room_ros_imports_rclpy() -> None:
    found = {
        name_of(path)
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""])
        if name.split(".")[0] == "rclpy"
    }
    assert {module.split(".")[0] for module in found} == {"ros"}, found


def test_no_private_name_is_imported_from_another_module() -> None:
    private = [
        f"{name_of(path)} imports {name} from {module}"
        for path in MODULES
        for module, name in imports(path)
        if name.startswith("_") or any(part.startswith("_") for part in module.split("."))
    ]
    assert not private, private


def test_torchscript_is_traced_written_and_read_in_one_module() -> None:
    calls = {
        name_of(path)
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "torch.jit"
        if node.attr in ("load", "save", "script", "trace", "freeze")
    }
    assert calls == {"inference.torchscript"}


def test_the_top_of_the_package_holds_four_modules() -> None:
    top = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert top == {"cli", "errors", "files", "process"}, top - {"cli", "errors", "files", "process"}
