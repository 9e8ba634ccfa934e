"""torchvision's MobileNetV2 with its ImageNet weights.

    compressor compress samples/imagenet_mobilenet_v2.py --budget madds=70% --finetune 10 \
        --out runs/mobilenet

Weights and images are read from the folder in $COMPRESSOR_SHARED (default: `shared` beside this
repository): `weights/imagenet_mobilenet_v2-b0353104.pth`, and `data/imagenet_samples_1000_224.tar`
with one image for each class in class order. Without that file the weights are torchvision's own,
downloaded on first use. Even images calibrate and fine-tune, odd ones decide the search. The 500
validation images of `data/imagenette160_ilsvrcval500.tar` are for reporting only.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import MobileNet_V2_Weights, mobilenet_v2

SHARED = Path(os.environ.get("COMPRESSOR_SHARED", Path(__file__).resolve().parents[2] / "shared"))
WEIGHTS = SHARED / "weights" / "imagenet_mobilenet_v2-b0353104.pth"
SAMPLES = SHARED / "data" / "imagenet_samples_1000_224.tar"
HELD_OUT = SHARED / "data" / "imagenette160_ilsvrcval500.tar"
MEAN = torch.tensor([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1)
RESIZE, CROP = 256, 224
IMAGENETTE = {  # the ten classes of the held-out images among the thousand
    "n01440764": 0, "n02102040": 217, "n02979186": 482, "n03000684": 491, "n03028079": 497,
    "n03394916": 566, "n03417042": 569, "n03425413": 571, "n03445777": 574, "n03888257": 701,
}  # fmt: skip


@dataclass(frozen=True)
class Images:
    """Batches of normalised images, kept as bytes until they are read.

    Attributes:
        pixels: uint8 [N, 3, 224, 224].
        labels: int64 [N].
        size: images in a batch.
    """

    pixels: Tensor
    labels: Tensor
    size: int = 50

    def __len__(self) -> int:
        return (len(self.labels) + self.size - 1) // self.size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in zip(self.pixels.split(self.size), self.labels.split(self.size), strict=True):
            yield (x.float() / 255 - MEAN) / STD, y


def _decoded(file: object) -> Tensor:
    """An image file as uint8 [3, 224, 224]: shorter edge to 256, centre crop."""
    image = Image.open(file).convert("RGB")  # type: ignore[arg-type]
    if image.size != (CROP, CROP):
        scale = RESIZE / min(image.size)
        image = image.resize([round(s * scale) for s in image.size], Image.Resampling.BILINEAR)
        left, top = ((s - CROP) // 2 for s in image.size)
        image = image.crop((left, top, left + CROP, top + CROP))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def read_tar(path: Path) -> list[tuple[str, Tensor]]:
    """Names and pixels of all images, sorted by name."""
    with tarfile.open(path) as archive:
        names = sorted(m.name for m in archive.getmembers() if m.name.lower().endswith(".jpeg"))
        names = names or sorted(m.name for m in archive.getmembers() if m.isfile())
        return [(name, _decoded(archive.extractfile(name))) for name in names]


def samples(start: int) -> Images:
    """Every second of the thousand images, one a class."""
    pixels = [image for _, image in read_tar(SAMPLES)]
    labels = torch.arange(len(pixels))
    return Images(torch.stack(pixels[start::2]), labels[start::2])


def build_model() -> nn.Module:
    if not WEIGHTS.exists():
        return mobilenet_v2(weights=MobileNet_V2_Weights.IMAGENET1K_V1).eval()
    model = mobilenet_v2()
    model.load_state_dict(torch.load(WEIGHTS, map_location="cpu", weights_only=True))
    return model.eval()


def example_input() -> Tensor:
    return torch.zeros(1, 3, CROP, CROP)


def calibration_data() -> Images:
    return samples(0)


def validation_data() -> Images:
    return samples(1)


def test_data() -> Images:
    """500 held-out validation images of ten classes; decides nothing, only reports."""
    named = read_tar(HELD_OUT)
    labels = [next(i for wnid, i in IMAGENETTE.items() if wnid in name) for name, _ in named]
    return Images(torch.stack([image for _, image in named]), torch.tensor(labels))
