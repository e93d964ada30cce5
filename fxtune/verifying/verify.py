"""`verify`: random examples through both forms."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from fxtune.api import RulesLike
from fxtune.errors import FxtuneError, PlanError
from fxtune.names import resolve
from fxtune.progress import progress
from fxtune.rules import load
from fxtune.tuned import TunedModel
from fxtune.verifying.breach import breach
from fxtune.verifying.certificate import Agreement, Certificate
from fxtune.verifying.comparing import EXACT, Key, Measured
from fxtune.verifying.computing import compute
from fxtune.verifying.example import Example
from fxtune.verifying.pair import Pair
from fxtune.wrapped import check_plain

_SEEDS = 2**31


def verify(
    model: nn.Module | str,
    rules: RulesLike | Sequence[RulesLike],
    *,
    examples: int | Sequence[Example | Mapping[str, Any]] = 20,
    seed: int = 0,
    example_inputs: Any = None,
    dtypes: Sequence[str] = ("float64", "float32", "bfloat16"),
    **settings: Any,
) -> Certificate:
    """Computes the original and the unbound form of rules from the same random weights and inputs, and compares.

    Each example draws every weight anew, of the model and of the tuners, non-zero also where biases, norms and scales
    start at zero or one; then inputs, of any batch and length that the captured model takes. Outputs, and gradients of
    floating inputs and of all weights that train, are compared in evaluation mode:

    ================  ============================================================================================
    float64           one form against the other: outputs at most 1e-12 off, gradients 1e-10 (largest difference
                      over largest value, of each tensor)
    any other dtype   each form against float64 from the same rounded numbers: the unbound form's root mean square
                      of these errors is at most twice the original form's, plus two eps
    ================  ============================================================================================

    Gradients that are zero but for rounding are taken relative to the others: `fxtune.verifying.comparing`.

    Args:
        model: a model, or a name that the command line takes. It is not changed, and its weights don't matter; one
            that is given by name is built without them.
        rules: as for `fxtune.apply`.
        examples: how many; or the very ones, such as ``[certificate.breach.example]``.
        seed: from which the examples' own seeds are drawn. The same seed gives the same certificate.
        example_inputs: as for `fxtune.apply`; inputs are drawn like these.
        dtypes: names of torch's floating dtypes, in which the model and its inputs are. Tuners are in float32 at least.
        settings: more of what `fxtune.apply` takes: ``head=``, ``num_classes=``, settings of tuners.

    Returns:
        The certificate; `passed` tells whether every bound was kept. If not, `breach` is a small failing example.

    Raises:
        RuleError: a tuner has no original form where the rules put it.
        UnsupportedModelError: the model is quantised: its weights cannot be drawn anew.
        FxtuneError: the rules could not be applied, or there is nothing to compare.
    """
    chosen, given = _dtypes(dtypes), _given(examples)
    built = resolve(model, weights=False) if isinstance(model, str) else model
    check_plain(built, "verifying")
    pair = Pair(built, rules, example_inputs, settings)
    tuners = _tuners(pair.tuned)
    results: list[tuple[Example, dict[Key, Measured]]] = []
    for example in progress(_drawn(pair, given, seed), "verifying"):
        measured = compute(pair, example, chosen)
        results.append((example, measured))
        if any(not one.holds(kind, dtype) for (dtype, kind), one in measured.items() if dtype is EXACT):
            break  # one such example is enough
    together = {key: Measured.over([measured[key] for _, measured in results]) for key in results[0][1]}
    broken = next((key for key, one in together.items() if not one.holds(key[1], key[0])), None)
    return Certificate(
        model=type(built).__name__,
        rules=tuple(rule_set.name for rule_set in load(rules)),
        tuners=tuners,
        examples=len(results),
        seed=seed,
        agreement=tuple(_agreement(key, one) for key, one in together.items()),
        versions=_versions(built),
        passed=broken is None,
        breach=breach(pair, broken, results, _call(model, rules, settings)) if broken else None,
    )


def _given(examples: int | Sequence[Example | Mapping[str, Any]]) -> int | list[Example]:
    """The argument, checked."""
    try:
        given = examples if isinstance(examples, int) else [Example.model_validate(example) for example in examples]
    except ValidationError as error:
        raise _not_examples(examples, str(error)) from None
    if not given or (isinstance(given, int) and given < 0):
        raise _not_examples(examples, "none")
    return given


def _drawn(pair: Pair, given: int | list[Example], seed: int) -> list[Example]:
    if isinstance(given, int):
        seeds = torch.randint(_SEEDS, (given,), generator=torch.Generator().manual_seed(seed))
        return [pair.inputs.example(number) for number in seeds.tolist()]
    if unfit := [example for example in given if not pair.inputs.fits(example)]:
        raise _not_examples(given, f"the model takes no inputs of this size: {unfit[0]}")
    return given


def _not_examples(examples: object, found: str) -> FxtuneError:
    return FxtuneError(
        f"These examples cannot be drawn: examples={examples!r}",
        found=found,
        fix="pass a number of at least 1, or examples of a certificate's breach: [certificate.breach.example]",
    )


def _dtypes(names: Sequence[str]) -> list[torch.dtype]:
    found = [getattr(torch, name, None) for name in names if isinstance(name, str)]
    dtypes = [dtype for dtype in found if isinstance(dtype, torch.dtype) and dtype.is_floating_point]
    if isinstance(names, str) or not dtypes or len(dtypes) < len(names):
        raise FxtuneError(
            "Forms cannot be compared in these dtypes",
            found=f"dtypes={names!r}",
            fix="name floating dtypes of torch: ('float64', 'float32', 'bfloat16')",
        )
    return sorted(dict.fromkeys(dtypes), key=lambda dtype: dtype is not EXACT)


def _tuners(tuned: TunedModel) -> tuple[str, ...]:
    """A line for each rule that put tuners somewhere.

    Raises:
        PlanError: none did.
    """
    report = tuned.report()
    lines = tuple(f"{outcome.rule} ({len(outcome.sites)} x)" for outcome in report.outcomes if outcome.sites)
    if not lines:
        raise PlanError(
            f"There is nothing to verify: the rules put no tuner into this {report.model}",
            found="; ".join(remark for outcome in report.outcomes for remark in outcome.remarks) or "no rules",
            fix="`fxtune inspect` shows where tuners can go",
        )
    return lines


def _agreement(key: Key, one: Measured) -> Agreement:
    dtype, kind = key
    return Agreement(
        dtype=str(dtype).removeprefix("torch."),
        of=kind,
        largest=one.largest,
        tensor=one.tensor,
        unbound=one.unbound,
        original=one.original,
        bound=one.judged(kind, dtype)[1],
        holds=one.holds(kind, dtype),
    )


def _versions(model: nn.Module) -> dict[str, str]:
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    named = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "fxtune": _own_version(),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "device": f"{device.type} ({named})",
    }


def _own_version() -> str:
    try:
        return metadata.version("fxtune")
    except metadata.PackageNotFoundError:  # run from its source, not installed
        return "of the source"


def _call(model: nn.Module | str, rules: object, settings: Mapping[str, Any]) -> str:
    """The arguments of this call, as far as they can be written."""
    given = [
        repr(model) if isinstance(model, str) else "model",
        repr(rules) if isinstance(rules, (str, dict, list)) else "rules",
    ]
    return ", ".join([*given, *(f"{name}={value!r}" for name, value in settings.items())])
