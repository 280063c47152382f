"""The house plan, asserted."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("modules", "datamodules", "pipelines", "configs")
FORBIDDEN = {
    "modules": {"datamodules", "pipelines", "configs", "tests", "benchmarks"},
    "modules/layers": {"lightning", "pytorch_lightning", "lightning_fabric"},
    "datamodules": {"pipelines", "configs", "tests", "benchmarks"},
    "pipelines": {"tests", "benchmarks"},
}


def imports(source: str) -> set[str]:
    """Return the top-level packages that a file imports anywhere, by name or by `import_module` of a constant."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where an arrow points"
            found.add(str(node.module).partition(".")[0])
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            if name in ("import_module", "__import__") and node.args and isinstance(node.args[0], ast.Constant):
                found.add(str(node.args[0].value).partition(".")[0])
    return found


def test_imports_are_found_wherever_they_hide():
    source = """
import os.path as path
if False:
    from pipelines.cli import main
def f():
    import datamodules.replay.store
    class A:
        def g(self): importlib.import_module("lightning.pytorch")
"""
    assert imports(source) == {"os", "pipelines", "datamodules", "lightning"}


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_arrows_run_one_way(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert len(files) > 2
    for file in files:
        wrong = imports(file.read_text()) & FORBIDDEN[folder]
        assert not wrong, f"{file.relative_to(ROOT)} imports {sorted(wrong)}"


GUIDE = 500
"""Lines of a file: a guide, to cut by idea. What is longer says why here."""
# numba's cache on disk does not notice that a function of another file has changed.
LONG = {"pipelines/search/compiled.py": 800}


@pytest.mark.parametrize("folder", [*PACKAGES, "benchmarks"])
def test_files_stay_short(folder):
    for file in sorted((ROOT / folder).rglob("*.py")):
        length = len(file.read_text().splitlines())
        limit = LONG.get(str(file.relative_to(ROOT)), GUIDE)
        assert length <= limit, f"{file.relative_to(ROOT)} has {length} lines: split it"


def test_the_wheel_holds_the_four_packages_and_no_more():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert sorted(wheel.pop("packages")) == sorted(PACKAGES)
    assert not wheel, "includes beside the packages"
    assert all((ROOT / package / "__init__.py").exists() for package in PACKAGES)
    assert "Private :: Do Not Upload" in project["project"]["classifiers"]


def internal_imports(file: Path) -> set[str]:
    """Return the project's modules that a file imports anywhere, but for those that only types need."""
    tree = ast.parse(file.read_text())
    typed = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in typed and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
            found |= {name for name in names if (ROOT / (name.replace(".", "/") + ".py")).exists()}
    return found


def test_no_file_imports_itself_by_way_of_others():
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py") if file.name != "__init__.py"]
    graph = {".".join(file.relative_to(ROOT).with_suffix("").parts): internal_imports(file) for file in files}
    assert sum(map(len, graph.values())) > 300
    while leaves := {name for name, imported in graph.items() if not imported & graph.keys()}:
        graph = {name: imported for name, imported in graph.items() if name not in leaves}
    assert graph == {}, f"a circle of imports among {sorted(graph)}"
