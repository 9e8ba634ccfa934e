"""A virtual environment with the peers and this project in it. Knows no torch."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_REQUIREMENTS = ROOT / "benchmarks" / "peers-requirements.txt"
_CONSTRAINTS = ROOT / "constraints.txt"
_READ = (_REQUIREMENTS, _CONSTRAINTS, ROOT / "pyproject.toml")
_DESCRIBE = (
    "import json; from benchmarks.support import environment; print(json.dumps(environment()))"
)


def python_with_peers(folder: Path) -> Path:
    """The Python of the environment in `folder`; makes it on first use or when a pin changed.

    The same pins as for the tests hold, so that torch, the counter and the exporter are those of
    this project.

    Raises:
        subprocess.CalledProcessError: pip could not install; it has said why.
    """
    python = folder / "bin" / "python"
    stamp, wanted = folder / "installed", _fingerprint()
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    print(f"installing the peers into {folder}; the first time takes minutes", file=sys.stderr)
    if not python.exists():
        venv.create(folder, with_pip=True)
    pip: list[str | Path] = [python, "-m", "pip", "--disable-pip-version-check", "install", "-qq"]
    subprocess.run(  # noqa: S603  (our own command)
        [*pip, "-c", _CONSTRAINTS, "-r", _REQUIREMENTS, "-e", ROOT],
        check=True,
        stdout=sys.stderr,
    )
    stamp.write_text(wanted)
    return python


def describe(python: Path) -> dict[str, object]:
    """Machine and versions, as that Python sees them."""
    out = subprocess.run(  # noqa: S603  (our own command)
        [python, "-c", _DESCRIBE], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    return dict(json.loads(out))


def _fingerprint() -> str:
    digest = hashlib.sha256(str(ROOT).encode())
    for path in _READ:
        digest.update(path.read_bytes())
    return digest.hexdigest()
