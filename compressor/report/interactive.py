"""Plotly's library, packed into a page that loads nothing. Knows no torch.

The library is read as a file of the installed package `plotly`; nothing of it is run here. In a
page it stands compressed, which takes 2 MB instead of 4.8, and the page's own script unpacks it.
The page's policy names both scripts by their hash: whatever else came into the page does not run.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from dataclasses import dataclass
from functools import cache
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from markupsafe import Markup

_PACKAGE, _FILE = "plotly", "plotly/package_data/plotly.min.js"
_OWN = "plots.js"
_LEVEL = 4  # 4 % larger than the smallest, in half the time
MISSING = (
    "The charts of this page do not move: the package plotly was not installed where the page was "
    "written. `pip install plotly`, then write the report again with `compressor report`."
)
# JSON within a script element must not end it; these are equal to JSON, and nothing to HTML.
_ESCAPED = "<>&\u2028\u2029"


@dataclass(frozen=True)
class Library:
    """Plotly's library, ready for a page.

    Attributes:
        packed: base64 of the zlib stream of the script.
        sha256: of the script, as a content security policy writes it.
        version: of the package.
    """

    packed: str
    sha256: str
    version: str


@dataclass(frozen=True)
class Script:
    """Everything of a page that is not to be read.

    Attributes:
        figures: JSON of the figures by the name of their place, safe inside a script element.
        library: what draws them.
        own: the page's own script.
    """

    figures: Markup
    library: Library
    own: Markup

    @property
    def policy(self) -> str:
        """The content security policy: nothing is loaded, and only these two scripts run."""
        own = _sha256(str(self.own).encode())
        return (
            "default-src 'none'; base-uri 'none'; form-action 'none'; style-src 'unsafe-inline'; "
            f"img-src data: blob:; script-src '{own}' '{self.library.sha256}'"
        )


@cache
def find_library() -> Library | None:
    """The library of the installed package; None where that is missing."""
    try:
        package = metadata.distribution(_PACKAGE)
        script = Path(str(package.locate_file(_FILE))).read_bytes()
    except (metadata.PackageNotFoundError, OSError):
        return None
    packed = base64.b64encode(zlib.compress(script, _LEVEL)).decode("ascii")
    return Library(packed, _sha256(script), package.version)


def make_script(figures: dict[str, Any], library: Library) -> Script:
    """What draws figures in a page.

    Args:
        figures: name of a place in the page to a figure of `compressor.report.plots`.
        library: as `find_library` gives it.
    """
    own = resources.files("compressor.report").joinpath(_OWN).read_text(encoding="utf-8")
    return Script(safe_json(figures), library, Markup(own))  # noqa: S704 - our own file


def safe_json(value: Any) -> Markup:
    """JSON that stays inside a script element, whatever its texts say."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    for character in _ESCAPED:
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704 - what could end the element was escaped above


def _sha256(content: bytes) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode('ascii')}"
