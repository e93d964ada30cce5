"""`load`: a tuned model from disk."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any, Literal

from torch import nn

from fxtune import cards
from fxtune.api.adapting import adapted
from fxtune.api.applying import build, check_untuned
from fxtune.api.drafting import Captured, capture_of, rule_sets_for
from fxtune.api.moving import Planned, moved
from fxtune.errors import CheckpointError, InputError
from fxtune.inspection import counted
from fxtune.interchange import Format, read_diffusers, read_peft, recognised
from fxtune.names import resolve as resolve_model
from fxtune.planning import Patch
from fxtune.saving import Checkpoint, changed_weights, computing_of, drawn, read, weights_of
from fxtune.structure import structured
from fxtune.tuned import Recipe, TunedModel, loads, put


@loads
def load(
    model: nn.Module | str,
    folder: str | Path,
    *,
    example_inputs: Any = None,
    other_weights: Literal["warn", "refuse"] = "warn",
    format: Format | None = None,
) -> TunedModel:
    """A tuned model as `TunedModel.save` wrote it, on its backbone; or LoRA as PEFT or diffusers wrote it.

        >>> tuned.save("birds/")
        >>> tuned = fxtune.load(model, "birds/")  # in another process; computes the same, bit for bit

    Nothing in the folder is run or unpickled, and nothing is loaded unless all of it fits.

    The backbone may have other names, be made in another order, or come from another library, as long as it computes
    the same: timm's ViT and transformers' do. Tuners of fused projections are then parted, those of split ones joined
    (lora, ssf, bitfit; see `fxtune.tuners.parting`), or refused by name; the epsilon of every norm must be equal, for
    another one changes what is computed and no weight shows it; and what is loaded has the rules in the model's own
    names. Example inputs must have the sizes that they had for `apply`.

    LoRA of other libraries lands at the modules that its tensors name, with the ranks and factors that its config says,
    and becomes ordinary rules: what is loaded can be trained, saved and reported on like any tuned model. What is more
    than LoRA on linear maps (DoRA, embeddings, initialisations that change the model's own weights, ...) is refused by
    name.

    Args:
        model: the backbone, or its name. It is not changed.
        folder: what `save` wrote, or PEFT's ``save_pretrained``, or diffusers' ``save_lora_weights``.
        example_inputs: as for `apply`; by default inputs of the kinds that `apply` was given.
        other_weights: what to do where the backbone's own weights are not those that the tuners were trained beside.
            Only fxtune's own form knows them.
        format: what the folder holds, where it holds several: ``fxtune``, ``peft`` or ``diffusers``.

    Raises:
        CheckpointError: there is no checkpoint, it is damaged, it is more than can be carried over, or it belongs to a
            backbone of another structure or with another epsilon.
    """
    model = resolve_model(model) if isinstance(model, str) else model
    check_untuned(model)
    form = recognised(Path(folder), format)
    if form == "fxtune":
        return _own(model, Path(folder), example_inputs, other_weights)
    if other_weights == "refuse":
        raise CheckpointError(
            "whether this is the backbone that the LoRA was trained beside cannot be told",
            found=f"the form of {form}, which says nothing of the backbone's weights",
            where=str(folder),
            fix="leave other_weights='refuse' out",
        )
    if form == "peft":
        adapter = read_peft(Path(folder), model)
    else:
        adapter = read_diffusers(Path(folder), model, cards.component(model))
    return adapted(model, adapter, f"lora_of_{form}", example_inputs)


def _own(model: nn.Module, folder: Path, example_inputs: Any, other_weights: Literal["warn", "refuse"]) -> TunedModel:
    """A tuned model in fxtune's own form."""
    checkpoint = read(folder)
    origin = checkpoint.origin
    _check_classes(checkpoint)
    rule_sets = rule_sets_for(model, origin.rule_data(), {})
    captured = _captured(model, checkpoint, example_inputs)
    recipe = Recipe(rule_sets, captured.head, 0, origin.torch_dtype, origin.form, origin.optimize)
    sites = recipe.sites(captured.graph)
    structure = structured(captured.graph, sites.view)
    if checkpoint.backbone.computing == computing_of(captured.graph):
        _check_weights(model, checkpoint, other_weights)
        planned = Planned(origin, recipe, recipe.plan(captured.graph, sites)[1], checkpoint)
    else:
        planned = moved(model, captured, checkpoint, recipe, sites, structure, other_weights)
    _check_size(planned.patch, checkpoint)
    tuned = build(model, captured, planned.recipe, planned.patch, planned.origin, structure)
    put(tuned, model, planned.weights)
    return tuned


def _captured(model: nn.Module, checkpoint: Checkpoint, example_inputs: Any) -> Captured:
    origin = checkpoint.origin
    known = origin.inputs if example_inputs is None else None
    try:
        return capture_of(
            model,
            example_inputs=example_inputs if known is None else drawn(known),
            head=origin.head if origin.head in dict(model.named_modules()) else None,
            num_classes=origin.num_classes,
            seed=0,
        )
    except InputError as error:
        if known is None:
            raise
        raise CheckpointError(
            "these tuners belong to a model of another structure",
            found=f"it is called otherwise: {error.found}",
            where=str(checkpoint.path),
            fix="load them on the architecture that they were tuned on, or pass example_inputs",
        ) from error


def _check_classes(checkpoint: Checkpoint) -> None:
    """Before a new head is made: its rows must be in the file."""
    classes = checkpoint.origin.num_classes
    if classes is not None and all(shape[:1] != (classes,) for shape in checkpoint.shapes.values()):
        raise checkpoint.contradiction(f"a head of {classes:,d} classes, and no weight with so many rows")


def _check_size(patch: Patch, checkpoint: Checkpoint) -> None:
    """Before tuners are made: rules that ask for far more than is in the file would fill the memory for nothing."""
    asked, there = sum(counted(patch).values()), sum(math.prod(shape) for shape in checkpoint.shapes.values())
    if asked > 2 * there + 2**20:
        raise checkpoint.contradiction(f"rules for {asked:,d} weights of tuners, and {there:,d} weights")


def _check_weights(model: nn.Module, checkpoint: Checkpoint, other_weights: Literal["warn", "refuse"]) -> None:
    changed = changed_weights(checkpoint.backbone.weights, weights_of(model), checkpoint.shapes)
    if not changed:
        return
    error = CheckpointError(
        "these tuners were trained beside other weights of this backbone",
        found=f"{len(changed)} weights differ, the first is `{changed[0]}`",
        where=str(checkpoint.path),
        fix="load them on the pretrained model that they were tuned on",
    )
    if other_weights == "refuse":
        raise error
    warnings.warn(str(error), stacklevel=4)
