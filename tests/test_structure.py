"""The house's rules that import contracts cannot say."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]
PACKAGES = ("budgetsweep", "model", "trainer", "studies", "reports")


@cache
def graph() -> grimp.ImportGraph:
    """All imports of the product: inside functions and under TYPE_CHECKING too."""
    return grimp.build_graph(*PACKAGES, include_external_packages=True, cache_dir=None)


def test_no_modules_import_each_other_in_a_circle() -> None:
    """`TopologicalSorter.prepare` raises CycleError and names the circle."""
    modules = {
        module: graph().find_modules_directly_imported_by(module) for module in graph().modules
    }
    assert len(modules) > 200
    TopologicalSorter(modules).prepare()


def lazy_imports() -> set[tuple[str, str]]:
    """Imports of our modules inside functions, the command line's left out."""
    found = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            if path.is_relative_to(ROOT / "budgetsweep" / "cli"):
                continue
            for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(function, ast.FunctionDef):
                    imports = [n for n in ast.walk(function) if isinstance(n, ast.ImportFrom)]
                    pairs = [(str(node.module), n.name) for node in imports for n in node.names]
                    for parent, name in pairs:
                        module = f"{parent}.{name}"
                        module = module if module in graph().modules else parent
                        if module.partition(".")[0] in PACKAGES:
                            found.add((path.relative_to(ROOT).as_posix(), module))
    return found


def test_imports_are_lazy_for_the_weight_of_torch_alone() -> None:
    """The command line's are, so that `--help` is quick; the others all bring torch in."""
    light = {"model/flops.py": "model.config"}  # pydantic: the command line names the conventions
    without = {
        (path, module)
        for path, module in lazy_imports()
        if graph().find_shortest_chain(module, "torch") is None and light.get(path) != module
    }
    assert without == set()


def test_a_folder_has_about_a_dozen_modules_and_says_what_lives_there() -> None:
    for package in PACKAGES:
        for folder in [ROOT / package, *(ROOT / package).rglob("*")]:
            if not folder.is_dir() or folder.name in ("__pycache__", "versions"):
                continue
            modules = [path for path in folder.glob("*.py") if not path.name.startswith("__")]
            text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
            assert len(modules) <= 16, folder
            assert text.count(".") >= 2, f"{folder}: say what lives here and what must not"
