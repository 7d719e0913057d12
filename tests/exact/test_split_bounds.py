"""Bounds of subproblems: the published formula, the linear program's optimum, and no point below them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from exact.split_cases import cut, problem
from ironbound.bounding.alpha_dual import Ascent
from ironbound.capture import capture
from ironbound.exact.query import Query
from ironbound.exact.split_ascent import Pace, climbed, climbed_on, onto_simplex
from ironbound.exact.split_bounds import Multipliers, confirmed, fixed, gradient, walk
from ironbound.exact.split_branching import chosen, halves
from ironbound.exact.split_cuts import no_cuts
from ironbound.exact.split_leaf import solved
from ironbound.exact.split_pool import Batch, Pool
from ironbound.exact.split_relaxation import Relaxation, relaxed
from ironbound.exact.split_tree import Tree, covers


def _network(seed: int, rows: tuple[int, ...] = (1,), inputs: bool = False) -> tuple[Query, Relaxation]:
    query = problem(seed, "three layers" if not inputs else "wide input", rows, inputs).query()
    with torch.no_grad():
        return query, cut(relaxed(query, Ascent(5), None), 7, seed)


def _random(net: Relaxation, count: int, seed: int, split: float = 0.5) -> tuple[Multipliers, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    signs = (uniform(count, net.width) > 0.5).double() * 2 - 1
    signs = signs * (uniform(count, net.width) < split)
    clause = torch.randint(len(net.rows.guard), (count,), generator=generator)
    weight = uniform(count, len(net.rows.clause)) * net.rows.membership()[clause]
    beta = uniform(count, net.width) * 2
    cuts = uniform(count, len(net.cuts)) * (uniform(count, 1) < 0.7)
    return Multipliers(signs, uniform(count, net.width), beta, weight / weight.sum(1, keepdim=True), cuts), clause


def _inputs_of_neurons(query: Query, x: Tensor, net: Relaxation) -> Tensor:
    """What the open neurons read at points, [points, columns], by running the network node by node."""
    values = [x]
    for node in query.graph.nodes[1:]:
        values.append(node.operator.forward(*(values[source] for source in node.inputs)))
    columns = [
        values[query.graph.nodes[node].inputs[0]].flatten(1)[:, neuron]
        for node, neuron in zip(net.nodes.tolist(), net.neurons.tolist(), strict=True)
    ]
    return torch.stack(columns, 1)


@given(st.integers(0, 11), st.integers(0, 10**6), st.sampled_from([0.2, 0.5, 0.9]))
def test_no_point_of_a_subproblem_is_below_its_bound(seed: int, other: int, share: float) -> None:
    query, net = _network(seed, (2, 1), bool(seed % 2))
    at, clause = _random(net, 6, other, share)
    bounds = [walk(net, fixed(net, at.signs), at).value, climbed(net, at, clause, Pace(6)).value]
    x = torch.cat([query.region.sample() for _ in range(400)])
    z = _inputs_of_neurons(query, x, net)
    rows = query.clauses.best(query.clauses.values(x, query.graph(x)))
    met = 0
    for k in range(6):
        inside = ((at.signs[k] * z) >= 0).all(1)
        met += int(inside.sum())
        for value in bounds:
            assert bool((rows[inside, clause[k]] >= value[k] - 1e-9).all())
    assert met or share > 0.2


@pytest.mark.parametrize("seed", range(6))
def test_the_bound_is_that_of_the_beta_crown_theorem(seed: int) -> None:
    """Theorem 3.1 of Wang et al. (2021) with dense matrices: A <- (A D_i + beta_i S_i) W_i from the last layer down."""
    one = problem(seed, "three layers", (1,))
    query = one.query()
    with torch.no_grad():
        net = relaxed(query, Ascent(5), None)
    at, _ = _random(net, 8, seed)
    found = walk(net, fixed(net, at.signs), at).value
    weights = [(torch.as_tensor(w), torch.as_tensor(b)) for w, b in one.layers()]
    a, b, c = one.clauses[0]
    relus = [index for index, node in enumerate(query.graph.nodes) if "ReLU" in type(node.operator).__name__]
    bounds = [_ends(query, node) for node in relus]
    used = 0
    for k in range(8):
        row, total = b[0] @ weights[-1][0], b[0] @ weights[-1][1] + c[0]
        for place in range(len(relus) - 1, -1, -1):
            low, high = bounds[place]
            slope, offset = torch.empty_like(row), torch.zeros_like(row)
            push = torch.zeros_like(row)
            for j in range(len(row)):
                column = torch.nonzero((net.nodes == relus[place]) & (net.neurons == j)).flatten()
                sign = int(at.signs[k, column]) if len(column) else 0
                if len(column) == 0:
                    slope[j] = float(low[j] >= 0)
                elif sign:
                    slope[j], push[j] = float(sign > 0), -sign * at.beta[k, column]
                elif row[j] > 0:
                    slope[j] = at.t[k, column]
                else:
                    slope[j] = high[j] / (high[j] - low[j])
                    offset[j] = -slope[j] * low[j]
                used += sign
            total = total + (row * offset).sum()
            row = row * slope + push
            total = total + row @ weights[place][1]
            row = row @ weights[place][0]
        row = row + a[0]
        total = total + torch.where(row > 0, row * one.lower[0], row * one.upper[0]).sum()
        torch.testing.assert_close(found[k], total, rtol=1e-9, atol=1e-9)
    assert used


def _ends(query: Query, node: int) -> tuple[Tensor, Tensor]:
    from ironbound.bounding.alpha import alpha_state
    from ironbound.bounding.methods import METHODS

    known = [METHODS[name](query.graph, query.region, None).layers() for name in ("dual", "crown")]
    with torch.no_grad():
        low, high = alpha_state(query.graph, query.region, known, Ascent(5), None).layers[node]
    return low.flatten(), high.flatten()


@pytest.mark.parametrize("inputs", [False, True])
def test_the_gradient_is_the_derivative(inputs: bool) -> None:
    _, net = _network(3, (2, 3), inputs)
    at, _ = _random(net, 5, 0)
    parts = [part.clone().requires_grad_() for part in (at.t, at.beta, at.weight, at.cuts)]
    lines = fixed(net, at.signs)
    low, up = lines.lower, lines.upper
    t, beta, weight, cuts = parts
    met, nu = weight @ net.rows.parts + cuts @ net.cuts.parts, -at.signs * beta
    value = weight @ net.rows.constant + cuts @ net.cuts.constant
    columns_nu = list(nu.unbind(1))
    for columns, above in zip(net.levels[::-1], net.above[::-1], strict=True):
        higher = torch.stack(columns_nu[columns.stop :], 1) if len(above) else nu[:, :0]
        c = met[:, columns] + higher @ above
        positive = c.detach() > 0
        line = torch.where(positive, low[0][:, columns] + t[:, columns] * low[1][:, columns], up[0][:, columns])
        height = torch.where(positive, low[2][:, columns], up[2][:, columns])
        value = value + (c * height).sum(1)
        for number in range(columns.start, columns.stop):
            columns_nu[number] = columns_nu[number] + (c * line)[:, number - columns.start]
    whole = torch.stack(columns_nu, 1)
    reads = whole @ net.input + weight @ net.rows.input + cuts @ net.cuts.input
    ((_, radius, middle),) = net.sets
    value = value + whole @ net.constant + reads @ middle[0] - (reads.abs() * radius).sum(1)
    found = walk(net, lines, at)
    torch.testing.assert_close(found.value, value.detach())
    wanted = torch.autograd.grad(value.sum(), parts)
    slopes = gradient(net, lines, found)
    for have, want in zip((slopes.t, slopes.beta, slopes.weight, slopes.cuts), wanted, strict=True):
        assert bool(want.any())
        torch.testing.assert_close(have, want, rtol=1e-9, atol=1e-9)


def test_an_ascent_never_loses_and_reaches_the_linear_program() -> None:
    feasible = reached = 0
    for seed in range(4):
        _, net = _network(seed, (2,))
        # nothing is closed on the way
        net = replace(net, rows=replace(net.rows, guard=torch.full_like(net.rows.guard, 1e6)))
        at, clause = _random(net, 30, seed, 1.0)
        begun = walk(net, fixed(net, at.signs), at).value
        found = climbed(net, at, clause, Pace(300))
        assert bool((found.value >= begun - 1e-12).all())
        torch.testing.assert_close(walk(net, fixed(net, at.signs), found.at).value, found.value)
        for k in range(30):
            exact = solved(net, at.take(torch.tensor([k])), 0)
            if exact is not None and float(exact.value) < 100:
                assert float(found.value[k]) <= float(exact.value) + 1e-6
                feasible += 1
                reached += float(found.value[k]) > float(exact.value) - 0.02
    assert feasible > 10 and reached > 0.6 * feasible


@pytest.mark.parametrize("seed", range(4))
def test_multipliers_of_a_kink_away_from_zero(seed: int) -> None:
    class Shifted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.clamp(x, min=0.4)

    plain = problem(seed).query()
    parts = [Shifted() if isinstance(part, nn.ReLU) else part for part in problem(seed).model]
    query = replace(plain, graph=capture(nn.Sequential(*parts).eval(), plain.region.center))
    with torch.no_grad():
        net = relaxed(query, Ascent(5), None)
    assert bool((net.knot == 0.4).any())
    at, _ = _random(net, 40, seed, 0.3)
    bounds = walk(net, fixed(net, at.signs), at).value
    x = torch.cat([query.region.sample() for _ in range(1500)])
    inside = (at.signs.unsqueeze(1) * (_inputs_of_neurons(query, x, net) - net.knot) >= 0).all(2)
    rows = query.clauses.values(x, query.graph(x)).flatten()
    assert int(inside.any(1).sum()) > 10
    least = torch.where(inside, rows, torch.inf).amin(1)
    assert bool((least >= bounds - 1e-9).all())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_none_is_no_bound(value: float) -> None:
    _, net = _network(0)
    at, clause = _random(net, 3, 0)
    broken = replace(net, rows=replace(net.rows, constant=torch.full_like(net.rows.constant, value)))
    assert bool((climbed(broken, at, clause, Pace(3)).value == -torch.inf).all())
    assert bool((confirmed(broken, at) == -torch.inf).all())


def test_what_an_ascent_leaves_at_its_floor_climbs_on() -> None:
    _, net = _network(2, (1,))
    at, clause = _random(net, 12, 5)
    first = Pace(iterations=1)
    short = climbed(net, at, clause, first)
    floor = short.value.clone()
    floor[::2] -= 1.0  # these have risen above their parents
    found = climbed_on(net, at, clause, floor, first)
    assert found.value[::2].equal(short.value[::2])
    assert (found.value >= short.value).all()
    still = (short.value <= net.rows.guard[clause])[1::2]
    assert (found.value > short.value)[1::2][still].any()
    torch.testing.assert_close(confirmed(net, found.at), found.value)


def test_shares_are_projected_onto_the_simplex() -> None:
    rows = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 0, 1, 1.0]]).double().repeat(50, 1)
    weight = torch.randn(100, 5, dtype=torch.float64) * 2
    found = onto_simplex(weight, rows)
    assert bool((found >= 0).all()) and bool((found[rows == 0] == 0).all())
    torch.testing.assert_close(found.sum(1), torch.ones(100).double())
    for _ in range(200):  # no other point of the simplex is nearer
        other = torch.rand(100, 5, dtype=torch.float64) * rows
        other = other / other.sum(1, keepdim=True)
        assert bool((((weight - other) ** 2 * rows).sum(1) >= ((weight - found) ** 2 * rows).sum(1) - 1e-12).all())


def test_a_split_divides_in_two() -> None:
    _, net = _network(4)
    at, clause = _random(net, 7, 1, 0.3)
    column = chosen(net, at, clause)
    both = halves(net, at, column)
    for k in range(7):
        up, down = both.signs[k], both.signs[k + 7]
        assert (int(up[column[k]]), int(down[column[k]]), int(at.signs[k, column[k]])) == (1, -1, 0)
        others = torch.arange(net.width) != column[k]
        for half in (up, down):
            assert torch.equal(half[others], at.signs[k, others])
        dropped = net.cuts.shares.column == column[k]
        for cuts in (both.cuts[k], both.cuts[k + 7]):
            assert torch.equal(cuts, at.cuts[k].masked_fill(dropped, 0.0))


@pytest.mark.parametrize("seed", range(4))
def test_the_chosen_neuron_has_the_side_that_gains_most(seed: int) -> None:
    _, net = _network(seed, (2, 1))
    # with cuts whose multipliers are far from their best the first order does not tell the better side
    rows = replace(net.rows, guard=net.rows.guard + 0.5 * seed)
    net = replace(net, rows=rows, cuts=no_cuts(net.place, net.input_place, net.constant))
    at, clause = _random(net, 5, seed, 0.3)
    before = walk(net, fixed(net, at.signs), at).value
    best = chosen(net, at, clause, net.width)
    for k in range(5):
        worth = {}
        for column in torch.nonzero(net.splittable & (at.signs[k] == 0)).flatten().tolist():
            gains = []
            for sign in (1.0, -1.0):
                one = at.take(torch.tensor([k]))
                signs, beta = one.signs.clone(), one.beta.clone()
                signs[0, column], beta[0, column] = sign, 0.0
                half = replace(one, signs=signs, beta=beta)
                after = walk(net, fixed(net, signs), half).value[0]
                gains.append(max(1e-6, float(torch.minimum(after, net.rows.guard[clause[k]]) - before[k])))
            worth[column] = max(gains) + 0.1 * min(gains)
        assert worth[int(best[k])] == pytest.approx(max(worth.values()), rel=1e-9)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 10**6)), min_size=0, max_size=12), st.integers(0, 10**6))
def test_a_tree_covers_and_one_leaf_less_does_not(splits: list[tuple[int, int]], drop: int) -> None:
    leaves = [torch.zeros(6, dtype=torch.int8)]
    for column, number in splits:
        leaf = leaves.pop(number % len(leaves))
        if leaf[column]:
            leaves.append(leaf)
            continue
        for sign in (1, -1):
            half = leaf.clone()
            half[column] = sign
            leaves.append(half)
    tree = _tree(torch.stack(leaves))
    assert covers(tree, 0) and not covers(tree, 1)
    fewer = [leaf for number, leaf in enumerate(leaves) if number != drop % len(leaves)]
    assert not covers(_tree(torch.stack(fewer) if fewer else torch.zeros(0, 6, dtype=torch.int8)), 0)
    patterns = torch.cartesian_prod(*[torch.tensor([1, -1], dtype=torch.int8)] * 6)
    held = ((tree.signs == 0) | (tree.signs == patterns.unsqueeze(1))).all(2).any(1)
    assert bool(held.all())


def _tree(signs: Tensor) -> Tree:
    none = torch.zeros(0, 6, dtype=torch.float16)
    zero = torch.zeros(len(signs), dtype=torch.int64)
    column = torch.arange(6)
    shares = no_cuts(column, column[:0], signs.float()[:0, 0]).shares
    return Tree(column, column, zero, signs, none, none, torch.zeros(0, 1), none[:, :0], shares)


def test_the_queue_gives_back_what_was_put_in() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.eye(2).double()

    def batch(count: int) -> Batch:
        lower = torch.randn(count, generator=generator, dtype=torch.float64)
        clause = torch.randint(2, (count,), generator=generator)
        signs = torch.randint(-1, 2, (count, 3), generator=generator).double()
        t = lower.unsqueeze(1).expand(-1, 3)
        return Batch(lower, clause, Multipliers(signs, t, signs.abs(), rows[clause], 3 * signs[:, :2].abs()))

    pool, held = Pool(batch(1)), []
    for count in (5, 1, 9, 0, 30):
        new = batch(count)
        pool.add(new)
        held += new.lower.tolist()
        for worst in (True, False):
            found = pool.take(3, worst)
            held.sort(reverse=not worst)
            assert found.lower.tolist() == held[: len(found)]
            del held[: len(found)]
            torch.testing.assert_close(found.at.t[:, 0], found.lower, rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(found.at.signs.abs(), found.at.beta)
            assert torch.equal(found.at.weight.argmax(1), found.clause)
        assert len(pool) == len(held)
        assert float(pool.least(2).min()) == (min(held) if held else torch.inf)
