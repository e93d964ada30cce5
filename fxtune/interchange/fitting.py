"""An adapter on a captured model: each of its pairs finds its linear map, and all of it becomes ordinary rules."""

from __future__ import annotations

from collections import defaultdict
from glob import escape
from typing import Any

from torch import Tensor, nn

from fxtune.errors import CheckpointError
from fxtune.interchange.adapter import Adapter, LowRank, as_matrices
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


def fitted(adapter: Adapter, sites: Sites, model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B for each module that the adapter names.

    Args:
        adapter: the adapter.
        sites: of the model.
        model: its modules.

    Returns:
        Module path -> A, r x D_in, and B, D x r.

    Raises:
        CheckpointError: a module computes no single linear map, or one of other widths, or of less than rank r.
    """
    at: dict[str, list[Site]] = defaultdict(list)
    for site in sites.of(LINEAR):
        if site.path in adapter.maps and is_module(site, model):
            at[site.path].append(site)
    matrices = {}
    for path, low in adapter.maps.items():
        if not at[path]:
            raise _no_map(path, low, adapter, sites, model)
        if len(at[path]) > 1:
            raise _refused(
                f"`{path}` is called {len(at[path])} times, and each call would have LoRA of its own", adapter
            )
        matrices[path] = _checked(at[path][0], low, adapter)
    return matrices


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


def rules_of(adapter: Adapter, model: nn.Module, name: str) -> dict[str, Any]:
    """The rule set that puts LoRA where the adapter has it, and lets train what it replaces.

    Args:
        adapter: the adapter.
        model: that it is for.
        name: of the rule set.
    """
    alike: dict[tuple[int, float], list[str]] = defaultdict(list)
    for path, low in adapter.maps.items():
        alike[low.rank, low.alpha].append(path)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return {
        "fxtune": 1,
        "name": name,
        "about": "LoRA as another library wrote it, each pair of matrices at the module that it was trained at.",
        "train": ["tuners", *(escape(other) for other in adapter.others if other in parameters)],
        "rules": [_rule(paths, rank, alpha, adapter.dropout) for (rank, alpha), paths in alike.items()],
    }


def _rule(paths: list[str], rank: int, alpha: float, dropout: float) -> dict[str, Any]:
    settings: dict[str, Any] = {"rank": rank, "alpha": alpha} | ({"dropout": dropout} if dropout else {})
    return {
        "at": LINEAR,
        "where": {"path": [escape(path) for path in paths]},
        "insert": {"lora": settings},
        "expect": len(paths),
    }


def _checked(site: Site, low: LowRank, adapter: Adapter) -> tuple[Tensor, Tensor]:
    """A and B at a linear map, whose widths and rank they have."""
    matrices = as_matrices(low)
    d_in, d_out = site.input.width, site.width
    if matrices is None or matrices[0].shape[1] != d_in or matrices[1].shape[0] != d_out:
        raise CheckpointError(
            "this LoRA does not fit its module",
            found=f"factors of shape {tuple(low.down.shape)} and {tuple(low.up.shape)} at `{site.path}`, which maps "
            f"{d_in} channels to {d_out}",
            where=str(adapter.path),
            fix="load it on the architecture that it was trained on",
        )
    if low.rank > min(d_in, d_out):
        raise CheckpointError(
            "this LoRA is of a higher rank than its module",
            found=f"rank {low.rank} at `{site.path}`, which maps {d_in} channels to {d_out}",
            where=str(adapter.path),
            fix=f"train it with a rank of at most {min(d_in, d_out)}, or change that module's weight itself",
        )
    return matrices


def _no_map(path: str, low: LowRank, adapter: Adapter, sites: Sites, model: nn.Module) -> CheckpointError:
    """Why there is no linear map at a module that exists."""
    module = model.get_submodule(path)
    if any(site.path == path for site in sites.of(CONVOLUTION)):
        kernel = "x".join(map(str, low.down.shape[2:])) or "1"
        found = f"`{path}` is a convolution, here with a kernel of {kernel}; LoRA goes on those of kernel 1 so far, "
        found += "without stride, padding or groups"
    elif isinstance(module, nn.Embedding):
        found = f"`{path}` is an embedding"
    else:
        near = nearest(path, {site.path for site in sites.of(LINEAR)})
        found = f"`{path}`, a {type(module).__name__}, computes none by itself; nearest: {', '.join(near) or 'none'}"
    return _refused(found, adapter)


def _refused(found: str, adapter: Adapter) -> CheckpointError:
    return CheckpointError(
        "this checkpoint has LoRA where none can be put: it goes on modules that are one linear map",
        found=found,
        where=str(adapter.path),
        fix="let the library that trained it merge it into the model's weights, and load that model",
    )
