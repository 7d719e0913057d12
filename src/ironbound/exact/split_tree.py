"""The leaves of a search: what a proof by branch and bound consists of, and whether it leaves nothing out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ironbound.exact.split_bounds import Multipliers
from ironbound.exact.split_cuts import Shares
from ironbound.exact.split_pool import packed
from ironbound.exact.split_relaxation import Relaxation


@dataclass(frozen=True, eq=False)
class Tree:
    """Closed leaves. A clause is proved by leaves that cover all inputs, each with a bound above the guard.

    Attributes:
        node: relaxed node of each column, int64 [columns].
        neuron: flat index of each column's neuron in its node, int64 [columns].
        clause: of each leaf, int64 [leaves].
        signs: 1 where the leaf holds a neuron's input at least at its kink, -1 at most, else 0, int8 [leaves, columns].
        t: slopes of the neurons that are not split, float16 [leaves with slopes, columns]; the first leaves have them.
        beta: multipliers of the splits, likewise.
        weight: shares of the clauses' rows, [leaves with slopes, rows].
        cuts: multipliers of the cuts, float16 [leaves with slopes, cuts].
        shares: what the cuts were made of.
        tightenings: what the bounds of the neurons rest on, beyond those of "alpha"; each builds on those before.
    """

    node: Tensor
    neuron: Tensor
    clause: Tensor
    signs: Tensor
    t: Tensor
    beta: Tensor
    weight: Tensor
    cuts: Tensor
    shares: Shares
    tightenings: tuple[Tightening, ...] = ()

    def __len__(self) -> int:
        return len(self.clause)

    def take(self, clauses: Tensor, rows: Tensor) -> Tree:
        """The leaves of some clauses, by int64 [clauses kept], numbered anew in that order.

        Args:
            clauses: to keep, int64 [clauses kept].
            rows: theirs, in the order of the network that the clauses are taken to, int64 [rows kept].

        Returns:
            Their leaves.
        """
        number = torch.full((int(max(self.clause.amax(), clauses.amax())) + 1,), -1, device=clauses.device)
        number[clauses] = torch.arange(len(clauses), device=clauses.device)
        found = number[self.clause]
        kept = found >= 0
        slopes = kept[: len(self.t)]
        return replace(
            self,
            clause=found[kept],
            signs=self.signs[kept],
            t=self.t[slopes],
            beta=self.beta[slopes],
            weight=self.weight[slopes][:, rows],
            cuts=self.cuts[slopes],
        )

    def clamps(self, leaf: int) -> list[tuple[int, int, int]]:
        """The leaf's splits: (node, neuron, sign)."""
        columns = torch.nonzero(self.signs[leaf]).flatten().tolist()
        return [(int(self.node[c]), int(self.neuron[c]), int(self.signs[leaf, c])) for c in columns]


@dataclass(frozen=True, eq=False)
class Tightening:
    """The leaves behind tighter bounds of some neurons of one relaxed node.

    Attributes:
        node: the relaxed node.
        neurons: flat indices, int64 [neurons].
        tree: clause k says that neuron k's input is above its kink, clause neurons + k that it is below.
    """

    node: int
    neurons: Tensor
    tree: Tree

    def bytes(self) -> int:
        """What it takes."""
        tree = self.tree
        parts = (tree.clause, tree.signs, tree.t, tree.beta, tree.weight, tree.cuts)
        return sum(part.element_size() * part.numel() for part in parts)


@dataclass(frozen=True, eq=False)
class Proof:
    """The leaves that prove some clauses.

    Attributes:
        clauses: numbers in the query, int64 [clauses].
        tree: its clause k is the k-th of them.
    """

    clauses: Tensor
    tree: Tree


class Leaves:
    """Collects leaves; their slopes are kept while the budget lasts.

    Args:
        net: the relaxed network; `net` may be set to the same with more cuts.
        budget: bytes of slopes.
    """

    def __init__(self, net: Relaxation, budget: int) -> None:
        self.net, self.budget = net, budget
        self.bytes = 0
        self._slopes = 0
        self._with = True
        self._parts: list[list[Tensor]] = [[], [], [], [], [], []]
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, clause: Tensor, at: Multipliers) -> None:
        """Adds closed leaves, of clauses int64 [n]."""
        if len(clause) == 0:
            return
        self._count += len(clause)
        signs, *slopes = packed(at)
        self._with = self._with and self._slopes < self.budget
        slope_bytes = sum(part.element_size() * part.numel() for part in slopes) if self._with else 0
        self._slopes += slope_bytes
        self.bytes += signs.numel() + 8 * len(clause) + slope_bytes
        for column, part in zip(self._parts, [clause, signs, *(slopes if self._with else ())], strict=False):
            column.append(part)

    def tree(self, tightenings: tuple[Tightening, ...] = ()) -> Tree:
        """The leaves found."""
        net = self.net
        like = net.constant
        empty = (
            net.rows.clause[:0],
            torch.zeros((0, net.width), dtype=torch.int8, device=like.device),
            *(torch.zeros((0, net.width), dtype=torch.float16, device=like.device),) * 2,
            like.new_zeros((0, len(net.rows.clause))),
            torch.zeros((0, len(net.cuts)), dtype=torch.float16, device=like.device),
        )
        *parts, cuts = self._parts
        whole = [F.pad(part, (0, len(net.cuts) - part.shape[1])) for part in cuts]  # cuts that came later counted 0
        parts = [torch.cat([*part, none]) for part, none in zip([*parts, whole], empty, strict=True)]
        clause, signs, t, beta, weight, cuts = parts
        return Tree(net.nodes, net.neurons, clause, signs, t, beta, weight, cuts, net.cuts.shares, tightenings)


def covers(tree: Tree, clause: int) -> bool:
    """Whether the leaves of a clause hold every sign pattern.

    A set of leaves covers everything if one of them has no clamp left, or if for some neuron those that allow a sign
    cover everything, for both signs. The neuron that most leaves clamp is tried: a tree's root is clamped by all.

    Args:
        tree: the leaves.
        clause: number of the clause.

    Returns:
        True only where they do.
    """
    open_sets = [tree.signs[tree.clause == clause]]
    while open_sets:
        signs = open_sets.pop()
        if len(signs) == 0:
            return False
        counts = (signs != 0).sum(0)
        if bool((signs == 0).all(1).any()):
            continue
        column = int(counts.argmax())
        for sign in (1, -1):
            rest = signs[signs[:, column] != -sign].clone()
            rest[:, column] = 0
            open_sets.append(rest)
    return True
