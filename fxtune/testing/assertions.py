"""What rules and tuners must keep to, each as one call: for models, rules and tuners of your own.

They take what `fxtune.apply` takes, and tell by name what does not hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from fxtune.api import RulesLike, apply
from fxtune.modes import in_mode
from fxtune.testing.state import State, moved, same, tensors, values
from fxtune.tracing import call_inputs
from fxtune.tuned import TunedModel
from fxtune.tuners import attached_by

Rules = RulesLike | Sequence[RulesLike]


def assert_identity_at_init(model: nn.Module, rules: Rules, inputs: Any = None, **settings: Any) -> None:
    """Before training the tuned model gives what the model gives, bit for bit (in eval mode).

    Args:
        model: any model; it comes out as it went in.
        rules: as for `fxtune.apply`.
        inputs: a tuple of arguments, a dict of keywords, or a pair of both; by default those of the model's card.
        settings: more of what `fxtune.apply` takes (``seed=``, ``batchnorm=``, settings of tuners).

    Raises:
        AssertionError: names the outputs that differ, and the tuners that add something.
        FxtuneError: the rules could not be applied.
    """
    args, kwargs = call_inputs(model, inputs)
    tuned = apply(model, rules, example_inputs=(args, kwargs), **settings).eval()
    with torch.no_grad(), in_mode(model, training=False), _noting_what_adds(tuned) as adding:
        expected, found = values(model(*args, **kwargs)), values(tuned(*args, **kwargs))
    differing = [
        f"output{place or ''}: {_distance(found[place], tensor)}" if place in found else f"output{place}: is missing"
        for place, tensor in expected.items()
        if place not in found or not same(found[place], tensor)
    ]
    if differing:
        _fail("The untrained tuned model does not give what the model gives", [*differing, *adding])


def assert_only_tuners_train(
    model: nn.Module, rules: Rules, inputs: Any = None, *, steps: int = 6, **settings: Any
) -> None:
    """A few optimizer steps move every tensor that the rules train, and no other: no frozen weight, no statistic.

    What the rules train is every weight of the tuners, and what ``train:`` names beside them (the head).

    Args:
        model, rules, inputs, settings: as for `assert_identity_at_init`.
        steps: how many; what stands behind a zero at the start moves from the second on.

    Raises:
        AssertionError: names the tensors that moved or stood still against this.
        FxtuneError: the rules could not be applied.
    """
    args, kwargs = call_inputs(model, inputs)
    tuned = apply(model, rules, example_inputs=(args, kwargs), **settings).train()
    trained = tuned.trainable
    before, original = tensors(tuned), tensors(model)
    _train(tuned, args, kwargs, steps)
    changed = moved(before, tensors(tuned))
    _fail_if(
        f"After {steps} steps other tensors have moved than the rules train",
        [
            *(f"{name}: trains, and did not move" for name in trained if name not in changed),
            *(f"{name}: does not train, and moved" for name in changed if name not in trained),
            *(f"{name}: moved in the original model" for name in moved(original, tensors(model))),
        ],
    )


def assert_strips_clean(model: nn.Module, rules: Rules, inputs: Any = None, **settings: Any) -> None:
    """After training, ``strip()`` gives back the very model: its weights, statistics, flags, modes and hooks as before.

    Args:
        model, rules, inputs, settings: as for `assert_identity_at_init`.

    Raises:
        AssertionError: names what is not as it was.
        FxtuneError: the rules could not be applied.
    """
    args, kwargs = call_inputs(model, inputs)
    before = State.of(model)
    with torch.no_grad(), in_mode(model, training=False):
        expected = values(model(*args, **kwargs))
    tuned = apply(model, rules, example_inputs=(args, kwargs), **settings).train()
    _train(tuned, args, kwargs, steps=2)
    stripped = tuned.strip()
    if stripped is not model:
        _fail("strip() did not give back the model", [f"it gave another {type(stripped).__name__}"])
    _fail_if("The stripped model is not as it was", before.differences(State.of(model)))
    with torch.no_grad(), in_mode(model, training=False):
        found = values(model(*args, **kwargs))
    _fail_if("The stripped model computes something else", (f"output{place}" for place in moved(expected, found)))


def _train(tuned: TunedModel, args: tuple[Any, ...], kwargs: dict[str, Any], steps: int) -> None:
    """Steps down a loss that reads every output: a random direction, for a plain mean is constant behind a norm."""
    optimizer = torch.optim.Adam([p for p in tuned.parameters() if p.requires_grad], lr=0.01)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        for step in range(steps):
            torch.default_generator.manual_seed(step)
            outputs = [leaf for leaf in values(tuned(*args, **kwargs)).values() if leaf.requires_grad]
            if not outputs:
                _fail("Nothing can be trained", ["no output depends on a weight that trains"])
            torch.default_generator.manual_seed(0)
            directions = [torch.randn(output.shape).to(output) for output in outputs]
            loss = sum(
                ((output * direction).mean() for output, direction in zip(outputs, directions, strict=True)),
                torch.zeros(()),
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()


@contextmanager
def _noting_what_adds(tuned: TunedModel) -> Iterator[list[str]]:
    """A line for every tuner beside an operation that adds more than zero, written while the model runs."""
    adding: list[str] = []

    def note(path: str, result: Any) -> None:
        if isinstance(result, Tensor) and bool((result != 0).any()):
            adding.append(f"{path}: adds up to {float(result.abs().max()):.1e}")

    handles = [
        module.register_forward_hook(lambda _, __, result, path=path: note(path, result))
        for path, module in tuned.named_modules()
        if path.split(".")[-2:-1] == ["tuners"] and attached_by(module) == "forward"
    ]
    try:
        yield adding
    finally:
        for handle in handles:
            handle.remove()


def _distance(found: Tensor, expected: Tensor) -> str:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return f"{found.dtype} {tuple(found.shape)}, not {expected.dtype} {tuple(expected.shape)}"
    return f"differs by up to {float((found.double() - expected.double()).abs().max()):.1e}"


def _fail_if(what: str, lines: Iterable[str]) -> None:
    if found := list(lines):
        _fail(what, found)


def _fail(what: str, lines: Sequence[str], most: int = 12) -> NoReturn:
    more = [f"and {len(lines) - most} more"] if len(lines) > most else []
    raise AssertionError("\n  ".join([f"{what}:", *lines[:most], *more]))
