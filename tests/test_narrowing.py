"""A narrowed supernet is its sub-network, and counts are exact."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fxtune
from effort import examples
from families import FAMILIES, build
from fxtune import tuners
from fxtune.errors import PlanError
from fxtune.searching import Supernet
from fxtune.tuned import computing_with, first_units, one_capture
from fxtune.tuners import Placement
from supernets import SIZES, WIDTH, example, inputs, logits, run, supernet_on, tuner_at

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
