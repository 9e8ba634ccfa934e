"""docs/zoo.md from what was saved: `python -m benchmarks.zoo.page ZOO.json… [--peer PEER.json…]`.

Of a network that stands in several files the last outcome counts.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.zoo.networks import names
from compressor.versions import version_of

Rows = Mapping[str, Mapping[str, Any]]

_READING = ("read_seconds", "read_cpu_seconds")
_LONG = 30
_PAGE = Path("docs/zoo.md")
_TEXT = """\
# Other people's networks

```sh
python -m benchmarks.zoo               # torchvision, and the smallest network of timm's families
python -m benchmarks.zoo 'torchvision:*resnet*' --json
python -m benchmarks.zoo --peer        # torch-pruning on the same list
```

cuts each network to half its MAdds, compares it with the masked original in double precision,
exports it, and has ONNX Runtime load and run the file; each in a process of its own, with limits
on time and memory. Weights are random, no image is looked at: it is about whether a network can
be cut, and correctly, not about accuracy. "MAdds that can shrink" are those in weights, and in
products of activations, that some search layer touches; "reading" is finding and proving the
search layers, part of the seconds, and beside it the time that a core worked at it. Of
torchvision's detectors it is the backbone, whose feature maps stay as they are.

{done} of the {every} networks are shown, with torch {torch}, torchvision {torchvision} and timm
{timm}, one thread each, beside other work on two cores, so that times are too long. Each had 300 s
and 12 GiB of address space, and timm's largest vision transformers (deepseek, gemma4, qwen3), which
compute 295 to 516 GMAdds, 900 s: `--seconds`, `--memory`. These three, BEiT, DINOv3, MViTv2 and
NaFlexViT are of later commits than the others; attention heads are found in more networks there.

{peer}{table}

{summary}
"""
_PEER = """\
"torch-pruning" is its `BasePruner` with 30 % of the channels taken from every layer but the last,
where it was run: `runs` to outputs of the right shapes with the share of MAdds left, or why not.
Whether what runs computes the right thing was not checked. Each had 45 to 60 s; most that fail do
so in the first five.

"""


def page(rows: Rows, peers: Rows) -> str:
    """The page in Markdown."""
    every = names([])
    shown = [rows[name] for name in every if name in rows]
    good = [row for row in shown if row["ok"]]
    runs = [peers[row["name"]]["ok"] for row in shown if row["name"] in peers]
    wrong = sum(row["contract"] is False for row in shown)
    mean = sum(row["madds_share"] for row in good) / max(len(good), 1)
    summary = (
        f"{len(good)} of {len(shown)} reach half their MAdds, correct and exported; silently "
        f"wrong: {wrong}; mean share of the MAdds that can shrink, over those: {mean:.1%}."
    )
    reading = [row["read_cpu_seconds"] for row in shown if "read_cpu_seconds" in row]
    if reading:
        long = sum(seconds > _LONG for seconds in reading)
        memory = max(row.get("peak_mb", 0) for row in shown) / 1024
        summary += (
            f" Reading: {max(reading):.0f} s of a core at most, {long} of {len(reading)} above "
            f"{_LONG} s; memory: {memory:.1f} GB at most."
        )
    if runs:
        summary += f" torch-pruning's runs: {sum(runs)} of {len(runs)}."
    versions = {name: version_of(name) for name in ("torch", "torchvision", "timm")}
    return _TEXT.format(
        done=len(shown), every=len(every), peer=_PEER if runs else "",
        table=_table(shown, peers), summary=summary, **versions,
    )  # fmt: skip


def _table(rows: Sequence[Mapping[str, Any]], peers: Rows) -> str:
    heads = ["network", "ok", "layers", "MAdds that can shrink", "reached", "reading, s", "CPU, s"]
    heads += ["s", "MB"]
    heads += ["torch-pruning"] if peers else []
    lines = [[*heads, "reason"], ["---"] * (len(heads) + 1)]
    for row in rows:
        line = [row["name"], "yes" if row["ok"] else "no", str(row.get("layers", "–"))]
        line += [f"{row[k]:.0%}" if k in row else "–" for k in ("madds_share", "madds_ratio")]
        line += [f"{row[k]:.0f}" if k in row else "–" for k in _READING]
        line += [f"{row['seconds']:.0f}", f"{row.get('peak_mb', 0):.0f}"]
        line += [_said(peers.get(row["name"]))] if peers else []
        lines.append([*line, row["reason"].replace("|", "/")])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _said(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "–"
    if row["ok"]:
        return f"runs, {row['madds_ratio']:.0%}"
    return str(row["reason"]).replace("|", "/")[:60]


def _read(files: Iterable[Path]) -> Rows:
    rows = (row for file in files for row in json.loads(file.read_text(encoding="utf-8")))
    return {row["name"]: row for row in rows}


def main() -> None:
    """Writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--peer", nargs="*", type=Path, default=[])
    given = parser.parse_args()
    _PAGE.write_text(page(_read(given.files), _read(given.peer)), encoding="utf-8")


if __name__ == "__main__":
    main()
