"""The images that candidates are refitted to and compared on, and how they are shown."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from compressor.network.data import split
from compressor.score.few import at_once, divisible, few_images, other_images


def test_the_first_64_inputs_over_batches() -> None:
    batches = [torch.arange(50 * i, 50 * i + 50.0)[:, None] for i in range(4)]
    found = few_images([(x, torch.zeros(50)) for x in batches])
    assert [len(x) for ((x,),) in found] == [50, 14]
    assert torch.equal(torch.cat([x for ((x,),) in found]), torch.arange(64.0)[:, None])


def test_a_full_last_batch_is_the_last() -> None:
    assert [len(x) for ((x,),) in few_images([torch.zeros(32, 1)] * 3)] == [32, 32]


def test_fewer_images_are_all_taken_and_no_more_is_read() -> None:
    assert len(few_images([torch.zeros(5, 1)] * 3)) == 3

    def batches() -> Iterator[Tensor]:
        yield torch.zeros(64, 1)
        raise AssertionError("read on")

    assert [len(x) for ((x,),) in few_images(batches())] == [64]


def test_every_input_of_a_batch_is_cut_but_not_what_has_no_batch() -> None:
    batch = (torch.zeros(200, 3), torch.ones(200), torch.ones(()), torch.ones(7, 2))
    for (found,) in few_images([(batch, torch.zeros(200))]):
        assert [list(x.shape) for x in found] == [[64, 3], [64], [], [7, 2]]


def test_other_images_are_those_after_the_first() -> None:
    batches = [torch.arange(50 * i, 50 * i + 50.0)[:, None] for i in range(12)]
    found = other_images([(x, torch.zeros(50)) for x in batches], 256)
    assert [len(x) for ((x,),) in found] == [36, 50, 50, 50, 50, 20]
    assert torch.equal(torch.cat([x for ((x,),) in found]), torch.arange(64.0, 320.0)[:, None])


def test_without_other_images_the_few_serve() -> None:
    batches = [torch.arange(60.0)[:, None]]
    assert torch.equal(torch.cat([x for ((x,),) in other_images(batches, 256)]), batches[0])
    assert [len(x) for ((x,),) in other_images([torch.zeros(65, 1)], 256)] == [1]


def test_two_inputs_are_not_taken_for_an_input_and_its_target() -> None:
    pair = (torch.zeros(4, 3), torch.ones(4))
    (found,) = few_images([(pair, torch.zeros(4))])
    inputs, targets = split(found)
    assert len(inputs) == 2
    assert targets is None


class OfTheBatch(nn.Module):
    """Answers differ with what else is in the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0, keepdim=True)


def test_a_network_that_looks_at_its_batch_is_shown_whole_batches() -> None:
    parts = [slice(0, 64), slice(64, 128), slice(128, 200)]
    x = [torch.randn(200, 3, 16, 16)]
    assert divisible(nn.ReLU(), (x[0],), parts)
    assert not divisible(OfTheBatch(), (x[0],), parts)
    assert not divisible(nn.BatchNorm2d(3, track_running_stats=False), (x[0],), parts)


def test_outputs_that_do_not_follow_the_batch_are_not_taken_apart() -> None:
    class Summary(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean()

    class Turned(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1).mT

    parts = [slice(0, 64), slice(64, 200)]
    for module in (Summary(), Turned()):
        assert not divisible(module, ([torch.randn(200, 3, 16, 16)][0],), parts)


def test_large_images_are_shown_a_few_at_a_time() -> None:
    shapes = [(9, 3, 32, 32), (9, 3, 224, 224), (9, 3, 2048, 2048), (9, 7), (9,)]
    assert [at_once((torch.empty(shape),)) for shape in shapes] == [64, 5, 4, 64, 64]
    pair = (torch.empty(9, 7), torch.empty(9, 3, 224, 224))
    assert at_once(pair) == 5
    assert [len(x) for ((x,),) in few_images([torch.zeros(13, 3, 224, 224)])] == [5, 5, 3]
