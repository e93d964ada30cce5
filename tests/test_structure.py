"""Structures: places as torch finds them, and one network known again in any order and under any names."""

import math
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from effort import examples
from fxtune.structure import Node, Operand, Structure, difference, isomorphism, strided
from fxtune.structure.places import Places, lying

# ---- places ---------------------------------------------------------------------------------------------------------


def moves(rank: int) -> st.SearchStrategy[tuple[str, Any]]:
    return st.one_of(
        st.tuples(st.just("view"), st.randoms(use_true_random=False)),
        st.tuples(st.just("permute"), st.permutations(range(rank))),
        st.tuples(st.just("slice"), st.tuples(st.integers(0, rank - 1), st.integers(0, 3), st.integers(1, 2))),
        st.tuples(st.just("select"), st.tuples(st.integers(0, rank - 1), st.integers(0, 5))),
        st.tuples(st.just("expand"), st.integers(2, 3)),
    )


def carried_out(move: tuple[str, Any], numbers: torch.Tensor) -> torch.Tensor:
    kind, how = move
    if kind == "view":
        whole, factors = numbers.numel(), []
        while whole > 1:
            factors.append(next(p for p in (2, 3, 5, whole) if whole % p == 0))
            whole //= factors[-1]
        how.shuffle(factors)
        kept = how.randint(1, max(1, min(4, len(factors))))
        return numbers.reshape([*factors[: kept - 1], -1])
    if kind == "permute":
        return numbers.permute(how)
    if kind == "slice":
        axis, start, step = how
        return numbers[(slice(None),) * axis + (slice(min(start, numbers.shape[axis] - 1), None, step),)]
    if kind == "select":
        axis, at = how
        return numbers.select(axis, at % numbers.shape[axis])
    return numbers.unsqueeze(0).expand(how, *numbers.shape)


@settings(max_examples=examples(200, 3000), deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.data())
def test_places_are_those_that_torch_finds(shape: list[int], data: st.DataObject) -> None:
    """Views of the numbers 0, 1, 2, ... hold their own places."""
    numbers, places = torch.arange(math.prod(shape)).view(shape), lying(shape)
    for _ in range(data.draw(st.integers(1, 5))):
        assume(numbers.dim() > 0)
        move = data.draw(moves(numbers.dim()))
        moved = carried_out(move, numbers)
        if move[0] == "view":
            found = places.shaped(moved.shape)
        else:
            proxy = torch.empty(places.shape, device="meta")
            found = places.viewed(proxy, carried_out(move, proxy))
        if found is None:  # no even steps are there, or none that are looked for
            assert move[0] in ("view", "slice")
            return
        numbers, places = moved, found
        assert places.shape == tuple(numbers.shape)
        assert places.take.places().tolist() == numbers.flatten().tolist()
        assert strided(numbers) == places.take


@pytest.mark.parametrize("interleaved", [False, True])
def test_a_head_of_a_fused_projection_is_rows_of_its_own(interleaved: bool) -> None:
    """Queries, keys and values of 3 heads of 8 channels, one behind the other or in turn for each head."""
    fused = lying((2, 5, 72)).shaped((2, 5, 3, 3, 8))
    assert fused is not None
    proxy = torch.empty(fused.shape, device="meta")
    part = fused.viewed(proxy, (proxy[:, :, :, 1] if interleaved else proxy[:, :, 1]).transpose(1, 2))
    assert part is not None
    rows, narrow = part.rows(72)
    wanted = torch.arange(72).view(3, 3, 8)[:, 1] if interleaved else torch.arange(72).view(3, 3, 8)[1]
    assert rows is not None and rows.places().tolist() == wanted.flatten().tolist()
    split = lying((2, 5, 24)).shaped((2, 5, 3, 8))
    assert split is not None and narrow == Places(0, tuple(split.axes[i] for i in (0, 2, 1, 3)))


# ---- structures -----------------------------------------------------------------------------------------------------


@st.composite
def structures(draw: st.DrawFn) -> Structure:
    nodes: list[Node] = []
    for i in range(draw(st.integers(2, 14))):
        many = 0 if i < 2 else draw(st.integers(0, 3))
        operands = tuple(
            Operand(node=draw(st.integers(max(0, i - 5), i - 1)), how=draw(st.sampled_from(["", "turned"])))
            for _ in range(many)
        )
        op = draw(st.sampled_from(["state", "input"] if not many else ["add", "linear", "gelu"]))
        nodes.append(
            Node(op=op, name=f"n{i}", shape=(draw(st.integers(1, 2)),), operands=operands, ordered=op != "add")
        )
    read = {operand.node for node in nodes for operand in node.operands}
    return Structure(nodes=tuple(nodes), outputs=tuple(Operand(node=i) for i in range(len(nodes)) if i not in read))


def shuffled(structure: Structure, draw: Any) -> tuple[Structure, list[int]]:
    """The same in another order of computation and other names; and the place of each node there. The two operands of
    a sum change places."""
    waiting, order = list(range(len(structure.nodes))), []
    while waiting:
        ready = [i for i in waiting if all(operand.node in order for operand in structure.nodes[i].operands)]
        order.append(draw(st.sampled_from(ready)))
        waiting.remove(order[-1])
    place = {old: new for new, old in enumerate(order)}

    def moved(operands: tuple[Operand, ...], ordered: bool) -> tuple[Operand, ...]:
        found = tuple(Operand(node=place[operand.node], how=operand.how) for operand in operands)
        return found if ordered else found[::-1]

    nodes = [structure.nodes[i] for i in order]
    renamed = tuple(
        node.model_copy(update={"name": f"other{i}", "operands": moved(node.operands, node.ordered)})
        for i, node in enumerate(nodes)
    )
    other = Structure(nodes=renamed, outputs=moved(structure.outputs, True))
    return other, [place[i] for i in range(len(order))]


@settings(max_examples=examples(100, 2000), deadline=None)
@given(structures(), st.data())
def test_a_structure_is_known_again_in_any_order_and_under_any_names(one: Structure, data: st.DataObject) -> None:
    other, _ = shuffled(one, data.draw)
    found = isomorphism(one, other, ({}, {}))
    assert found is not None and sorted(found) == sorted(found.values()) == list(range(len(one.nodes)))
    for i, node in enumerate(one.nodes):
        counterpart = other.nodes[found[i]]
        assert (node.op, node.shape) == (counterpart.op, counterpart.shape)
        wanted = [(found[operand.node], operand.how) for operand in node.operands]
        there = [(operand.node, operand.how) for operand in counterpart.operands]
        assert wanted == there if node.ordered else sorted(wanted) == sorted(there)
    assert [found[operand.node] for operand in one.outputs] == [operand.node for operand in other.outputs]


@settings(max_examples=examples(50, 500), deadline=None)
@given(st.integers(2, 4), st.data())
def test_equal_numbers_decide_between_branches_that_are_alike(many: int, data: st.DataObject) -> None:
    """A sum of linear maps of one input, each with a weight of its own: any order would do but for the numbers."""
    nodes = [Node(op="input")]
    for i in range(many):
        nodes.append(Node(op="state", name=f"weight{i}"))
        nodes.append(Node(op="linear", operands=(Operand(node=0), Operand(node=len(nodes) - 1))))
    branches = tuple(Operand(node=2 * i + 2) for i in range(many))
    one = Structure(
        nodes=(*nodes, Node(op="add", operands=branches, ordered=False)), outputs=(Operand(node=len(nodes)),)
    )
    other, place = shuffled(one, data.draw)
    digests = {2 * i + 1: f"numbers {i}" for i in range(many)}
    found = isomorphism(one, other, (digests, {place[i]: digest for i, digest in digests.items()}))
    assert found is not None and all(found[i] == place[i] for i in range(len(one.nodes)))
    others = {place[i]: "numbers that were trained since" for i in digests}
    assert isomorphism(one, other, (digests, others)) is not None


@settings(max_examples=examples(100, 2000), deadline=None)
@given(structures(), st.data())
def test_one_change_makes_another_structure(one: Structure, data: st.DataObject) -> None:
    i = data.draw(st.sampled_from(range(len(one.nodes))))
    node = one.nodes[i]
    changes: list[dict[str, Any]] = [{"op": "relu"}, {"shape": (3,)}, {"attributes": "dim=1"}]
    if node.operands:
        changes.append({"operands": (*node.operands[1:], node.operands[0].model_copy(update={"how": "cut"}))})
    change = data.draw(st.sampled_from(changes))
    nodes = (*one.nodes[:i], node.model_copy(update=change), *one.nodes[i + 1 :])
    other, _ = shuffled(Structure(nodes=nodes, outputs=one.outputs), data.draw)
    assert isomorphism(one, other, ({}, {})) is None
    assert difference(one, other)[0] in [one.line(k) for k in range(len(one.nodes))]
