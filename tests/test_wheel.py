"""The wheel works where only it is installed, and not this checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("compressor", "adapters", "cli")
SOURCES = ("pyproject.toml", "README.md", "LICENSE", *PACKAGES)
CACHES = shutil.ignore_patterns("__pycache__")


def run(*words: object, cwd: Path) -> str:
    """Standard output of a command that must succeed; it sees no variable that leads here."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env={name: value for name, value in os.environ.items() if name not in hidden},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that the checkout stays clean."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=CACHES)
        else:
            shutil.copy(ROOT / name, source)
    how = ("--no-deps", "--no-build-isolation", "--no-index")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", *how, "-w", out, source, cwd=source)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of an environment with the wheel and, by path, what it depends on.

    A path in a .pth file brings the packages of this environment, but not its own .pth files:
    an editable installation of the checkout does not come along.
    """
    home = tmp_path_factory.mktemp("venv")
    venv.create(home, with_pip=True, symlinks=True)
    python = home / "bin" / "python"
    how = ("--no-deps", "--no-index", "--disable-pip-version-check")
    run(python, "-m", "pip", "install", "--quiet", *how, wheel, cwd=home)
    (site,) = home.glob("lib/python*/site-packages")
    others = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "dependencies.pth").write_text("\n".join(sorted(others)) + "\n")
    return home / "bin"


def test_the_wheel_holds_every_module_the_template_and_the_type_marks(wheel: Path) -> None:
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    wanted = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert held == wanted
    assert {"compressor/py.typed", "adapters/py.typed", "cli/py.typed"} <= held
    assert {"compressor/report/report.html.j2", "compressor/report/frontier.html.j2"} <= set(held)


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = [n for n in archive.namelist() if n.endswith("dist-info/METADATA")]
    metadata = archive.read(name).decode()
    assert "\nName: layernas-compressor\n" in metadata
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    assert any(n.endswith("licenses/LICENSE") for n in archive.namelist())


def test_the_packages_and_the_adapter_are_the_installed_ones(
    installed: Path, tmp_path: Path
) -> None:
    program = (
        "import json, adapters, cli, compressor\n"
        "from importlib.metadata import entry_points, version\n"
        "points = entry_points(group='compressor.adapters')\n"
        "print(json.dumps([[p.__file__ for p in (adapters, cli, compressor)],\n"
        "    {p.name: p.value for p in points}, version('layernas-compressor')]))\n"
    )
    files, points, version = json.loads(run(installed / "python", "-c", program, cwd=tmp_path))
    assert all(Path(file).is_relative_to(installed.parent) for file in files)
    assert points["generic"] == "adapters.generic:GenericAdapter"
    assert run(installed / "compressor", "--version", cwd=tmp_path).split() == [
        "compressor",
        version,
    ]


def test_the_demo_compresses_from_another_directory(installed: Path, tmp_path: Path) -> None:
    shutil.copy(ROOT / "samples" / "digits.py", tmp_path / "mine.py")
    words = ("--budget", "madds=40%", "--evaluations", "8", "--finetune", "2", "--out", "run")
    shown = run(installed / "compressor", "compress", "mine.py", *words, cwd=tmp_path)
    assert "MAdds" in shown
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["best"]["madds"] <= 0.4 * result["base"]["madds"]
    assert result["evaluations"] == 8
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "architecture.json", "journal.sqlite", "model.onnx", "model.safetensors", "report.html",
        "result.json",
    }  # fmt: skip
