"""LayerNAS as published (Fan et al., arXiv 2304.11517, Algorithm 1). Knows no torch.

Layers are decided in forward order. `M_l` holds the best prefixes of `l` decided layers, in
buckets of about equal cost: of such models only the best need be kept (Assumption 4.2), and the
best model at layer `l` extends one kept at `l - 1` (Assumption 4.1). A prefix is scored with the
undecided layers at the original.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from compressor.search.buckets import Buckets, Members
from compressor.search.ledger import Ledger
from compressor.search.moves import Dropped, Judged, Move, Visited
from compressor.search.settings import SearchSettings
from compressor.space import Architecture

_PASSES = 4  # how often the rounds reach the last layer where evaluations are short
_ALL = 2**31


class Published:
    """One run of Algorithm 1: rounds over the layers."""

    def __init__(self, ledger: Ledger, settings: SearchSettings, rng: random.Random) -> None:
        self._reach = reach = ledger.reach
        self._ledger, self._watch = ledger, ledger.watch
        self._rng = rng
        self._layers = len(reach.sizes)
        self._members = [Members(settings.kept) for _ in range(self._layers + 1)]
        self._members[0].add(0, (), 0.0)
        self._untried: dict[Architecture, list[int]] = {}
        self._parents, self._children = _allotment(reach.sizes, ledger.left, settings)
        self._buckets = Buckets(reach, settings.buckets)
        # networks above the limits are scored too, so some evaluations are set aside for networks
        # that can be the answer, unless there are enough for all networks
        self._reserve = max(1, ledger.left // 10)
        if math.prod(reach.sizes) <= ledger.left:
            self._reserve = 0

    def run(self) -> None:
        """Rounds until nothing is untried or the evaluations are spent."""
        moved = True
        while moved and self._ledger.left > self._reserve:
            moved = False
            for layer in range(self._layers):
                moved = self._visit(layer) or moved
        self._finish(exhausted=not moved)

    def _visit(self, layer: int) -> bool:
        """Tries options of one layer on parents drawn at random; False where none is untried."""
        self._tell(Visited(layer))
        moved = self._keep_defaults(layer)
        parents = [m.prefix for m in self._members[layer] if self._options(m.prefix)]
        children = []
        for parent in self._rng.sample(parents, min(self._parents, len(parents))):
            options = self._options(parent)
            for option in self._rng.sample(options, min(self._children, len(options))):
                options.remove(option)
                children.append((*parent, option))
        networks = [self._network(child) for child in children]
        self._ledger.ask([n for n in networks if n is not None], self._reserve)
        for child, network in zip(children, networks, strict=True):
            if network is not None:
                self._keep(child, network)
        return moved or bool(children)

    def _keep_defaults(self, layer: int) -> bool:
        """A parent at its default is the same network one layer on."""
        default = self._reach.original[layer]
        moved = False
        for member in self._members[layer]:
            network = self._reach.filled(member.prefix)
            known = self._ledger.score(network) is not None
            if known and default in self._options(member.prefix):
                self._options(member.prefix).remove(default)
                self._keep((*member.prefix, default), network)
                moved = True
        return moved

    def _options(self, prefix: Architecture) -> list[int]:
        """Untried options of the next layer that can still lead to an answer."""
        if prefix not in self._untried:
            options = range(self._reach.sizes[len(prefix)])
            self._untried[prefix] = [o for o in options if self._open((*prefix, o))]
        return self._untried[prefix]

    def _open(self, prefix: Architecture) -> bool:
        obstacle = self._reach.obstacle(prefix)
        if obstacle is not None:
            self._tell(Dropped(prefix, obstacle))
        return obstacle is None

    def _network(self, prefix: Architecture) -> Architecture | None:
        """The network in which the prefix is judged; None where it is whole and outside."""
        network = self._reach.filled(prefix)
        obstacle = self._reach.broken(network) if len(prefix) == self._layers else None
        if obstacle is None:
            return network
        self._tell(Dropped(prefix, obstacle))
        return None

    def _keep(self, prefix: Architecture, network: Architecture) -> None:
        score = self._ledger.score(network)
        if score is None:
            self._tell(Judged(prefix, network))
            return
        bucket = self._buckets.key(prefix)
        gone = self._members[len(prefix)].add(bucket, prefix, score)
        cost = self._reach.cost(self._reach.key, network)  # asked for a bucket before
        self._tell(Judged(prefix, network, score, cost, bucket, gone))

    def _tell(self, move: Move) -> None:
        if self._watch is not None:
            self._watch(move)

    def _finish(self, *, exhausted: bool) -> None:
        """Spends what was set aside on completions of the best prefixes, deepest first.

        Where nothing is left untried, only until some network is an answer.
        """
        self._tell(Visited(None))
        for network in self._completions():
            if self._ledger.left == 0 or (exhausted and self._ledger.answered()):
                return
            self._ledger.ask([network])

    def _completions(self) -> list[Architecture]:
        """Completed prefixes and the witness, those in the band first."""
        prefixes = [m.prefix for members in reversed(self._members) for m in members]
        found = [self._reach.complete(prefix) for prefix in prefixes[: 4 * self._reserve + 4]]
        networks = [n for n in found if n is not None and self._ledger.score(n) is None]
        networks.append(self._reach.witness)
        return sorted(dict.fromkeys(networks), key=lambda n: not self._reach.in_band(n))


def _allotment(sizes: Sequence[int], evaluations: int, settings: SearchSettings) -> tuple[int, int]:
    """Parents and children of a visit: everything where the evaluations suffice for it.

    Otherwise so many that the rounds reach the last layer several times.
    """
    row = math.inf if settings.buckets is None else settings.buckets * settings.kept
    prefixes, everything = 1.0, 0.0
    for size in sizes:
        prefixes = min(prefixes, row)
        everything += prefixes * size
        prefixes *= size
    if everything <= evaluations:
        return settings.parents or _ALL, settings.children or _ALL
    visit = max(1, evaluations // (_PASSES * len(sizes)))
    children = settings.children or max(1, math.isqrt(visit))
    return settings.parents or max(1, visit // children), children
