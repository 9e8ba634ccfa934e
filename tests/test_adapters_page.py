"""docs/adapters.md: what it has the reader save and run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "adapters.md").read_text(encoding="utf-8")
FILES = ("filtered.py", "filtered_adapter.py", "test_filtered.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found: Path = tmp_path_factory.mktemp("walk")
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == len(FILES)
    for name, block in zip(FILES, blocks, strict=True):
        assert f"`{name}`" in PAGE
        (found / name).write_text(block, encoding="utf-8")
    return found


def run(folder: Path, *command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, check=False, cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_generic_adapter_keeps_what_the_page_says(folder: Path) -> None:
    said = run(folder, "cli.main", "inspect", "filtered.py")
    assert "mix" in said
    assert re.search(r"stem.*meets something", said)


def test_the_adapter_is_found_in_the_folder(folder: Path) -> None:
    said = run(folder, "cli.main", "inspect", "filtered.py", "--adapter",
               "filtered_adapter:FilteredAdapter", "--json")  # fmt: skip
    assert re.search(r'"name": "stem"', said)
    assert "meets something" not in said


def test_the_adapter_keeps_the_contract(folder: Path) -> None:
    said = run(folder, "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", ".",
               "-o", "pythonpath=.", "test_filtered.py")  # fmt: skip
    assert "passed" in said
