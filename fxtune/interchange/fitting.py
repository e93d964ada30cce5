"""An adapter on a captured model: each of its pairs finds its module, and all of it becomes ordinary rules."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from glob import escape
from math import prod
from typing import Any

from torch import Tensor, nn

from fxtune.errors import CheckpointError
from fxtune.interchange.adapter import Adapter, LowRank, as_trained
from fxtune.matching import Site, Sites
from fxtune.source import nearest

LINEAR, CONVOLUTION = "linear", "convolution"
"""The shipped patterns of single operations with weights of their own."""


def is_module(site: Site, model: nn.Module) -> bool:
    """Whether a site is one whole module of the model: what it computes is computed there, with its `weight`."""
    weights = site.operation.weights if site.operation else None
    if weights is None or weights.weight is None:
        return False
    # Tied weights have several names, and the site knows one of them.
    parameters = dict(model.named_parameters(remove_duplicate=False))
    own = parameters.get(f"{site.path}.weight")
    return own is not None and own is parameters.get(weights.weight)


@dataclass(frozen=True)
class Fitted:
    """LoRA at a module of the model.

    Attributes:
        kind: the pattern whose site the module is.
        a: A, r x D_in, or r x D_in x k x k.
        b: B, D x r.
    """

    kind: str
    a: Tensor
    b: Tensor


def fitted(adapter: Adapter, sites: Sites, model: nn.Module) -> dict[str, Fitted]:
    """A and B for each module that the adapter names.

    Args:
        adapter: the adapter.
        sites: of the model.
        model: its modules.

    Returns:
        Module path -> A and B.

    Raises:
        CheckpointError: a module computes no single linear map or convolution, or one of other widths, or of less than
            rank r.
    """
    at: dict[str, list[Site]] = defaultdict(list)
    for site in (*sites.of(LINEAR), *sites.of(CONVOLUTION)):
        if site.path in adapter.maps and is_module(site, model) and reads_of(site) is not None:
            at[site.path].append(site)
    found = {}
    for path, low in adapter.maps.items():
        if not at[path]:
            raise _no_map(path, adapter, sites, model)
        if len(at[path]) > 1:
            raise _refused(
                f"`{path}` is called {len(at[path])} times, and each call would have LoRA of its own", adapter
            )
        found[path] = _checked(at[path][0], low, adapter)
    return found


def reads_of(site: Site) -> tuple[int, ...] | None:
    """What makes one output of a linear map, D_in, or of a convolution, D_in x k x k; None of what other libraries
    have no LoRA for, or another one: a transposed convolution, or one of several groups."""
    if site.operation is None:
        return None
    convolution = site.operation.convolution
    if convolution is None:
        return (site.input.width,) if site.operation.op == "linear" else None
    return (site.input.width, *convolution.kernel) if convolution.groups == 1 else None


def check_others(adapter: Adapter, model: nn.Module) -> None:
    """Checks that the modules which the adapter replaces are there as a whole.

    Raises:
        CheckpointError: a weight of one is missing.
    """
    known = model.state_dict()
    for path, module in model.named_modules():
        if not path or not path.endswith(adapter.whole):
            continue
        names = [f"{path}.{name}" for name in module.state_dict() if f"{path}.{name}" in known]
        missing = next((name for name in names if name not in adapter.others), None)
        if missing is not None:
            raise CheckpointError(
                "this checkpoint lacks a weight that its config speaks of",
                found=f"nothing for `{missing}` of `{path}`, which modules_to_save names",
                where=str(adapter.path),
                fix="copy it again from where it came, or take an earlier one",
            )


def rules_of(adapter: Adapter, at: Mapping[str, Fitted], model: nn.Module, name: str) -> dict[str, Any]:
    """The rule set that puts LoRA where the adapter has it, and lets train what it replaces.

    Args:
        adapter: the adapter.
        at: its pairs by module path.
        model: that it is for.
        name: of the rule set.
    """
    alike: dict[tuple[str, int, float], list[str]] = defaultdict(list)
    for path, low in adapter.maps.items():
        alike[at[path].kind, low.rank, low.alpha].append(path)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return {
        "fxtune": 1,
        "name": name,
        "about": "LoRA as another library wrote it, each pair of matrices at the module that it was trained at.",
        "train": ["tuners", *(escape(other) for other in adapter.others if other in parameters)],
        "rules": [_rule(*key, paths, adapter.dropout) for key, paths in alike.items()],
    }


def _rule(kind: str, rank: int, alpha: float, paths: list[str], dropout: float) -> dict[str, Any]:
    settings: dict[str, Any] = {"rank": rank, "alpha": alpha} | ({"dropout": dropout} if dropout else {})
    return {
        "at": kind,
        "where": {"path": [escape(path) for path in paths]},
        "insert": {"lora": settings},
        "expect": len(paths),
    }


def _checked(site: Site, low: LowRank, adapter: Adapter) -> Fitted:
    """A and B at a map, whose widths and rank they have."""
    reads, width = reads_of(site), site.width
    assert reads is not None
    weight = f"`{site.path}`, whose weight is {' x '.join(map(str, (width, *reads)))}"
    pair = as_trained(low, reads, width)
    if pair is None:
        raise CheckpointError(
            "this LoRA does not fit its module",
            found=f"factors of shape {tuple(low.down.shape)} and {tuple(low.up.shape)} at {weight}",
            where=str(adapter.path),
            fix="load it on the architecture that it was trained on",
        )
    largest = min(width, prod(reads))
    if low.rank > largest:
        raise CheckpointError(
            "this LoRA is of a higher rank than its module",
            found=f"rank {low.rank} at {weight}",
            where=str(adapter.path),
            fix=f"train it with a rank of at most {largest}, or change that module's weight itself",
        )
    return Fitted(site.kind, *pair)


def _no_map(path: str, adapter: Adapter, sites: Sites, model: nn.Module) -> CheckpointError:
    """Why there is no map at a module that exists."""
    module = model.get_submodule(path)
    if any(site.path == path for site in sites.of(CONVOLUTION)):
        found = f"`{path}` is a transposed convolution, or one of several groups, for which LoRA here is another thing"
    elif isinstance(module, nn.Embedding):
        found = f"`{path}` is an embedding"
    else:
        near = nearest(path, {site.path for kind in (LINEAR, CONVOLUTION) for site in sites.of(kind)})
        found = f"`{path}`, a {type(module).__name__}, computes none by itself; nearest: {', '.join(near) or 'none'}"
    return _refused(found, adapter)


def _refused(found: str, adapter: Adapter) -> CheckpointError:
    return CheckpointError(
        "this checkpoint has LoRA where none can be put: it goes on modules that are one linear map or convolution",
        found=found,
        where=str(adapter.path),
        fix="let the library that trained it merge it into the model's weights, and load that model",
    )
