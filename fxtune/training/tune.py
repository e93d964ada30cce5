"""`tune`: a model, data, rules and a recipe become a trained model in a folder."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxtune.api import RulesLike, apply
from fxtune.data import Data, DataLike, load_data
from fxtune.digests import digest_of
from fxtune.dtypes import dtype_of
from fxtune.errors import DataError, InputError, PlanError
from fxtune.names import pipeline as pipeline_called
from fxtune.names import resolve
from fxtune.progress import progress as with_bar
from fxtune.recipes import Recipe, RecipeLike, recipe_for
from fxtune.saving import read_tensors
from fxtune.training.denoising import NoisePrediction, OfCaptions, denoised, part_of, with_model
from fxtune.training.evaluating import accelerator, accepts_of, measured, of_all
from fxtune.training.holding import held
from fxtune.training.layout import layout_of
from fxtune.training.objective import Classification
from fxtune.training.order import Key
from fxtune.training.preparing import Tokenizer, preparation
from fxtune.training.record import Record
from fxtune.training.run import BEST, TUNED, Run, write_result
from fxtune.training.state import (
    WEIGHTS,
    Standing,
    put_state,
    put_weights,
    read_state,
    state_tensors,
    write_state,
    write_weights,
)
from fxtune.training.steps import Stepper, optimizer_of
from fxtune.tuned import TunedModel, origin_of


def tune(
    model: Any,
    data: DataLike | Data,
    rules: RulesLike | Sequence[RulesLike] | None = None,
    *,
    out: str | Path,
    recipe: RecipeLike | None = None,
    settings: Mapping[str, Any] | None = None,
    tokenizer: Tokenizer | None = None,
    options: Mapping[str, Any] | None = None,
    workers: int = 0,
    shard: bool = False,
    progress: bool = True,
) -> Run:
    """Trains a model on data by a recipe, and tests it.

        >>> run = fxtune.tune("timm/vit_base_patch16_224", "images/birds", "tri_res", out="out/birds")
        >>> print(run)
        >>> tuned = fxtune.load(model, "out/birds/tuned")

    Images and sentences are classified. Captioned images train the model of a diffusers pipeline to predict noise; the
    result's `pipeline` samples from it.

    Called again with the same arguments it goes on where it was killed, and ends with the same weights, bit for bit (on
    the same machine and library versions). Under ``accelerate launch`` several processes share each batch, and compute
    what one would, but for the noise of dropout, which each draws for its own share.

    Args:
        model: a model, or a name that the command line takes; or one that is tuned already, without `rules`. An
            encoder of transformers by its name gets that library's head for classification. For captions a pipeline,
            or ``diffusers/PATH`` of one; its autoencoder and text encoder are moved to the device that is trained on.
        data: what `load_data` takes, or data.
        rules: what `fxtune.apply` takes.
        out: folder for the state, `metrics.jsonl`, TensorBoard's files, the trained model (`tuned/`) and `run.json`.
        recipe: a shipped recipe's name, a file's path, or a mapping; by default ``images``, ``text`` or
            ``text_to_image``, as the data are.
        settings: values that replace the recipe's, by dotted names: ``{"epochs": 10, "optimizer.lr": 0.005}``.
        tokenizer: for sentences.
        options: further arguments of `fxtune.apply`.
        workers: processes that load data beside each training one.
        shard: whether several processes part the weights among them (FSDP2, each Block by itself) instead of each
            holding all; what comes of it is the same.
        progress: whether a terminal shows how far it is.

    Raises:
        DataError, SourceError: data, rules or recipe are not there, or not as they should be.
        PlanError: the model is tuned already, or rules are missing.
        CheckpointError: the folder holds another training, another process trains into it, or it can't be written to.
        InputError: the model does not take what the recipe makes of the data.
        TrainingError: loss or weights are not finite.
    """
    known = data if isinstance(data, Data) else load_data(data)
    how = recipe_for(known.kind, recipe, settings)
    _check(known, how)
    processes = accelerator()
    pipeline = _pipeline(model) if known.kind == "captions" else None
    plain = pipeline.components[denoised(pipeline)] if pipeline is not None else model
    if isinstance(plain, str):
        plain = resolve(plain, classifies=known.kind)
    tuned = _tuned(plain, rules, known, how, options)
    if how.checkpointing:
        tuned.gradient_checkpointing_enable()
    described = _described(tuned, known, how)
    layout = layout_of(tuned, processes, shard=shard)
    optimizer = optimizer_of(layout.trained, how.optimizer)
    if pipeline is not None:
        prepared: Any = OfCaptions(how, part_of(pipeline, "tokenizer"))
        objective: Any = NoisePrediction(pipeline, processes.device)
    else:
        prepared = preparation(known, how, tokenizer, accepts_of(tuned))
        objective = Classification(len(known.classes), how.smoothing)
    stepper = Stepper(layout, optimizer, known.split("train"), prepared, objective, how, processes, workers)
    _try(stepper)

    folder = Path(out)
    with held(folder) if processes.is_main_process else nullcontext():
        standing = _begun(folder, described, stepper)
        record = Record(folder, standing.step) if processes.is_main_process else None
        standing = _epochs(stepper, known, folder, standing, record, bar=progress and processes.is_main_process)
        run = _ended(stepper, known, folder, standing, record, pipeline)
        if record is not None:
            record.close()
    return run


def _check(data: Data, recipe: Recipe) -> None:
    """What can be told before anything is built."""
    for name in ("train", *data.splits):
        data.split(name)
    if len(data.classes) == 1:
        raise DataError(
            "one class is nothing to be told apart",
            found=f"the class {data.classes[0]!r} alone",
            where=data.source,
            fix="take data with two classes at least",
        )
    if recipe.patience is not None and "val" not in data.splits:
        raise DataError(
            "to stop early, the recipe needs a split `val`",
            found=f"patience: {recipe.patience}, and the splits {', '.join(data.splits)}",
            where=data.source,
            fix="leave `patience` out, or divide the data: `parts: {train: 0.9, val: 0.1}`",
        )


def _pipeline(model: Any) -> Any:
    found = pipeline_called(model) if isinstance(model, str) else model
    if not hasattr(found, "components"):
        raise PlanError(
            "captioned images train the model of a diffusers pipeline",
            found=type(found).__name__,
            fix="pass the pipeline, or diffusers/PATH of its folder",
        )
    return found


def _tuned(model: nn.Module, rules: Any, data: Data, recipe: Recipe, options: Mapping[str, Any] | None) -> TunedModel:
    if isinstance(model, TunedModel):
        if rules is not None or options:
            raise PlanError(
                "this model is tuned already, and rules= are given, too", fix="leave them out, or pass the plain model"
            )
        return model
    if rules is None:
        raise PlanError("tune needs rules for a plain model", found="rules=None", fix="name one: rules='tri_res'")
    given: dict[str, Any] = {"seed": recipe.seed, **(options or {})}
    if data.classes:
        given.setdefault("num_classes", len(data.classes))
    return apply(model, rules, **given)


def _try(stepper: Stepper) -> None:
    """The model on two samples, so that what does not fit is told as what it is.

    Raises:
        InputError: it does not take them.
    """
    prepared, layout = stepper.prepared, stepper.layout
    batch = prepared.together([prepared[Key(0, index)] for index in range(min(2, len(prepared)))])
    layout.computing.eval()
    try:
        with torch.no_grad():
            stepper.objective.losses(layout.computing, batch.to(stepper.processes.device, dtype_of(layout.tuned)))
    except InputError:
        raise
    except Exception as error:
        shapes = [tuple(value.shape) for value in (*batch.args, *batch.kwargs.values())]
        raise InputError(
            "the model does not take what the recipe makes of these data",
            found=f"inputs of {', '.join(map(str, shapes))}: {type(error).__name__}: {error}",
            fix="change what the recipe makes: images.size=..., or texts.length=... (--set on the command line)",
        ) from error


def _begun(folder: Path, described: Mapping[str, Any], stepper: Stepper) -> Standing:
    """Where the training is: at its beginning, or where it was killed."""
    found = read_state(folder, described)
    if found is None:
        return Standing(training=json.loads(json.dumps(described)))
    standing, tensors = found
    put_state(tensors, stepper.layout, stepper.optimizer)
    return standing


def _epochs(
    stepper: Stepper, data: Data, folder: Path, standing: Standing, record: Record | None, *, bar: bool
) -> Standing:
    recipe, each = stepper.recipe, stepper.order.steps
    for epoch in range(standing.step // each, recipe.epochs):
        if _has_stopped(standing, recipe, epoch):
            break
        steps = stepper.run(epoch * each, (epoch + 1) * each)
        reached, unreadable = [], list(standing.unreadable)
        for number, step in enumerate(with_bar(steps, f"Epoch {epoch + 1}", each) if bar else steps, epoch * each + 1):
            unreadable += step.unreadable
            if step.loss is None:
                continue
            reached.append(step.loss)
            if record is not None:
                record.add(number, epoch=epoch + 1, loss=step.loss, lr=step.lr)
        if not reached:
            raise DataError(
                "there is nothing to train on", found="\n    ".join(of_all(unreadable)), fix="mend the images"
            )
        stepper.layout.gather()
        stepper.check((epoch + 1) * each)
        changes: dict[str, Any] = {"step": (epoch + 1) * each}
        if "val" in data.splits:
            score, odd = _measured(stepper, data, "val")
            unreadable += odd
            if record is not None:
                told = {stepper.objective.measure: score, "training loss": statistics.fmean(reached)}
                record.add((epoch + 1) * each, epoch=epoch + 1, split="val", **told)
            if stepper.objective.better(score, standing.best):
                changes |= {"best": score, "best_epoch": epoch + 1}
                if record is not None:
                    write_weights(folder / BEST, stepper.layout.tuned)
        standing = standing.model_copy(update={**changes, "unreadable": of_all(unreadable)})
        tensors = state_tensors(stepper.layout, stepper.optimizer)
        if record is not None:
            write_state(folder, standing, tensors)
        stepper.processes.wait_for_everyone()
    return standing


def _has_stopped(standing: Standing, recipe: Recipe, epoch: int) -> bool:
    """Whether the last epochs have bettered nothing for as long as the recipe is patient."""
    return (
        recipe.patience is not None
        and standing.best_epoch is not None
        and epoch - standing.best_epoch >= recipe.patience
    )


def _measured(stepper: Stepper, data: Data, split: str) -> tuple[float, tuple[str, ...]]:
    return measured(
        stepper.layout.trained,
        data,
        split,
        stepper.prepared.preparation,
        stepper.objective,
        stepper.recipe,
        stepper.processes,
        stepper.workers,
    )


def _ended(stepper: Stepper, data: Data, folder: Path, standing: Standing, record: Record | None, pipeline: Any) -> Run:
    """The weights of the best epoch, tested and written."""
    tuned = stepper.layout.tuned
    if standing.best_epoch is not None:
        put_weights(tuned, read_tensors(folder / BEST)[1])
        stepper.layout.spread()
    tuned.eval()
    if record is not None:
        tuned.save(folder / TUNED)  # before it is measured: no test set shall cost a training
    found = {name: _measured(stepper, data, name) for name in data.splits if name != "train"}
    run = Run(
        folder=folder,
        tuned=tuned,
        measure=stepper.objective.measure,
        scores={name: score for name, (score, _) in found.items()},
        epochs=standing.step // stepper.order.steps,
        best_epoch=standing.best_epoch,
        trained_weights=sum(weight.numel() for weight in tuned.parameters() if weight.requires_grad),
        unreadable=tuple(sorted({*standing.unreadable, *(told for _, odd in found.values() for told in odd)})),
        pipeline=None if pipeline is None else with_model(pipeline, tuned),
    )
    if record is not None:
        write_result(run, standing.training)
    stepper.processes.wait_for_everyone()
    return run


def _described(tuned: TunedModel, data: Data, recipe: Recipe) -> dict[str, Any]:
    """What must be the same for a training to be gone on with."""
    origin = origin_of(tuned)
    weights = "\n".join(f"{name} {digest_of(tensor)}" for name, tensor in sorted(tuned.state_dict().items()))
    samples = "\n".join(
        f"{name} {sample.name} {sample.label} {sample.texts}" for name, split in data.splits.items() for sample in split
    )
    return {
        "data": data.source,
        "samples": hashlib.sha256(samples.encode()).hexdigest()[:32],
        "classes": list(data.classes),
        "rules": None if origin is None else origin.model_dump(mode="json"),
        "model": hashlib.sha256(repr(tuned.strip()).encode()).hexdigest()[:32],
        "recipe": recipe.model_dump(mode="json"),
        WEIGHTS: hashlib.sha256(weights.encode()).hexdigest()[:32],
    }
