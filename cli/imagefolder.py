"""Images in folders, one folder a class, read in batches as they are needed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from compressor.errors import DataError, TargetError

try:
    from PIL import Image
except ImportError as error:  # pragma: no cover - the tests' environment has it
    raise TargetError(
        "--data imagefolder:DIR needs pillow; "
        "`pip install layernas-compressor[torchvision]` brings it"
    ) from error

Transform: TypeAlias = Callable[[Image.Image], Tensor]
CALIBRATION_IMAGES = 256
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
_MOST_PIXELS, _LONGEST = 1 << 26, 100
_LAYOUT = "imagefolder:DIR holds DIR/<class>/*.jpg (or .png, .webp, .bmp)"


@dataclass(frozen=True)
class ImageBatches:
    """Batches `([N, 3, H, W], [N])`, read from disk at each pass.

    Attributes:
        files: images with their labels.
        transform: image to tensor `[3, H, W]`.
        size: images of a batch.
    """

    files: tuple[tuple[Path, int], ...]
    transform: Transform
    size: int = 32

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(self.files), self.size):
            part = self.files[start : start + self.size]
            images = torch.stack([self._read(path) for path, _ in part])
            yield images, torch.tensor([label for _, label in part])

    def __len__(self) -> int:
        return (len(self.files) + self.size - 1) // self.size

    def _read(self, path: Path) -> Tensor:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of sizes, which are checked here
                with Image.open(path) as image:
                    _require_size(image)
                    return self.transform(image.convert("RGB"))
        except Exception as error:  # each format has its own errors
            raise DataError(
                f"an image must be readable, but {str(path)!r} is not: {error}"
            ) from error


@dataclass(frozen=True)
class FolderData:
    """Batches of a folder, and what its reader should know about them; empty where nothing."""

    calibration: list[tuple[Tensor, Tensor]]
    validation: ImageBatches
    note: str = ""


def image_folder(
    data: str, transform: Transform, outputs: int, categories: Sequence[str] = ()
) -> FolderData:
    """Calibration and validation batches of a folder of images.

    The files are sorted; even ones calibrate (at most `CALIBRATION_IMAGES`, spread over the
    classes, held in memory), odd ones validate (read at each pass).

    Args:
        data: `imagefolder:DIR`.
        transform: image to tensor `[3, H, W]`.
        outputs: number of classes that the network tells apart.
        categories: the network's own names of its outputs, where known.

    Raises:
        DataError: there is no such folder, it has another layout, or has more classes than the
            network.
    """
    root = _root(data)
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    found = [(folder, _images(folder)) for folder in folders]
    found = [(folder, images) for folder, images in found if images]
    labels = class_labels([folder.name for folder, _ in found], outputs, categories)
    files = [
        (path, label) for (_, paths), label in zip(found, labels, strict=True) for path in paths
    ]
    if len(files) < 2:
        raise DataError(
            f"{_LAYOUT}, one image at least to calibrate and one to validate, but {str(root)!r} "
            f"holds {len(files)}"
        )
    even, odd = files[::2], files[1::2]
    stride = -(-len(even) // CALIBRATION_IMAGES)
    calibration = list(ImageBatches(tuple(even[::stride]), transform))
    note = _guess([folder.name for folder, _ in found], labels, outputs)
    return FolderData(calibration, ImageBatches(tuple(odd), transform), note)


def class_labels(names: Sequence[str], outputs: int, categories: Sequence[str] = ()) -> list[int]:
    """The output that each class folder stands for.

    Folders named by integers are outputs by themselves, folders named as the network names its
    outputs are those; otherwise the place in sorted order counts.

    Raises:
        DataError: more classes than outputs, or an integer beyond them.
    """
    if len(names) > outputs:
        raise DataError(
            f"the network tells {outputs} classes apart, but the data has {len(names)} folders"
        )
    if names and all(name.isdecimal() for name in names):
        labels = [int(name) for name in names]
        if max(labels) >= outputs:
            raise DataError(
                f"class folders named by integers must lie in 0..{outputs - 1}, "
                f"but got {max(labels)}"
            )
        return labels
    known = {_plain(name): i for i, name in enumerate(categories)}
    if names and all(_plain(name) in known for name in names):
        return [known[_plain(name)] for name in names]
    return list(range(len(names)))


def _guess(names: Sequence[str], labels: Sequence[int], outputs: int) -> str:
    """Labels by place in sorted order are a guess where the data lacks classes: say so."""
    if len(names) == outputs or list(labels) != list(range(len(names))):
        return ""
    if all(name.isdecimal() for name in names):
        return ""
    return (
        f"{len(names)} class folders for {outputs} outputs: {names[0]!r} is taken for output 0, "
        f"{names[-1]!r} for output {len(names) - 1}; name the folders by output number if they "
        "are others"
    )


@dataclass(frozen=True)
class Prepared:
    """An image as a network of a certain input size expects it.

    Attributes:
        height, width: of the centre that is cut out.
        enlarged: what the image is resized to before, as a multiple of that: the side that would
            otherwise be too short becomes exactly so long. None where both sides become height
            and width, whatever the image's proportions.
        mean, deviation: of each channel, subtracted and divided by, of values `scale` * 0..255.
        scale: see there.
        resample: how pixels are interpolated.
    """

    height: int
    width: int
    enlarged: float | None = 256 / 224
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    deviation: tuple[float, ...] = (0.229, 0.224, 0.225)
    scale: float = 1 / 255
    resample: Image.Resampling = Image.Resampling.BILINEAR

    def __call__(self, image: Image.Image) -> Tensor:
        """The image as `[3, H, W]`."""
        image = self._centre(image)
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        values = pixels.view(self.height, self.width, 3).permute(2, 0, 1).float() * self.scale
        mean, deviation = (torch.tensor(one).view(-1, 1, 1) for one in (self.mean, self.deviation))
        return (values - mean) / deviation

    def _centre(self, image: Image.Image) -> Image.Image:
        if self.enlarged is None:
            return image.resize((self.width, self.height), self.resample)
        wanted = (self.width, self.height)
        scale = max(
            round(to * self.enlarged) / side for to, side in zip(wanted, image.size, strict=True)
        )
        width, height = (
            max(to, round(side * scale)) for to, side in zip(wanted, image.size, strict=True)
        )
        left, top = (width - self.width) // 2, (height - self.height) // 2
        image = image.resize((width, height), self.resample)
        return image.crop((left, top, left + self.width, top + self.height))


default_transform = Prepared(224, 224)
"""Shorter side to 256, centre 224 × 224, ImageNet's mean and deviation."""


def _root(data: str) -> Path:
    kind, _, folder = data.partition(":")
    if kind != "imagefolder" or not folder:
        raise DataError(f"--data has the form imagefolder:DIR, but got {data!r}")
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise DataError(f"{_LAYOUT}, but there is no directory {str(root)!r}")
    return root


def _images(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES and p.is_file())


def _require_size(image: Image.Image) -> None:
    """A small file can hold an image that does not fit into memory, or would not once resized."""
    short, long = sorted(image.size)
    if not 0 < short * long <= _MOST_PIXELS or long > _LONGEST * short:
        raise ValueError(
            f"it has {image.width} x {image.height} pixels; at most {_MOST_PIXELS:,} are read, and "
            f"sides of at most 1 to {_LONGEST}"
        )


def _plain(name: str) -> str:
    return name.lower().replace("_", " ").strip()
