"""The structural twin: the same model over the same memory, and nothing of the original touched."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fxtune.errors import PlanError, UnsupportedModelError
from fxtune.tuned import replace_head, structural_twin
from fxtune.tuned.ownership import make_private, place, tensors
from tuned_support import IMAGES, TEXT, bert, flags, masked_lm, resnet, same_state, snapshot, vit

MODELS = {"vit": (vit, (IMAGES,), {}), "resnet": (resnet, (IMAGES,), {}), "bert": (bert, (), TEXT)}


@pytest.fixture(params=MODELS)
def case(request: pytest.FixtureRequest) -> tuple:
    make, args, kwargs = MODELS[request.param]
    return make(), args, kwargs


def test_the_twin_computes_the_same_and_the_original_is_as_it_was(case: tuple) -> None:
    model, args, kwargs = case
    before, state = flags(model), snapshot(model)
    twin = structural_twin(model)
    expected, got = model(*args, **kwargs), twin(*args, **kwargs)
    assert torch.equal(getattr(got, "logits", got), getattr(expected, "logits", expected))
    assert flags(model) == before and same_state(model.state_dict(), state)
    assert same_state(twin.state_dict(), state)


def test_no_weight_is_copied_and_none_requires_grad(case: tuple) -> None:
    model, _, _ = case
    twin = structural_twin(model)
    for (name, mine), (other, theirs) in zip(tensors(twin), tensors(model), strict=True):
        assert name == other and place(mine) == place(theirs) and mine is not theirs
        assert not mine.requires_grad


@st.composite
def module_trees(draw: st.DrawFn) -> nn.Module:
    """Nested modules whose children, parameters and buffers are sometimes shared between places."""
    pool: list[nn.Module] = []

    def leaf() -> nn.Module:
        if pool and draw(st.booleans()):
            return draw(st.sampled_from(pool))
        made = draw(st.sampled_from([nn.Linear(3, 3), nn.BatchNorm1d(3), nn.LayerNorm(3), nn.Identity()]))
        if isinstance(made, nn.Linear):
            made = nn.Linear(3, 3, bias=draw(st.booleans()))
            linears = [module for module in pool if isinstance(module, nn.Linear)]
            if linears and draw(st.booleans()):
                weight = draw(st.sampled_from(linears)).weight
                made.weight = weight if draw(st.booleans()) else nn.Parameter(weight.data)
        made.train(draw(st.booleans()))
        pool.append(made)
        return made

    groups = draw(st.lists(st.integers(0, 3), min_size=1, max_size=4))
    return nn.Sequential(*(nn.Sequential(*(leaf() for _ in range(size))) for size in groups))


def _sharing(model: nn.Module, what: Callable[[torch.Tensor], Any]) -> list[list[str]]:
    """Which names stand for one tensor object (`id`), or for one memory (`place`)."""
    groups: dict[Any, list[str]] = {}
    for name, tensor in tensors(model):
        groups.setdefault(what(tensor), []).append(name)
    return sorted(groups.values())


@given(module_trees())
def test_ties_modes_and_names_are_kept(model: nn.Module) -> None:
    twin = structural_twin(model)
    assert _sharing(twin, id) == _sharing(model, id) and _sharing(twin, place) == _sharing(model, place)
    assert [(n, m.training, type(m)) for n, m in twin.named_modules()] == [
        (n, m.training, type(m)) for n, m in model.named_modules()
    ]
    assert not {id(m) for m in twin.modules()} & {id(m) for m in model.modules()}


@given(module_trees(), st.data())
def test_private_weights_move_together_with_those_tied_to_them(model: nn.Module, data: st.DataObject) -> None:
    names = [name for name, _ in tensors(model)]
    chosen = set(data.draw(st.lists(st.sampled_from(names), unique=True))) if names else set()
    state, twin = snapshot(model), structural_twin(model)
    make_private(model, [twin], lambda name, _: name in chosen)
    expected = {name for group in _sharing(model, place) if chosen & set(group) for name in group}
    originals = dict(tensors(model))
    for name, tensor in tensors(twin):
        assert (place(tensor) != place(originals[name])) == (name in expected)
        if name in expected and tensor.is_floating_point():
            tensor.data.add_(1)
    assert _sharing(twin, place) == _sharing(model, place)
    assert same_state(model.state_dict(), state)


def test_a_tied_model_stays_tied() -> None:
    model = masked_lm()
    twin = structural_twin(model)
    make_private(model, [twin], lambda name, _: name == "cls.predictions.decoder.weight")
    assert twin.cls.predictions.decoder.weight is twin.bert.embeddings.word_embeddings.weight
    assert place(twin.bert.embeddings.word_embeddings.weight) != place(model.bert.embeddings.word_embeddings.weight)


def test_attributes_of_parameters_are_kept() -> None:
    model = nn.Linear(2, 2)
    model.weight.no_decay = True
    assert structural_twin(model).weight.no_decay


def test_it_works_without_weights() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    twin = structural_twin(model)
    assert all(tensor.is_meta for _, tensor in tensors(twin))
    assert [place(t) for _, t in tensors(twin)] == [place(t) for _, t in tensors(model)]


class _Remembering(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.seen = 0
        self.inner.register_forward_hook(self.remember)
        self.inner.register_forward_hook(functools.partial(_count, self))

    def remember(self, *_: object) -> None:
        self.seen += 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


def _count(owner: _Remembering, *_: object) -> None:
    owner.seen += 10


def test_hooks_are_kept_and_those_of_the_model_are_the_copys_own() -> None:
    class Recorder:
        def __init__(self) -> None:
            self.calls = 0

        def record(self, *_: object) -> None:
            self.calls += 1

    model, recorder = _Remembering(), Recorder()
    model.inner.register_forward_hook(recorder.record)
    twin = structural_twin(model)
    twin(torch.zeros(1, 2))
    assert (model.seen, twin.seen, recorder.calls) == (0, 11, 1)


@pytest.mark.parametrize("on_twin", [True, False])
def test_hooks_to_come_are_not_shared(on_twin: bool) -> None:
    model = _Remembering()
    twin = structural_twin(model)
    with_hook, without = (twin, model) if on_twin else (model, twin)
    calls: list[nn.Module] = []
    for module in with_hook.modules():
        module.register_forward_hook(lambda module, *_: calls.append(module))
    without(torch.zeros(1, 2))
    assert not calls
    with_hook(torch.zeros(1, 2))
    assert {id(module) for module in calls} == {id(module) for module in with_hook.modules()}


def test_old_style_weight_norm_is_copied() -> None:
    with pytest.warns(FutureWarning):
        model = torch.nn.utils.weight_norm(nn.Linear(2, 2))
    twin = structural_twin(model)
    assert torch.equal(twin(torch.ones(1, 2)), model(torch.ones(1, 2)))


def _unaliasable() -> Iterator[tuple[str, nn.Module]]:
    class Quantised(torch.Tensor):
        pass

    subclass = nn.Linear(2, 2)
    subclass.weight = nn.Parameter(subclass.weight.data.as_subclass(Quantised))
    yield "subclass", subclass
    yield "lazy", nn.LazyLinear(2)
    yield "script", torch.jit.script(nn.Linear(2, 2))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("which", ["subclass", "lazy", "script"])
def test_what_cannot_be_aliased_is_refused(which: str) -> None:
    model = dict(_unaliasable())[which]
    with pytest.raises(UnsupportedModelError):
        structural_twin(nn.Sequential(model))


def test_a_model_that_cannot_be_copied_is_refused() -> None:
    import threading

    model = nn.Linear(2, 2)
    model.lock = threading.Lock()
    with pytest.raises(UnsupportedModelError, match="lock"):
        structural_twin(model)


# The new head


def test_a_new_head_is_linear_and_the_class_count_follows() -> None:
    model = vit()
    twin = structural_twin(model)
    replace_head(twin, "head", 9, class_count_attributes=("num_classes", "config.none", "missing"), seed=1)
    assert twin(IMAGES).shape == (3, 9) and twin.num_classes == 9
    assert model(IMAGES).shape == (3, 5) and model.num_classes == 5
    assert not hasattr(twin, "missing")


@given(st.integers(1, 20), st.integers(0, 2**31), st.booleans())
def test_a_seed_gives_one_head_and_leaves_the_generator_alone(classes: int, seed: int, bias: bool) -> None:
    heads = []
    for _ in range(2):
        twin = nn.Sequential(nn.Linear(4, 3, bias=bias, dtype=torch.bfloat16))
        random = torch.get_rng_state()
        replace_head(twin, "0", classes, seed=seed)
        assert torch.equal(random, torch.get_rng_state())
        heads.append(twin[0])
    assert torch.equal(heads[0].weight, heads[1].weight)
    assert heads[0].weight.shape == (classes, 4) and heads[0].weight.dtype is torch.bfloat16
    assert (heads[0].bias is not None) == bias


def test_a_convolution_gets_a_convolution_on_the_meta_device_too() -> None:
    twin = nn.Sequential(nn.Conv2d(4, 3, 1, device="meta"))
    replace_head(twin, "0", 7)
    assert isinstance(twin[0], nn.Conv2d) and twin[0].weight.shape == (7, 4, 1, 1) and twin[0].weight.is_meta


@pytest.mark.parametrize("path", [None, "nowhere", "blocks"])
def test_without_a_head_the_error_names_the_argument(path: str | None) -> None:
    with pytest.raises(PlanError, match="head="):
        replace_head(structural_twin(vit()), path, 3)


def test_a_head_with_no_classes_is_refused() -> None:
    with pytest.raises(PlanError, match="num_classes=0"):
        replace_head(nn.Sequential(nn.Linear(2, 2)), "0", 0)
