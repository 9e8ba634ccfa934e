"""Transfer by distribution matching: which inputs an encoder finds alike, taught to another.

IMTNAS ("Interleaving Multi-Task Neural Architecture Search", OpenReview e3JsfnAi9f): some inputs of
the previous task and some of the current one, each in several changed forms, which make a set. The
previous encoder says which pairs of sets are similar, by their maximum mean discrepancy (MMD); the
current one learns to say the same. In place of the paper's constants: the kernel is as wide as the
median distance, and the threshold is a quantile of the MMDs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.errors import DataError
from compressor.multitask.augmenting import Augment, augmented
from compressor.multitask.embedding import embedded
from compressor.network.counting import evaluating
from compressor.network.data import Batches, Inputs, device_of, on, part_of, size_of, split

SAMPLES = 10
"""Inputs of either task, as in the paper."""
FORMS = 20
"""Changed forms of each, which make a set; as in the paper."""
MARGIN = 0.1
"""By which the MMD of a similar pair is to be smaller than that of a dissimilar one."""
_SETS, _FORMS = 6, 8  # in one step, drawn at random: 48 inputs


def squared_mmd(embeddings: Tensor) -> Tensor:
    """Squared MMD of every pair of sets, `[sets, sets]`, zero on the diagonal.

    The biased estimate of Gretton et al. (JMLR 13, 2012, equation 5) with the kernel
    `exp(-distance² / (2 · median²))`; the median is that of the distances between all different
    embeddings, and no gradient passes through it.

    Args:
        embeddings: `[sets, forms, width]`.
    """
    sets, forms, _ = embeddings.shape
    flat = embeddings.flatten(0, 1)
    flat = flat - flat.detach().mean(0)  # what squares have in common would hide small distances
    squares = flat.square().sum(1)
    distances = (squares[:, None] + squares[None] - 2 * flat @ flat.T).clamp_min(0.0)
    pairs = torch.triu_indices(len(flat), len(flat), 1, device=flat.device)
    median = distances.detach()[pairs[0], pairs[1]].median()
    kernel = torch.exp(-distances / (2 * median.clamp_min(torch.finfo(flat.dtype).tiny)))
    means = kernel.reshape(sets, forms, sets, forms).mean((1, 3))
    own = means.diagonal()
    return own[:, None] + own[None] - 2 * means


def similar_pairs(mmds: Tensor, quantile: float) -> Tensor:
    """Which pairs of sets are similar, boolean `[sets, sets]`, symmetric.

    Those whose MMD is at most this quantile of the MMDs of all pairs of different sets.
    """
    values = _of_pairs(mmds)
    return mmds <= torch.quantile(values, quantile) if len(values) else torch.ones_like(mmds) > 0


def relation_loss(mmds: Tensor, similar: Tensor, margin: float = MARGIN) -> Tensor:
    """How far an encoder is from the relations: 0 where each is reproduced by the margin.

    Which pairs are similar is a matter of order, as the threshold is a quantile: an encoder
    reproduces it if the MMD of every similar pair is smaller than that of every dissimilar one. So
    this is the mean of `max(0, margin + MMD² of the similar - MMD² of the dissimilar)` over all
    combinations of a similar and a dissimilar pair; 0 where there is none.

    Args:
        mmds: of the encoder that learns, `[sets, sets]`.
        similar: what it is to reproduce, boolean `[sets, sets]`.
        margin: in units of the squared MMD, which is between 0 and 2.
    """
    values, alike = _of_pairs(mmds), _of_pairs(similar)
    excess = margin + values[alike][:, None] - values[~alike][None]
    return functional.relu(excess).mean() if excess.numel() else values.sum() * 0.0


def _of_pairs(table: Tensor) -> Tensor:
    sets = len(table)
    rows, columns = torch.triu_indices(sets, sets, 1, device=table.device)
    return table[rows, columns]


@dataclass(frozen=True)
class Source:
    """Where inputs of a task come from.

    Attributes:
        batches: that inputs are drawn from.
        augment: changes them; see `augmented`.
    """

    batches: Batches
    augment: Augment | None = None


def drawn_sets(sources: Sequence[Source], device: torch.device, random: torch.Generator) -> Inputs:
    """Sets of changed inputs, tensors `[sets, FORMS, …]`: `SAMPLES` sets of each source.

    Raises:
        DataError: two sources have inputs of different shapes; or see `augmented`.
    """
    found: list[list[Inputs]] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=random)))
        for source in sources:
            samples = on(device, _drawn(source.batches, random))
            # one call for a form of all: some functions draw once for a whole batch
            found.append([augmented(samples, source.augment) for _ in range(FORMS)])
    each = [tuple(torch.stack(x, dim=1) for x in zip(*forms, strict=True)) for forms in found]
    shapes = [[tuple(x.shape[2:]) for x in tensors] for tensors in each]
    if any(one != shapes[0] for one in shapes):
        raise DataError(
            "tasks whose encoders learn from each other must have inputs of the same shapes, but "
            f"got {' and '.join(map(str, shapes))}"
        )
    return tuple(torch.cat(x) for x in zip(*each, strict=True))


def _drawn(batches: Batches, random: torch.Generator) -> Inputs:
    """Inputs drawn at random, of all there are."""
    count = sum(size_of(split(batch)[0]) for batch in batches)
    places = sorted(torch.randperm(count, generator=random)[:SAMPLES].tolist())
    taken: list[Inputs] = []
    passed = 0
    for batch in batches:
        inputs, _ = split(batch)
        here = [p - passed for p in places if passed <= p < passed + size_of(inputs)]
        taken += [part_of(inputs, slice(p, p + 1)) for p in here]
        passed += size_of(inputs)
    return tuple(torch.cat(x) for x in zip(*taken, strict=True))


class Matching:
    """A term for `compressor.score.finetune.Learner`: weight × `relation_loss`.

    Each step takes some of the sets and of their forms, drawn at random. The student embeds them in
    evaluation mode: its BatchNorms use their running statistics and do not learn those of another
    task's inputs. The gradient is left in the parameters.

    Attributes:
        similar: which pairs of sets the previous encoder finds similar.
        seconds: spent here, the preparation and gradients included.
    """

    def __init__(
        self,
        previous: tuple[nn.Module, Sequence[str]],
        sources: Sequence[Source],
        heads: Sequence[str],
        weight: float,
        quantile: float,
        random: torch.Generator,
    ) -> None:
        """Draws the sets and asks the previous encoder about them.

        Args:
            previous: the network whose encoder teaches, and its heads.
            sources: of its inputs, and of the student's.
            heads: of the student.
            weight: of the term.
            quantile: of the MMDs that is the threshold.
            random: draws sets and forms.
        """
        start = perf_counter()
        model, its_heads = previous
        self._sets = drawn_sets(sources, device_of(model), random)
        self._heads, self._weight, self._random = heads, weight, random
        with evaluating(model), torch.no_grad():
            embeddings = torch.stack(
                [embedded(model, its_heads, one) for one in zip(*self._sets, strict=True)]
            )
        self.similar = similar_pairs(squared_mmd(embeddings), quantile)
        self.seconds = perf_counter() - start

    def __call__(self, student: nn.Module, inputs: Inputs, loss: Tensor) -> Tensor:
        """Leaves the term's gradient in the student's parameters; the loss gets its value."""
        del inputs
        start = perf_counter()
        count = len(self.similar)
        sets = torch.randperm(count, generator=self._random)[:_SETS]
        forms = torch.randperm(FORMS, generator=self._random)[:_FORMS]
        chosen = tuple(x[sets][:, forms].flatten(0, 1) for x in self._sets)
        with evaluating(student):
            flat = embedded(student, self._heads, chosen)
        mmds = squared_mmd(flat.reshape(len(sets), len(forms), -1))
        value = self._weight * relation_loss(mmds, self.similar[sets][:, sets])
        value.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.seconds += perf_counter() - start
        return loss + value.detach()
