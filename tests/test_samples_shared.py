"""The pretrained samples on a few hundred images; skipped where their data is not there."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import ModuleType

import pytest
import torch

import compressor
from benchmarks.support import SAMPLES, sample
from cli.resolve import resolve_target
from compressor.device.timing import Schedule
from compressor.network.counting import count
from compressor.run import delivery
from compressor.score.judge import top1


def available(name: str) -> ModuleType:
    module = sample(name)
    if not module.WEIGHTS.exists():
        pytest.skip(f"{module.WEIGHTS.name} is not there; set COMPRESSOR_SHARED to its folder")
    return module


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "_FINAL", Schedule(rounds=6, seconds=0.1))


def test_resnet20_keeps_its_accuracy_at_half_the_madds_without_training(tmp_path: Path) -> None:
    cifar = available("cifar10_resnet20")
    model = cifar.build_model()
    held_out = cifar.images("test", 0, 500)
    before = top1(model, held_out)
    assert before >= 0.9
    result = compressor.compress(
        model,
        cifar.example_input(),
        budget="madds=50%",
        calibration=cifar.images("train", 0, 256, size=128),
        validation=cifar.images("train", 49_500, 50_000),
        evaluations=3,
        out=tmp_path / "run",
    )
    summary = result.summary
    assert 0.97 * 0.5 <= summary.best.madds / summary.base.madds <= 0.5
    # only the inner widths can be cut: the padded shortcuts tie the stages together
    assert len(summary.widths) == 10
    # cutting and recalibrating alone leaves about 0.6
    assert top1(result.model, held_out) >= 0.75
    loaded = compressor.load(tmp_path / "run", cifar.build_model())
    assert top1(loaded, held_out) == top1(result.model, held_out)


def test_resnet56_is_the_deeper_resnet20_with_data_of_its_own() -> None:
    cifar = available("cifar10_resnet56")
    model = cifar.build_model()
    counted = count(model, (cifar.example_input(),))
    assert (counted.madds, counted.params) == (125_485_696, 853_018)
    calibration = torch.cat(cifar.calibration_data())
    assert calibration.shape == (1024, 3, 32, 32)
    decide = torch.cat([x for x, _ in cifar.validation_data()])
    assert decide.shape[0] == 2000
    shared = {x.numpy().tobytes() for x in calibration} & {x.numpy().tobytes() for x in decide}
    assert not shared
    assert top1(model, cifar.images("test", 0, 250)) >= 0.92


def test_resnet56_is_a_target_of_the_command_line() -> None:
    available("cifar10_resnet56")
    target = resolve_target(str(SAMPLES / "cifar10_resnet56.py"))
    assert sum(len(x) for x in target.calibration) == 1024
    assert target.training is not None


def test_mobilenet_reaches_its_budget(tmp_path: Path) -> None:
    imagenet = available("imagenet_mobilenet_v2")
    images = [image for _, image in islice(read(imagenet), 24)]
    batch = imagenet.Images(torch.stack(images), torch.arange(24), size=12)
    model = imagenet.build_model()
    assert top1(model, batch) >= 0.7
    result = compressor.compress(
        model,
        imagenet.example_input(),
        budget="madds=70%",
        calibration=batch,
        validation=batch,
        evaluations=1,
        refit=False,  # minutes, and shown on smaller networks
        out=tmp_path / "run",
    )
    summary = result.summary
    assert summary.base.madds == 300_774_272
    assert 0.97 * 0.7 <= summary.best.madds / summary.base.madds <= 0.7
    assert len(summary.widths) == 25


def read(imagenet: ModuleType) -> Iterator[tuple[str, torch.Tensor]]:
    """The first images, in class order."""
    yield from imagenet.read_tar(imagenet.SAMPLES)


@pytest.mark.sweep
def test_resnet20_sample_on_all_its_data(tmp_path: Path) -> None:
    cifar = available("cifar10_resnet20")
    result = compressor.compress(
        cifar.build_model(),
        cifar.example_input(),
        budget="madds=50%",
        calibration=cifar.calibration_data(),
        validation=cifar.validation_data(),
        evaluations=20,
        out=tmp_path / "run",
    )
    assert top1(cifar.build_model(), cifar.test_data()) == pytest.approx(0.9173)
    assert top1(result.model, cifar.test_data()) >= 0.8


@pytest.mark.sweep
def test_resnet56_sample_before_compression() -> None:
    cifar = available("cifar10_resnet56")
    assert top1(cifar.build_model(), cifar.test_data()) == pytest.approx(0.9339)
