"""Searching for sizes: a narrowed supernet is its sub-network, counts are exact, a killed search goes on the same."""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import math
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fxtune
from effort import examples
from families import FAMILIES, build, tuned_on
from fxtune import cli, tuners
from fxtune.errors import CheckpointError, InputError, PlanError, RuleError, SourceError
from fxtune.saving import FILE, read
from fxtune.searching import Candidate, Found, Supernet
from fxtune.searching.evolution import Plan, candidates
from fxtune.searching.space import Space
from fxtune.tuned import TunedModel, computing_with, first_units, one_capture
from fxtune.tuners import Placement, registry

WIDTH = 32  # of both models; each has two Blocks
SIZES = [0, 1, 5, 10]


def supernet_on(family: str, rules: Any = "noah", **options: Any) -> Supernet:
    """In float64, with every trained weight away from its start."""
    return Supernet(tuned_on(build(family).double(), example(family), rules, dtype=torch.float64, **options))


def example(family: str) -> Any:
    return ((), inputs(family))


def inputs(family: str, batch: int = 3) -> dict[str, Any]:
    """In float64, where they have a fraction."""
    return {k: v.double() if v.is_floating_point() else v for k, v in FAMILIES[family].inputs(batch).items()}


def logits(output: Any) -> torch.Tensor:
    found: torch.Tensor = output if isinstance(output, torch.Tensor) else output.logits
    return found


# ---- a narrowed supernet is its sub-network ------------------------------------------------------------------------
#
# The reference: rules written out here one by one, applied to the plain model, with weights sliced here.

NOAH = {"vpt": "tokens", "lora": "rank", "res_adapter": "dim"}
SCALED = {
    "rules": [
        {"at": "mha", "insert": {"res_prefix": {"tokens": 4, "scale": "channel"}}, "choices": {"tokens": [0, 3, 4]}},
        {
            "at": "mha",
            "on": ["q_proj", "v_proj"],
            "insert": {"lora": {"rank": 4, "alpha": 6.0}},
            "choices": {"rank": [4, 2, 0]},
        },
        {"at": "ffn", "insert": {"res_prompt": {"tokens": 3, "scale": "scalar"}}, "choices": {"tokens": [0, 1, 3]}},
        {"at": "ffn", "insert": {"res_adapter": {"dim": 4, "scale": "gate"}}, "choices": {"dim": [0, 1, 4]}},
        {"at": "block", "insert": {"res_adapter": {"dim": 3, "scale": "channel"}}},
    ]
}
"""Every tuner that has a size, and one rule that leaves nothing open."""
AXES = {
    "vpt": {"prompts": 0},
    "res_prompt": {"prompts": 0},
    "res_prefix": {"keys": 0, "values": 0},
    "lora": {"A": 0, "B": 1},
    "res_adapter": {"down.weight": 0, "down.bias": 0, "up.weight": 1},
}


def sizes_of(rules: list[dict[str, Any]]) -> st.SearchStrategy[list[tuple[int, int]]]:
    """For each rule that leaves a size open, the sizes in the two Blocks."""
    choices = [sizes for rule in rules for sizes in rule.get("choices", {}).values()]
    return st.tuples(*(st.tuples(st.sampled_from(sizes), st.sampled_from(sizes)) for sizes in choices)).map(list)


def written_out(rules: list[dict[str, Any]], sizes: list[tuple[int, int]]) -> list[dict[str, Any]]:
    """One rule for each tuner and Block, of the size that it has."""
    made, chosen = [], iter(sizes)
    for rule in rules:
        plain = {key: value for key, value in rule.items() if key not in ("choices", "expect")}
        if "choices" not in rule:
            made.append(plain)
            continue
        (setting,) = rule["choices"]
        ((tuner, given),) = rule["insert"].items()
        for block, size in enumerate(next(chosen)):
            if size:
                made.append({**plain, "where": {"blocks": [block]}, "insert": {tuner: {**given, setting: size}}})
    return made


def tuner_at(name: str) -> tuple[str, str] | None:
    """Module path and name of the weight, where a state_dict name is a tuner's."""
    before, found, after = name.partition(".tuners.")
    label, _, weight = after.partition(".")
    return (f"{before}.tuners.{label}", weight) if found else None


def sliced(name: str, whole: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """The part of a supernet's weight that a sub-network has."""
    found = tuner_at(name)
    assert found is not None
    label, weight = found
    for tuner, axes in AXES.items():
        if label.endswith(tuner) and weight in axes:
            index = [slice(None)] * whole.dim()
            index[axes[weight]] = slice(shape[axes[weight]])
            return whole[tuple(index)]
    assert whole.shape == shape
    return whole


def flat(sizes: list[tuple[int, int]]) -> list[int]:
    return [size for pair in sizes for size in pair]


@pytest.mark.parametrize(
    ("which", "family", "optimize"),
    [*itertools.product(["noah", "scaled"], ["vit", "bert"], [False]), ("noah", "vit", True)],
)
def test_a_narrowed_supernet_computes_what_the_sub_network_computes(which: str, family: str, optimize: bool) -> None:
    """Outputs, gradients and counts, on drawn sizes; nothing of what is left out has a gradient."""
    rules = fxtune.rules.load("noah")[0].document.data["rules"] if which == "noah" else SCALED["rules"]
    supernet = supernet_on(family, {"rules": rules}, optimize=optimize)
    model, x, loss = build(family).double(), inputs(family), FAMILIES[family].loss

    @settings(max_examples=examples(6, 60))
    @given(sizes_of(rules))
    def agree(sizes: list[tuple[int, int]]) -> None:
        made = {"rules": written_out(rules, sizes)}
        part = fxtune.apply(model, made, dtype=torch.float64, example_inputs=example(family), optimize=optimize).eval()
        whole = dict(supernet.tuned.named_parameters())
        state = part.state_dict()
        values = {n: sliced(n, whole[n], t.shape) if tuner_at(n) else whole.get(n, t) for n, t in state.items()}
        part.load_state_dict(values)
        supernet.tuned.zero_grad(set_to_none=True)
        with supernet.narrowed(flat(sizes)) as narrowed:
            ours = narrowed(**x)
            loss(ours, 3).backward()
        theirs = part(**x)
        loss(theirs, 3).backward()
        torch.testing.assert_close(logits(ours), logits(theirs), rtol=1e-11, atol=1e-13)
        kept = set()
        for name, weight in part.named_parameters():
            if weight.requires_grad:
                grad = torch.zeros_like(whole[name]) if whole[name].grad is None else whole[name].grad
                mine = sliced(name, grad, weight.shape) if tuner_at(name) else grad
                expected = torch.zeros_like(weight) if weight.grad is None else weight.grad
                torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-11)
                assert math.isclose(float(grad.abs().sum()), float(mine.abs().sum())), name
                kept.add(name)
        for name in set(supernet.tuned.trainable) - kept:
            assert whole[name].grad is None or not whole[name].grad.any(), name
        assert supernet.count(flat(sizes)) == sum(w.numel() for n, w in part.named_parameters() if tuner_at(n))

    with one_capture():
        agree()


@given(st.sampled_from(sorted(AXES)), st.integers(1, 6), st.data())
def test_a_narrowed_tuner_is_one_that_was_built_so(name: str, largest: int, data: st.DataObject) -> None:
    """In every form that it has beside an operation; without units it adds nothing."""
    place = Placement(width=8, heads=2, kind="ffn", operation="linear")
    ((setting, axes),) = tuners.narrows(name).items()
    assert {weight: axis for weight, axis in axes.items() if axis is not None} == AXES[name]
    more = {"lora": {"alpha": data.draw(st.sampled_from([None, 3.0]))}}.get(name, {})
    if name in ("res_adapter", "res_prefix", "res_prompt"):
        more = {"scale": data.draw(st.sampled_from(["none", "scalar", "channel", "gate", 0.5]))}
    whole = tuners.build(name, {setting: largest, **more}, place, seed=0, dtype=torch.float64)
    torch.manual_seed(data.draw(st.integers(0, 99)))
    for weight in whole.parameters():
        nn.init.normal_(weight)
    size = data.draw(st.integers(0, largest))
    methods = [method for method in ("forward", "in_sequence", "in_weights") if tuners.offers(name, method)]
    part = None
    if size:
        part = tuners.build(name, {setting: size, **more}, place, dtype=torch.float64)
        state = whole.state_dict()
        for weight, tensor in part.state_dict().items():
            full = state[weight]
            tensor.copy_(full.narrow(AXES[name][weight], 0, size) if weight in AXES[name] else full)
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    given_to = {"forward": (x,), "in_sequence": (x,), "in_weights": (torch.randn(8, 8, dtype=torch.float64), None)}
    nothing = {"forward": torch.zeros_like(x), "in_sequence": x, "in_weights": given_to["in_weights"][0]}
    if name == "vpt":
        methods = []  # it has rows alone
        with computing_with(whole, first_units(whole, axes, size)):
            assert torch.equal(whole.prompts, whole._parameters["prompts"][:size]) and whole.rows == size
    for method in methods:
        with computing_with(whole, first_units(whole, axes, size)):
            ours = getattr(whole, method)(*given_to[method])
        theirs = nothing[method] if part is None else getattr(part, method)(*given_to[method])
        first = [result[0] if isinstance(result, tuple) else result for result in (ours, theirs)]
        torch.testing.assert_close(*first, rtol=1e-12, atol=1e-14)


def test_every_tuner_with_a_size_is_tested() -> None:
    sized = {name for name in tuners.shipped() if tuners.narrows(name)}
    assert sized == {*AXES, "vpt_shallow"}


def test_counts_are_those_of_the_formulas() -> None:
    supernet = supernet_on("vit")
    for sizes in itertools.islice(itertools.product(SIZES, repeat=6), 0, None, 97):
        (p0, p1), (r0, r1), (m0, m1) = sizes[:2], sizes[2:4], sizes[4:]
        adapters = sum(2 * WIDTH * m + m + WIDTH for m in (m0, m1) if m)
        assert supernet.count(sizes) == (p0 + p1) * WIDTH + (r0 + r1) * (WIDTH + 3 * WIDTH) + adapters
    assert supernet.count(supernet.largest) == sum(
        weight.numel() for name, weight in supernet.tuned.named_parameters() if tuner_at(name)
    )


def test_weights_that_no_size_changes_count() -> None:
    supernet = supernet_on("vit", SCALED)
    fixed = 2 * (2 * WIDTH * 3 + 3 + WIDTH + WIDTH)
    assert supernet.count([0] * len(supernet.slots)) == fixed


# ---- while it is narrowed ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def known() -> Supernet:
    return supernet_on("vit")


@pytest.fixture
def supernet(known: Supernet) -> Supernet:
    return Supernet(copy.deepcopy(known.tuned))


def run(tuned: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return logits(tuned(**inputs("vit")))


def test_its_weights_stay_what_they_are(supernet: Supernet) -> None:
    """Parameters, state_dict and what is saved are the supernet's, and behind it nothing has changed."""
    tuned = supernet.tuned
    before, whole = run(tuned), {name: tensor.clone() for name, tensor in tuned.state_dict().items()}
    parameters, classes = list(tuned.parameters()), list(map(type, tuned.modules()))
    with supernet.narrowed([1] * 6):
        assert all(a is b for a, b in zip(tuned.parameters(), parameters, strict=True))
        assert all(torch.equal(tensor, whole[name]) for name, tensor in tuned.state_dict().items())
        one = run(tuned)
        with supernet.narrowed([5] * 6):
            five = run(tuned)
        assert torch.equal(run(tuned), one)
    assert torch.equal(run(tuned), before)
    assert not torch.equal(one, five) and not torch.equal(one, before) and not torch.equal(five, before)
    with contextlib.suppress(KeyError), supernet.narrowed([0] * 6):
        raise KeyError
    assert torch.equal(run(tuned), before)
    assert not any(name in vars(module) for module in tuned.modules() for name in module._parameters)
    assert list(map(type, tuned.modules())) == classes


def test_no_tuner_at_all_is_the_backbone(supernet: Supernet) -> None:
    with supernet.tuned.disabled():
        backbone = run(supernet.tuned)
    with supernet.narrowed([0] * 6):
        torch.testing.assert_close(run(supernet.tuned), backbone, rtol=1e-12, atol=1e-14)


def test_checkpointed_blocks_are_computed_again_as_the_same_sub_network(supernet: Supernet) -> None:
    def gradients() -> list[torch.Tensor]:
        supernet.tuned.zero_grad(set_to_none=True)
        with supernet.narrowed([5, 1, 0, 10, 1, 5]):
            FAMILIES["vit"].loss(supernet.tuned(**inputs("vit")), 3).backward()
        return [p.grad.clone() for p in supernet.tuned.parameters() if p.grad is not None]

    plain = gradients()
    supernet.tuned.set_grad_checkpointing(True)
    again = gradients()
    assert supernet.tuned.is_activation_checkpointing and len(plain) == len(again)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch's own look
@pytest.mark.parametrize("what", ["model", "blocks"])
def test_a_compiled_model_is_narrowed_too(what: str, supernet: Supernet) -> None:
    """Whatever sizes it was compiled for first: torch does not look for what hides a parameter."""
    tuned, twin = supernet.tuned, Supernet(copy.deepcopy(supernet.tuned))
    compiled: Any = tuned
    if what == "model":
        compiled = torch.compile(tuned, backend="eager", fullgraph=True)
    else:
        for block in tuned.blocks:
            block.compile(backend="eager", fullgraph=True)
    before = run(compiled)
    for sizes in [(1, 5, 0, 10, 5, 0), (0,) * 6, (10,) * 6, (10, 10, 10, 10, 0, 5), (1, 5, 0, 10, 5, 0)]:
        with supernet.narrowed(sizes), twin.narrowed(sizes):
            torch.testing.assert_close(run(compiled), run(twin.tuned), rtol=1e-12, atol=1e-14)
    assert torch.equal(run(compiled), before)


def test_further_inputs_are_narrowed_too() -> None:
    """A graph that is captured while it is narrowed has the supernet's tuners."""
    net = supernet_on("bert")
    other = {"input_ids": inputs("bert")["input_ids"]}
    sizes = [1, 5, 0, 10, 5, 1]
    with torch.no_grad(), net.narrowed(sizes):
        ours = net.tuned(**other).logits
    with torch.no_grad():
        torch.testing.assert_close(ours, net.subnetwork(sizes)(**other).logits, rtol=1e-12, atol=1e-14)
        whole = net.tuned(**other).logits
    assert not torch.allclose(ours, whole)


def test_tuners_that_are_not_in_use_are_not_narrowed(supernet: Supernet) -> None:
    with (
        supernet.tuned.disabled(),
        pytest.raises(PlanError, match="not in use"),
        supernet.narrowed(supernet.largest),
    ):
        pass
    rules = {"rules": [{"at": "linear", "insert": {"lora": {"rank": 2}}, "choices": {"rank": [0, 2]}}]}
    with one_capture():
        lora = Supernet(fxtune.apply(build("vit"), rules))
    lora.tuned.merge()
    with pytest.raises(PlanError, match="merged"), lora.narrowed(lora.largest):
        pass
    with pytest.raises(PlanError, match="in the weights"):
        Supernet(lora.tuned)


def test_a_supernet_trains_its_sub_networks(supernet: Supernet) -> None:
    """Each step a drawn sub-network: those that are never drawn get better, too, and the backbone stays."""
    tuned, loss, x = supernet.tuned, FAMILIES["vit"].loss, inputs("vit", 8)
    tuned.get_submodule("head").requires_grad_(False)
    asked = [(10,) * 6, (5, 10, 5, 10, 5, 10), (10, 10, 10, 10, 0, 0), (0, 0, 10, 10, 0, 0), (0, 0, 0, 0, 10, 10)]

    def losses() -> list[float]:
        found = []
        for sizes in asked:
            with torch.no_grad(), supernet.narrowed(sizes):
                found.append(loss(tuned(**x), 8).item())
        return found

    before, frozen = losses(), {n: p.clone() for n, p in tuned.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=0.02)
    rng = random.Random(0)
    for _ in range(60):
        optimizer.zero_grad()
        with supernet.narrowed(supernet.draw(rng)):
            loss(tuned(**x), 8).backward()
        optimizer.step()
    assert all(after < 0.9 * start for after, start in zip(losses(), before, strict=True)), (before, losses())
    assert all(torch.equal(tuned.get_parameter(name), value) for name, value in frozen.items())


# ---- evolution -----------------------------------------------------------------------------------------------------


@st.composite
def spaces(draw: st.DrawFn, slots: int = 4) -> Space:
    """Sizes with weights that grow, fixed ones, and a budget that the smallest keeps."""
    counts = []
    for _ in range(draw(st.integers(1, slots))):
        sizes = sorted(draw(st.sets(st.integers(0, 9), min_size=1, max_size=4)))
        steps = [draw(st.integers(0, 20)) for _ in sizes]
        counts.append(dict(zip(sizes, itertools.accumulate(steps), strict=True)))
    fixed = draw(st.integers(0, 30))
    least, most = (fixed + sum(end(c.values()) for c in counts) for end in (min, max))
    return Space(tuple(counts), fixed, draw(st.integers(least, most)))


def weighs(space: Space, sizes: tuple[int, ...]) -> int:
    total = space.fixed
    for counts, size in zip(space.counts, sizes, strict=True):
        total += counts[size]
    return total


def evolved(space: Space, plan: Plan, score: Callable[[tuple[int, ...]], float]) -> list[Candidate]:
    scores: dict[tuple[int, ...], float] = {}
    found = []
    for candidate in candidates(space, plan, scores):
        scores[candidate.sizes] = score(candidate.sizes)
        found.append(candidate)
    return found


def scores_by(seed: int, *, pairs: bool = False) -> Callable[[tuple[int, ...]], float]:
    """A number for each size, summed; with `pairs` one for neighbours, too."""
    values = random.Random(seed)
    table = {(slot, size): values.random() for slot in range(9) for size in range(10)}
    both = {(slot, a, b): values.random() for slot in range(9) for a in range(10) for b in range(10)}

    def score(sizes: tuple[int, ...]) -> float:
        total = sum(table[slot, size] for slot, size in enumerate(sizes))
        for slot, (a, b) in enumerate(itertools.pairwise(sizes)):
            total += both[slot, a, b] if pairs else 0
        return total

    return score


@given(spaces(), st.integers(0, 999), st.integers(1, 20), st.integers(1, 6), st.integers(0, 12), st.integers(0, 12))
def test_every_candidate_keeps_the_budget_and_comes_once(
    space: Space, seed: int, population: int, generations: int, mutants: int, crossovers: int
) -> None:
    plan = Plan(
        population=population, generations=generations, parents=3, mutants=mutants, crossovers=crossovers, seed=seed
    )
    found = evolved(space, plan, scores_by(seed))
    assert found and len(found) <= population * generations
    assert len({candidate.sizes for candidate in found}) == len(found)
    for candidate in found:
        assert all(size in counts for size, counts in zip(candidate.sizes, space.counts, strict=True))
        assert weighs(space, candidate.sizes) == candidate.weights <= space.budget
    for generation in range(generations):
        ways = [candidate.way for candidate in found if candidate.generation == generation]
        assert len(ways) <= population
        assert ways.count("mutation") <= (mutants if generation else 0)
        assert ways.count("crossover") <= (crossovers if generation else 0)


@given(spaces(), st.integers(0, 999), st.booleans())
def test_the_best_of_a_small_space_is_found(space: Space, seed: int, pairs: bool) -> None:
    """Against all there are: at most 256, of which the search scores as many as it can draw."""
    score = scores_by(seed, pairs=pairs)
    every = [sizes for sizes in itertools.product(*space.counts) if weighs(space, sizes) <= space.budget]
    found = evolved(space, Plan(population=30, generations=30, seed=seed), score)
    assert max(score(candidate.sizes) for candidate in found) == max(map(score, every))


@given(st.integers(0, 99))
@settings(max_examples=20)
def test_evolution_beats_chance(seed: int) -> None:
    """Of 4^9 choices, 400 are scored: the best is better than the best of 400 random ones."""
    counts = tuple({0: 0, 1: 1, 5: 5, 9: 9} for _ in range(9))
    space, score = Space(counts, 0, 50), scores_by(seed, pairs=True)
    found = evolved(space, Plan(population=40, generations=10, parents=8, seed=seed), score)
    by_chance = evolved(space, Plan(population=400, generations=1, seed=seed), score)
    assert len(found) == len(by_chance) == 400
    assert max(score(c.sizes) for c in found) > max(score(c.sizes) for c in by_chance)


def test_parents_are_the_best_so_far() -> None:
    """Without mutation and chance, every size of a crossover is a parent's."""
    space = Space(tuple(dict.fromkeys(range(8), 0) for _ in range(5)), 0, 0)
    score = scores_by(3)
    plan = Plan(population=20, generations=2, parents=2, mutants=0, crossovers=20, mutation=0.0)
    found = evolved(space, plan, score)
    first = sorted((c.sizes for c in found if c.generation == 0), key=score)[-2:]
    crossed = [c.sizes for c in found if c.way == "crossover"]
    assert crossed
    assert all(size in pair for sizes in crossed for size, *pair in zip(sizes, *first, strict=True))


# ---- search --------------------------------------------------------------------------------------------------------

QUICK = {"population": 8, "generations": 3, "parents": 3, "progress": False}
BUDGET = 1500


def score(tuned: TunedModel) -> float:
    """Of what the sub-network computes; it differs for any two of them."""
    with torch.no_grad():
        return float(logits(tuned(**inputs("vit")))[:, 0].sum())


@pytest.fixture(scope="module")
def whole(known: Supernet, tmp_path_factory: pytest.TempPathFactory) -> tuple[Found, Path]:
    """A search that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    return fxtune.search(known, score, budget=BUDGET, folder=folder, **QUICK), folder


def files(folder: Path) -> dict[str, Any]:
    """What the files of a folder hold; of weights their digest, for safetensors orders its header as it likes."""
    found: dict[str, Any] = {path.name: path.read_bytes() for path in folder.iterdir()}
    return found | {FILE: read(folder).digest}


def test_the_best_that_was_scored_is_found(known: Supernet, whole: tuple[Found, Path]) -> None:
    found, folder = whole
    assert len(found.history) == 24
    best = max(found.history, key=lambda candidate: candidate.score)
    assert (best.sizes, best.score, best.weights) == (found.sizes, found.score, found.weights)
    assert found.weights == known.count(found.sizes) <= BUDGET
    assert score(found.tuned) == pytest.approx(found.score, rel=1e-12)
    assert found.weights == sum(p.numel() for n, p in found.tuned.named_parameters() if tuner_at(n))
    lines = (folder / "history.jsonl").read_text().splitlines()
    assert [Candidate.model_validate_json(line) for line in lines[1:]] == list(found.history)
    assert f"{found.weights:,} weights" in str(found) and str(found).count("\n") == 3


def test_what_is_found_is_anybodys(known: Supernet, whole: tuple[Found, Path]) -> None:
    """It is loaded from the folder, and its rules are a file like any other."""
    found, folder = whole
    model = known.tuned.strip()
    assert torch.equal(run(fxtune.load(model, folder)), run(found.tuned))
    by_file = fxtune.apply(model, folder / "rules.yaml", example_inputs=example("vit"), dtype=torch.float64)
    assert set(by_file.state_dict()) == set(found.tuned.state_dict())
    assert [rules["name"] for rules in found.rules] == ["noah_found"]
    assert all("choices" not in rule and 0 not in rule["insert"].values() for rule in found.rules[0]["rules"])
    assert len(found.rules[0]["rules"]) <= 3 * 3, "equal sizes are one rule"
    with pytest.raises(RuleError, match="no size open"):
        Supernet(found.tuned)


def test_a_new_head_and_trained_weights_come_along() -> None:
    supernet = supernet_on("vit", num_classes=7)
    part = supernet.subnetwork([0, 1, 5, 0, 10, 1])
    with supernet.narrowed([0, 1, 5, 0, 10, 1]):
        torch.testing.assert_close(run(part), run(supernet.tuned), rtol=1e-12, atol=1e-14)
    assert run(part).shape == (3, 7)
    with torch.no_grad():
        part.get_parameter("head.weight").zero_()
    assert supernet.tuned.get_parameter("head.weight").any(), "a copy"


def test_a_saved_supernet_is_one_when_it_is_loaded(known: Supernet, tmp_path: Path) -> None:
    known.tuned.save(tmp_path)
    loaded = Supernet(fxtune.load(known.tuned.strip(), tmp_path))
    assert list(map(str, loaded.slots)) == list(map(str, known.slots))
    with known.narrowed([5] * 6), loaded.narrowed([5] * 6):
        assert torch.equal(run(loaded.tuned), run(known.tuned))


@pytest.mark.parametrize("batch", range(2))
def test_a_search_that_is_cut_off_ends_the_same(
    batch: int, known: Supernet, whole: tuple[Found, Path], tmp_path: Path
) -> None:
    """Cut off in the score of any candidates, and its last line torn anywhere: every file is the same, bit for bit."""
    rng, cuts = random.Random(batch), 0
    path = tmp_path / "history.jsonl"
    found = None
    while found is None:
        calls = itertools.count()
        last = rng.randrange(8)

        def cut_off(tuned: TunedModel, calls: Iterator[int] = calls, last: int = last) -> float:
            if next(calls) == last:
                raise KeyboardInterrupt
            return score(tuned)

        try:
            found = fxtune.search(known, cut_off, budget=BUDGET, folder=tmp_path, **QUICK)
        except KeyboardInterrupt:
            cuts += 1
            whole_lines = path.read_bytes()
            start = whole_lines.rindex(b"\n", 0, -1) + 1
            if rng.random() < 0.5 and start > whole_lines.index(b"\n"):
                path.write_bytes(whole_lines[: rng.randrange(start, len(whole_lines))])
    assert cuts > 2
    assert (found.sizes, found.score, found.history) == (whole[0].sizes, whole[0].score, whole[0].history)
    assert files(tmp_path) == files(whole[1])


def test_a_finished_search_scores_nothing_again(known: Supernet, whole: tuple[Found, Path]) -> None:
    def never(tuned: TunedModel) -> float:
        raise AssertionError

    assert fxtune.search(known, never, budget=BUDGET, folder=whole[1], **QUICK).sizes == whole[0].sizes


def test_in_memory_it_is_the_same(known: Supernet, whole: tuple[Found, Path]) -> None:
    found = fxtune.search(known.tuned, score, budget=BUDGET, **QUICK)
    assert (found.sizes, found.history) == (whole[0].sizes, whole[0].history)
    other = fxtune.search(known, score, budget=BUDGET, **{**QUICK, "seed": 1})
    assert other.history != found.history


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_killed_process_goes_on_where_it_was(known: Supernet, whole: tuple[Found, Path], tmp_path: Path) -> None:
    """SIGKILL at any moment; at the end every file is what an undisturbed search writes."""

    def slow(tuned: TunedModel) -> float:
        time.sleep(0.01)
        return score(tuned)

    rng, seen = random.Random(0), [0]
    while seen[-1] < len(whole[0].history):
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                fxtune.search(known, slow, budget=BUDGET, folder=tmp_path, **QUICK)
            os._exit(0)
        until = min(seen[-1] + rng.randrange(1, 8), len(whole[0].history))
        while lines_in(tmp_path) < until:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        seen.append(lines_in(tmp_path))
    assert len(seen) > 4 and seen == sorted(set(seen)), "it was killed at other places, and went on"
    fxtune.search(known, score, budget=BUDGET, folder=tmp_path, **QUICK)
    assert files(tmp_path) == files(whole[1])


def lines_in(folder: Path) -> int:
    path = folder / "history.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


# ---- what is refused -----------------------------------------------------------------------------------------------


def search(known: Supernet, **changed: Any) -> Found:
    return fxtune.search(known, changed.pop("score", score), **{"budget": BUDGET, **QUICK, **changed})


@pytest.mark.parametrize(
    ("changed", "error", "parts"),
    [
        ({"budget": -1}, PlanError, ["no candidate keeps the budget", "has 0 weights", "raise the budget"]),
        ({"budget": 1e6}, PlanError, ["budget=1000000.0", "whole number"]),
        ({"population": 0}, PlanError, ["population=0", "greater than or equal to 1"]),
        ({"mutation": 1.5}, PlanError, ["mutation=1.5"]),
        ({"seed": "x"}, PlanError, ["seed='x'"]),
        ({"score": lambda _: float("nan")}, InputError, ["no finite number", "nan for the sizes ["]),
        ({"score": lambda _: None}, InputError, ["no finite number", "None"]),
        ({"score": lambda _: torch.zeros(2)}, InputError, ["no finite number"]),
    ],
)
def test_what_cannot_be_searched_is_told(
    changed: dict[str, Any], error: type[Exception], parts: list[str], known: Supernet
) -> None:
    with pytest.raises(error) as told:
        search(known, **changed)
    assert all(part in str(told.value) for part in parts), told.value


def test_a_budget_that_no_candidate_keeps() -> None:
    rules = {"rules": [{"at": "ffn", "insert": {"res_adapter": {"dim": 4}}, "choices": {"dim": [2, 4]}}]}
    net = Supernet(fxtune.apply(build("vit"), rules))
    least = 2 * (2 * WIDTH * 2 + 2 + WIDTH)
    assert search(net, budget=least, score=lambda _: 0.0).sizes == (2, 2)
    with pytest.raises(PlanError, match=f"the smallest has {least:,} weights"):
        search(net, budget=least - 1)


def test_another_search_is_refused(known: Supernet, whole: tuple[Found, Path], tmp_path: Path) -> None:
    folder = whole[1]
    for changed, part in [({"budget": 1600}, "differs in budget"), ({"seed": 1}, "differs in plan")]:
        with pytest.raises(CheckpointError, match=part):
            search(known, folder=folder, **changed)
    other = Supernet(copy.deepcopy(known.tuned))
    with torch.no_grad():
        other.tuned.get_parameter(other.tuned.trainable[0]).add_(1e-9)
    with pytest.raises(CheckpointError, match="differs in weights"):
        search(other, folder=folder)
    (tmp_path / "history.jsonl").write_text("something else\n")
    with pytest.raises(CheckpointError, match="no history"):
        search(known, folder=tmp_path)
    lines = (folder / "history.jsonl").read_text().splitlines()
    changed_line = {**json.loads(lines[3]), "sizes": [0] * 6}
    (tmp_path / "history.jsonl").write_text("\n".join([*lines[:3], json.dumps(changed_line), ""]))
    with pytest.raises(CheckpointError, match="cannot be gone on with"):
        search(known, folder=tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="can't be written"):
        search(known, folder=tmp_path / "file")


@pytest.mark.parametrize(
    ("sizes", "part"),
    [([0] * 5, "5 numbers, and 6 slots"), ([0, 0, 0, 0, 0, 2], "2 at ffn <- res_adapter.dim, block 1")],
)
def test_sizes_that_are_none_are_refused(sizes: list[int], part: str, known: Supernet) -> None:
    for use in (known.count, known.rules, known.subnetwork):
        with pytest.raises(InputError, match=part):
            use(sizes)
    with pytest.raises(InputError, match=part), known.narrowed(sizes):
        pass


def test_what_is_no_supernet_is_refused() -> None:
    with pytest.raises(PlanError, match="a supernet is a tuned model"):
        Supernet(nn.Linear(2, 2))  # type: ignore[arg-type]
    with one_capture():
        with pytest.raises(RuleError, match="leave no size open"):
            Supernet(fxtune.apply(build("vit"), "lora"))
        with pytest.raises(RuleError, match=r"vpt at `blocks\.0` cannot be left open"):
            Supernet(fxtune.apply(build("vit"), "noah", form="original"))
        shallow = {"rules": [{"at": "block", "insert": {"vpt_shallow": {}}, "choices": {"tokens": [0, 10]}}]}
        with pytest.raises(RuleError, match=r"vpt_shallow at `blocks\.0` cannot be left open"):
            Supernet(fxtune.apply(build("vit"), shallow))


MINE_YAML = """\
fxtune: 1
name: mine
rules:
  - at: ffn
    insert: {TUNER}
    choices: CHOICES
"""


@pytest.mark.parametrize(
    ("tuner", "choices", "error", "parts"),
    [
        ("res_adapter: {dim: 10}", "{dmi: [0, 1]}", RuleError, ["no size called 'dmi'", ":6:15", "'dim'"]),
        ("bitfit", "{dim: [0, 1]}", RuleError, ["no size called 'dim'", "its sizes: none", "leave `choices:` out"]),
        ("res_adapter: {dim: 10}", "{dim: [0, 20]}", RuleError, ["larger than the tuner", "20, and", ":6:20"]),
        ("res_adapter", "{dim: [11]}", RuleError, ["11, and res_adapter with dim=10"]),
        ("res_adapter", "{dim: [0, -1]}", SourceError, [":6:24", "greater than or equal to 0"]),
        ("res_adapter", "{dim: [1, 1]}", SourceError, [":6:20", "each size once"]),
        ("res_adapter", "{dim: []}", SourceError, [":6:20"]),
        ("res_adapter", "{dim: 5}", SourceError, [":6:20", "list"]),
        ("res_adapter", "{dim: [1.5]}", SourceError, [":6:21"]),
        ("res_adapter", "{dim: [1], scale: [1]}", SourceError, ["one size"]),
    ],
)
def test_broken_choices_are_refused_in_their_place(
    tuner: str, choices: str, error: type[Exception], parts: list[str], tmp_path: Path
) -> None:
    insert = tuner if ":" not in tuner else f"{{{tuner}}}"
    text = MINE_YAML.replace("{TUNER}", insert).replace("CHOICES", choices)
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(error) as told:
        fxtune.apply(build("vit"), tmp_path / "mine.yaml")
    assert all(part in str(told.value) for part in parts), told.value


def test_an_override_that_is_smaller_than_a_choice_is_refused() -> None:
    with pytest.raises(RuleError, match=r"10, and res_adapter with dim=4"):
        fxtune.apply(build("vit"), "noah", dim=4)


# ---- tuners of one's own -------------------------------------------------------------------------------------------


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_entries", {**registry._entries})


class Wide(nn.Module):
    """A sum of m maps of rank one, and one number."""

    narrows = {"many": {"a": 1, "b": 0, "c": None}}  # noqa: RUF012

    def __init__(self, place: Placement, *, many: int = 6) -> None:
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.randn(shape)) for shape in ((place.width, many), (many, place.width)))
        self.c = nn.Parameter(torch.randn(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.a.to(x.dtype) @ self.b.to(x.dtype) + self.c.to(x.dtype)


@pytest.mark.usefixtures("own_registry")
def test_a_tuner_of_ones_own_is_searched() -> None:
    fxtune.tuner("wide")(Wide)
    rule = {"at": "block", "insert": {"wide": {"many": 5}}, "choices": {"many": [0, 2, 5]}}
    choices = list(itertools.product([0, 2, 5], repeat=2))
    with one_capture():
        net = supernet_on("vit", {"rules": [rule]})
        check_sub_networks(net, choices)
    for sizes in choices:
        assert net.count(sizes) == sum(2 * WIDTH * size + 1 for size in sizes if size)


@pytest.mark.usefixtures("own_registry")
@pytest.mark.parametrize(
    "narrows", [{"much": {"a": 1}}, {"many": {}}, {"many": {"c": None}}, {"many": {"a": "1"}}, {"many": 1}, ["many"]]
)
def test_sizes_that_are_said_wrongly_are_refused(narrows: Any) -> None:
    with pytest.raises(RuleError, match="narrows = "):
        fxtune.tuner("wide")(type("Wrong", (Wide,), {"narrows": narrows}))


def check_sub_networks(net: Supernet, choices: Iterable[Sequence[int]]) -> None:
    """Each is on its own what the narrowed supernet is."""
    for sizes in choices:
        with net.narrowed(sizes):
            ours = run(net.tuned)
        torch.testing.assert_close(ours, run(net.subnetwork(sizes)), rtol=1e-12, atol=1e-13)


def test_sites_in_no_block_are_sizes_of_their_own() -> None:
    """The head lies in no block: its rule names the path."""
    rule = {"at": "linear", "insert": {"lora": {"rank": 3}}, "choices": {"rank": [0, 1, 3]}}
    rng = random.Random(0)
    with one_capture():
        net = supernet_on("vit", {"rules": [rule]})
        assert [slot.path for slot in net.slots if slot.block is None] == ["head"]
        check_sub_networks(net, [net.draw(rng) for _ in range(4)])


def test_rules_that_leave_nothing_open_stay_as_they_are() -> None:
    """Two rules with one tuner at one place: the second's is told from the first's when that is left out."""
    first = {"at": "ffn", "insert": {"res_adapter": {"dim": 3}}, "choices": {"dim": [0, 3]}}
    second = {"at": "ffn", "insert": {"res_adapter": {"dim": 2}}, "expect": "every block"}
    with one_capture():
        net = supernet_on("vit", [{"rules": [first, second]}, "prefix"])
        check_sub_networks(net, itertools.product([0, 3], repeat=2))
    assert [rules["name"] for rules in net.rules([0, 3])] == ["rules_found", "prefix"]


# ---- the command ---------------------------------------------------------------------------------------------------

MINE = """
import torch, fxtune
from test_search import supernet_on, score

def asked():
    return supernet_on("vit").tuned, score

def wrong():
    return 3
"""


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """``fxtune search`` in this process, beside the user's module `mine`."""
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)

    def run(*args: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fxtune", "search", *args])
        monkeypatch.setattr(sys, "path", [*sys.path])
        monkeypatch.delitem(sys.modules, "mine", raising=False)
        with pytest.raises(SystemExit) as left:
            cli.main()
        captured = capsys.readouterr()
        return int(left.value.code or 0), captured.out, captured.err

    return run


def test_the_command_finds_the_same(whole: tuple[Found, Path], command: Run, tmp_path: Path) -> None:
    sizes = ["--population", "8", "--generations", "3", "--parents", "3"]
    status, out, err = command("mine:asked", "--budget", str(BUDGET), "--out", "out", *sizes)
    assert (status, out) == (0, f"{whole[0]}\nsaved in out\n"), err
    assert files(tmp_path / "out") == files(whole[1])


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("mine:wrong", ["InputError", "gives nothing to search", "a pair"]),
        ("mine:aksed", ["no function called 'aksed'", "asked"]),
        ("nothing", ["names no function", "mine:search"]),
    ],
)
def test_the_command_tells_errors_in_words(name: str, parts: list[str], command: Run) -> None:
    status, _, err = command(name, "--budget", "1", "--out", "out")
    assert status == 1 and "Traceback" not in err
    assert all(part in err for part in parts), err
