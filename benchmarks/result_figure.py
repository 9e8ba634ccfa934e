"""Draws the first picture of the documentation from the table in docs/benchmarks.md.

python -m benchmarks.result_figure

Of every method the better of the two accuracies counts, as returned or with recalibrated BatchNorm,
and of its settings the best; of ours the row that the README states.
"""

from __future__ import annotations

import re
from pathlib import Path

_DOCS = Path(__file__).resolve().parents[1] / "docs"
TABLE = _DOCS / "benchmarks.md"
PICTURE = _DOCS / "result.svg"
_SECTION = "## ResNet-56 on CIFAR-10 beside other tools"
_METHODS = {
    "original": "original",
    "ours, 200 evaluations": "compressor",
    "torch-pruning": "torch-pruning",
    "FastNAS": "ModelOpt FastNAS",
}
_WIDTH, _LEFT, _RIGHT, _TOP, _ROW, _BAR = 720, 170, 70, 74, 46, 26
_STYLE = (
    "text{fill:#1f2933;font:16px system-ui,sans-serif}.head{font-size:19px;font-weight:600}"
    ".soft{fill:#5c6570;font-size:14px}.end{text-anchor:end}.other{fill:#cbd5e1}.ours{fill:#1f6fb2}"
)


def accuracies(page: str) -> dict[str, float]:
    """Top-1 in per cent of each method, in the order of the picture.

    Raises:
        LookupError: the page has no row of a method.
    """
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in page.partition(_SECTION)[2].partition("\n## ")[0].splitlines()
        if line.startswith("|")
    ]
    found = {}
    for row, name in _METHODS.items():
        values = [_best(cells) for cells in rows if cells[0].partition(" (")[0].startswith(row)]
        if not values:
            raise LookupError(f"{TABLE} has no row of {row!r}")
        found[name] = max(values)
    return found


def _best(cells: list[str]) -> float:
    return max(float(re.sub(r"[^\d.]", "", cell)) for cell in cells[3:5])


def picture(values: dict[str, float]) -> str:
    """Bars from zero, as SVG."""
    height = _TOP + _ROW * len(values) + 12
    scale = (_WIDTH - _LEFT - _RIGHT) / 100
    bars = "".join(
        f'<text class="end" x="{_LEFT - 12}" y="{y + 18}">{name}</text>'
        f'<rect class="{"ours" if name == "compressor" else "other"}" x="{_LEFT}" y="{y}" '
        f'width="{value * scale:.1f}" height="{_BAR}" rx="3"/>'
        f'<text x="{_LEFT + value * scale + 8:.1f}" y="{y + 18}">{value:.1f} %</text>\n'
        for y, (name, value) in zip(range(_TOP, height, _ROW), values.items(), strict=False)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img">\n'
        f"<style>{_STYLE}</style>\n"
        f'<rect width="{_WIDTH}" height="{height}" fill="#fff" rx="8"/>\n'
        '<text class="head" x="20" y="32">ResNet-56 at half of its multiply-adds, '
        "nothing trained</text>\n"
        '<text class="soft" x="20" y="54">top-1 on the 10,000 test images of CIFAR-10</text>\n'
        f"{bars}</svg>\n"
    )


def main() -> None:
    """Writes the picture."""
    values = accuracies(TABLE.read_text(encoding="utf-8"))
    PICTURE.write_text(picture(values), encoding="utf-8")
    print(f"{PICTURE}: {values}")


if __name__ == "__main__":
    main()
