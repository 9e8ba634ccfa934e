"""The smallest network of every family of timm: `python -m benchmarks.zoo.families` lists them.

Takes some minutes, so that its output is kept in `benchmarks/zoo/timm.txt`. Networks are built
without memory for their weights.
"""

from __future__ import annotations

import torch

from tests.vision import torchvision


def smallest(family: str) -> str:
    """Name of the network with the fewest parameters; empty where none of the family is built.

    timm's own `test_` networks, some thousand parameters each, are left out: nobody deploys them.
    """
    import timm  # noqa: PLC0415  (optional, and it needs torchvision)

    sizes: dict[str, int] = {}
    for name in timm.list_models(module=family, exclude_filters="test_*"):
        try:
            with torch.device("meta"):
                model = timm.create_model(name, pretrained=False)
        except Exception:  # noqa: BLE001, S112  (another network of the family is as good)
            continue
        sizes[name] = sum(p.numel() for p in model.parameters())
    return min(sizes, key=lambda name: (sizes[name], name), default="")


def main() -> None:
    """Prints one name a line."""
    torchvision()
    from timm.models import list_modules  # noqa: PLC0415

    for family in list_modules():
        name = smallest(family)
        if name:
            print(name, flush=True)


if __name__ == "__main__":
    main()
