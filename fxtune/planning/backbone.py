"""The whole network before its head, as one site: what a bypass `along: backbone` runs beside."""

from __future__ import annotations

import torch

from fxtune.errors import PlanError
from fxtune.matching import Port, Site, Sites, port
from fxtune.view import Value, View

BACKBONE = "backbone"
"""Its kind. No pattern is called so: it is found by where the model's inputs and its head are."""


def backbone(sites: Sites, head: str | None, where: str) -> Site:
    """The site from what enters the network to what its head reads, the final features.

    It reads the model's first floating input of three axes or more, an image say; where there is none, what an
    embedding makes of the model's first input, a text. Its heads are those of the first attention.

    Args:
        sites: the model's sites.
        head: module path of the head.
        where: where the bypass was written, for errors.

    Raises:
        PlanError: the model has no head that is a linear map, or nothing of this kind enters it.
    """
    view = sites.view
    features = _features(view, head)
    if features is None:
        raise _refused(f"no linear map with a weight of its own at `{head}`" if head else "no head", where)
    entry = _entry(view)
    if entry is None:
        raise _refused("no input that is an image, or that an embedding reads", where)
    first = next(iter(sites.calls("mha")), None)
    return Site(
        kind=BACKBONE,
        variant="",
        index=0,
        block=None,
        stage=None,
        path="",
        input=entry,
        output=features,
        heads=first.heads if first else 1,
        attention=None,
        names={},
    )


def _features(view: View, head: str | None) -> Port | None:
    """What the head reads, before dropout: a trunk runs in evaluation mode, and the dropout goes on what is mixed."""
    for node in reversed(view.by_op.get("linear", [])):
        reads, weight = view.uses(node)[:2]
        if str(view.values[weight.source].target) == f"{head}.weight":
            value = view.values[reads.value]
            while value.op == "dropout":
                value = value.inputs()[0]
            return port(view, value.id, view.axes.get(value.id, len(value.shape) - 1))
    return None


def _entry(view: View) -> Port | None:
    inputs = [value for value in view.values if value.op == "input"]
    for value in inputs:
        if isinstance(value.val, torch.Tensor) and value.val.is_floating_point() and len(value.shape) > 2:
            return port(view, value.id, 1 if len(value.shape) > 3 else 2)
    for value in inputs:
        for embedding in (view.values[id] for id in view.readers.get(value.id, ())):
            if _looks_up(embedding, value):
                return port(view, embedding.id, len(embedding.shape) - 1)
    return None


def _looks_up(embedding: Value, ids: Value) -> bool:
    return embedding.op == "embedding" and embedding.inputs()[1].id == ids.id and len(embedding.shape) == 3


def _refused(found: str, where: str) -> PlanError:
    return PlanError(
        "a bypass along the backbone cannot be spliced in",
        found=found,
        where=where,
        fix="name the module that maps features to classes (`head=`), or run the bypass along other sites (`along:`)",
    )
