"""Who imports whom: the module table of docs/design.md, held against the code.

Imports are read with `ast`, those inside functions as well; those for type checkers only are not
imports.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import compressor

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("compressor", "adapters", "cli")
DESIGN = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")

# Packages that bring torch when they are imported.
TORCH = {"torch", "torch_pruning", "torchvision", "timm", "thop", "onnxscript", "transformers"}
ONLY = {
    "torch_pruning": {"adapters.dependency_groups"},
    "onnx": {
        "compressor.deploy.export",
        "compressor.deploy.graphs",
        "compressor.deploy.joining",
        "compressor.deploy.writing",
        "compressor.latency.parts",
        "compressor.latency.operators",
        "compressor.device.origins",
        "compressor.foreign.onnx_graph",
        "compressor.deploy.quantise",
        "compressor.deploy.leaving_out",
        "compressor.deploy.slicing",
        "compressor.deploy.targets",
        "compressor.multitask.graphs",
    },
    "onnx_ir": set(),
    "onnxruntime": {"compressor.device.agent", "compressor.deploy.quantise"},
    "thop": {"compressor.network.opinion"},
    "safetensors": {"compressor.deploy.artefacts", "cli.tensor_data"},
    "jinja2": {"compressor.report.page"},
    "sqlite3": {"compressor.search.journal"},
    "pickle": set(),
    "plotly": set(),  # read as a file
}
# Packages of the engine, in the order in which they may import.
ORDER = (
    "search", "trace", "device", "network", "foreign", "refit", "score", "workers", "deploy",
    "latency", "report", "run", "multitask", "testing",
)  # fmt: skip
# These, and the modules outside of all packages, stay without torch.
FREE = ("search", "trace", "device", "latency", "report")


def names(package: str) -> Iterator[tuple[str, Path]]:
    """Dotted names and files of a package's modules, `__init__` under the package's own name."""
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


MODULES = {name: path for package in PACKAGES for name, path in names(package)}


@cache
def imports(module: str) -> frozenset[str]:
    """Dotted names that a module imports; of our own packages the modules, not what is in them."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in _executed(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            source = str(node.module)
            inner = {f"{source}.{alias.name}" for alias in node.names}
            found |= (inner & MODULES.keys()) or {source}
    return frozenset(found)


def _executed(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under `if TYPE_CHECKING:`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        yield from _executed(node)


def tops(module: str) -> set[str]:
    """Top-level packages that a module imports itself."""
    return {name.partition(".")[0] for name in imports(module)}


def reached(module: str) -> set[str]:
    """Top-level packages that come with a module."""
    seen, todo = {module}, [module]
    while todo:
        for name in imports(todo.pop()) & MODULES.keys() - seen:
            seen.add(name)
            todo.append(name)
    return {top for name in seen for top in tops(name)}


def package(module: str) -> str:
    """The package within the engine that a module of it is in, or "" where it is in none."""
    inner = module.split(".")[1:]
    return inner[0] if inner and inner[0] in ORDER else ""


def table() -> dict[str, str]:
    """Module to the last cell of its row in the table "Modules"."""
    section = DESIGN.partition("\n## Modules\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([\w.]+)` \|.*\| ([^|]*) \|$", section, re.MULTILINE)
    assert len(rows) == len({name for name, _ in rows}), "a module has two rows"
    return dict(rows)


def test_every_module_of_the_engine_and_the_adapters_has_a_row() -> None:
    described = {
        name for name, path in MODULES.items()
        if path.name != "__init__.py" and not name.startswith(("cli", "compressor.testing."))
    }  # fmt: skip
    assert set(table()) == described | {"compressor.testing", "cli"}


def test_the_table_says_which_modules_know_no_torch() -> None:
    free = {name for name, cell in table().items() if cell.startswith("no torch")}
    described = set(table()) & MODULES.keys() - {"cli", "compressor.testing"}
    assert free == {name for name in described if not reached(name) & TORCH}
    engine = {name for name in described if name.startswith("compressor.")}
    assert {name for name in engine if package(name) in ("", *FREE)} <= free


def test_modules_without_torch_import_without_it() -> None:
    free = sorted(name for name, cell in table().items() if cell.startswith("no torch"))
    program = f"import sys, {', '.join(free)}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


@pytest.mark.parametrize("package", ONLY)
def test_one_place_for_each_outside_package(package: str) -> None:
    assert {name for name in MODULES if package in tops(name)} == ONLY[package]


def test_the_engine_knows_neither_adapters_nor_the_command_line() -> None:
    for name in MODULES:
        if name.startswith("compressor"):
            assert not tops(name) & {"adapters", "cli"}, name
        if name.startswith("adapters"):
            assert "cli" not in tops(name), name


def test_packages_of_the_engine_import_one_way() -> None:
    place = {name: number for number, name in enumerate(("", *ORDER))}
    for name in MODULES:
        if name.startswith("compressor."):
            later = {m for m in imports(name) & MODULES.keys() if m.startswith("compressor.")}
            assert all(place[package(m)] <= place[package(name)] for m in later), (name, later)


def test_every_package_of_the_engine_has_its_place() -> None:
    folders = {p.parent.name for p in (ROOT / "compressor").glob("*/__init__.py")}
    assert folders == set(ORDER)


def test_tests_and_samples_are_not_part_of_the_product() -> None:
    for name in MODULES:
        assert not tops(name) & {"tests", "samples", "benchmarks"}, name


def test_no_module_imports_in_a_circle() -> None:
    graph = {name: imports(name) & MODULES.keys() for name in MODULES}
    assert list(TopologicalSorter(graph).static_order())  # raises CycleError with the circle


def test_files_and_modules_that_the_documentation_names_are_there() -> None:
    texts = [*(ROOT / "docs").glob("*.md"), ROOT / "README.md", *MODULES.values()]
    for path in texts:
        text = path.read_text(encoding="utf-8")
        for file in re.findall(r"\b(?:compressor|adapters|cli)/[\w/]+\.py\b", text):
            assert (ROOT / file).is_file(), (path, file)
        for module in re.findall(r"`(compressor\.[a-z_]+\.[a-z_]+)", text):
            assert module in MODULES or module.rpartition(".")[0] in MODULES, (path, module)


def test_every_public_name_resolves_and_is_visible() -> None:
    for name in compressor.__all__:
        assert getattr(compressor, name).__name__ == name
    assert set(compressor.__all__) <= set(dir(compressor))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = compressor.nothing


def test_importing_the_package_alone_does_not_import_torch() -> None:
    program = "import sys, compressor, cli.main; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
