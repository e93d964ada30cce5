"""A tuned model as LoRA for other libraries: each tuner at the module whose weight it changes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from fxtune import cards
from fxtune.errors import CheckpointError
from fxtune.interchange import (
    Adapter,
    LowRank,
    as_stored,
    is_module,
    kept_beside,
    reads_of,
    write_diffusers,
    write_peft,
)
from fxtune.planning import Beside, Insertion
from fxtune.saving import Made
from fxtune.tuned.ownership import place, tensors
from fxtune.tuned.stored import is_tuners, own_tensors

LORA = "lora"
"""The tuner that other libraries have, too."""


def save_as_peft(tuned: nn.Module, original: nn.Module, made: Made, folder: Path) -> None:
    """Writes a tuned model as a folder of PEFT's.

    Raises:
        CheckpointError: it is more than LoRA, or PEFT has no words for what trains beside it; or the folder can't be
            written to.
    """
    adapter = _adapter(tuned, original, made, folder)
    modules = [path for path, _ in original.named_modules() if path]
    _check_untied(tuned, adapter.others)
    names = [name for name in tuned.state_dict() if not is_tuners(name)]
    kept = kept_beside(adapter.others, names, modules, adapter.maps)
    turned = any(_is_turned(insertion) for insertion in made.insertions)
    write_peft(folder, adapter, kept, modules, turned)


def save_as_diffusers(tuned: nn.Module, original: nn.Module, made: Made, folder: Path) -> None:
    """Writes a tuned model as diffusers' LoRA file.

    Raises:
        CheckpointError: it is more than LoRA; or it is no model whose place in a pipeline is known; or the folder can't
            be written to.
    """
    component = cards.component(original)
    if component is None:
        raise CheckpointError(
            "diffusers' LoRA files are for the models of its pipelines",
            found=f"no card says what a pipeline calls a {type(original).__name__}",
            fix="save it with format='peft'",
        )
    adapter = _adapter(tuned, original, made, folder)
    if adapter.others:
        raise CheckpointError(
            "diffusers' LoRA files hold LoRA and nothing else",
            found=f"`{next(iter(adapter.others))}` trains, too",
            fix="save it with format='fxtune', or let only the tuners train",
        )
    write_diffusers(folder, adapter, component, [path for path, _ in original.named_modules() if path])


def _adapter(tuned: nn.Module, original: nn.Module, made: Made, folder: Path) -> Adapter:
    if any(rules.bypass is not None for rules in made.origin.rules):
        raise _more("a bypass")
    if not made.insertions:
        raise _more("no LoRA at all")
    maps: dict[str, LowRank] = {}
    for insertion in made.insertions:
        path = _module_of(insertion, original)
        if path in maps:
            raise _more(f"two LoRA at `{path}`")
        maps[path] = _low_rank(tuned.get_submodule(insertion.path), insertion)
    dropouts = {float(insertion.settings.get("dropout", 0.0)) for insertion in made.insertions}
    if len(dropouts) > 1:
        raise _more(f"dropouts of {', '.join(map(str, sorted(dropouts)))}, where other libraries have one for all")
    others = {name: tensor for name, tensor in own_tensors(tuned, original).items() if not is_tuners(name)}
    return Adapter(folder, maps, others, dropout=dropouts.pop())


def _low_rank(tuner: nn.Module, insertion: Insertion) -> LowRank:
    a, b = tuner.get_parameter("A"), tuner.get_parameter("B")
    alpha = insertion.settings.get("alpha")
    return as_stored(a, b, float(a.shape[0] if alpha is None else alpha))


def _module_of(insertion: Insertion, original: nn.Module) -> str:
    """Path of the module whose weight a tuner changes."""
    site = insertion.site
    if insertion.tuner != LORA:
        raise _more(f"{insertion.tuner} at `{site.path}`")
    if not is_module(site, original):
        raise _more(f"LoRA at the {site.kind} of `{site.path}`, which is no linear module with a weight of its own")
    if isinstance(insertion.edit, Beside) and insertion.edit.source.node == insertion.edit.output.node:
        raise _more(f"LoRA that reads the output of `{site.path}`")
    if reads_of(site) is None:
        raise _more(f"LoRA at `{site.path}`, a convolution of several groups, where PEFT's is another thing")
    module = original.get_submodule(site.path)
    if not isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) and not _is_turned(insertion):
        raise _more(f"LoRA at `{site.path}`, a {type(module).__name__}, which is none of torch's own layers")
    return site.path


def _is_turned(insertion: Insertion) -> bool:
    """Whether the weight is stored as D_in x D; PEFT knows the one layer of that kind."""
    operation = insertion.site.operation
    return operation is not None and operation.weights is not None and operation.weights.layout == "in x out"


def _check_untied(tuned: nn.Module, others: Mapping[str, Tensor]) -> None:
    """Refuses weights that train under several names: each library ties them in a way of its own."""
    names = defaultdict(list)
    for name, tensor in tensors(tuned):
        names[place(tensor)].append(name)
    for name, tensor in others.items():
        if tensor.numel() and len(names[place(tensor)]) > 1:
            raise _more(f"`{name}` trains, which is also {', '.join(names[place(tensor)][1:])}")


def _more(found: str) -> CheckpointError:
    return CheckpointError(
        "other libraries' forms hold LoRA on linear modules and convolutions, and this tuned model is something else",
        found=found,
        fix="save it with format='fxtune', which holds everything",
    )
