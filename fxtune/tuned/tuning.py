"""What a tuned model consists of: the original, its twin, and the captured graphs, one per method and input
signature.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from fxtune.errors import InputError, UnsupportedModelError
from fxtune.planning import Folding, Place
from fxtune.saving import Made
from fxtune.tracing import Region
from fxtune.tuned.checkpointing import checkpoint_blocks, keep_activations, recompute
from fxtune.tuned.hooks import share_hooks
from fxtune.tuned.modes import batch_norms, follow, freeze, moving_buffers, still_modules
from fxtune.tuned.observing import observed_capture
from fxtune.tuned.ownership import make_private
from fxtune.tuned.quantised import check_unread
from fxtune.tuned.report import Report
from fxtune.tuned.sequences import index_like
from fxtune.tuned.sharing import check_tuned_alike, take_over

_UNSEEN = "The tuned model has no graph for these inputs, and none can be captured while torch compiles or exports it"
_PREPARE = "call tuned.prepare(*inputs) with such inputs first"


@dataclass(eq=False)
class Tuning:
    """The state behind a TunedModel, in one object so that its names don't hide the original's attributes.

    Attributes not told of in TunedModel:
        graphs: by method, one for each signature of inputs.
        checkpointing: options with which Blocks are checkpointed, if they are.
        unmerged: of a merged model, what it was before.
        plain: without any tuner, once that was asked for.
        name: under which it is among the sets.
        sets: every set of tuners on this original, by name, this one too. All of them hold the same dict.
    """

    original: nn.Module
    twin: nn.Module
    graphs: dict[str, list[Region]]
    rewrite: Callable[[Region], Region]
    head: str | None
    blocks: tuple[str, ...]
    report: Report
    batchnorm: Literal["frozen", "track"]
    made: Made | None = field(default=None)
    tuners: Mapping[str, Place] = field(default_factory=dict)
    folding: Folding = field(default_factory=Folding)
    unmerged: Tuning | None = field(default=None)
    plain: Tuning | None = field(default=None)
    name: str = "default"
    sets: dict[str, Tuning] = field(default_factory=dict)
    checkpointing: dict[str, Any] | None = field(default=None)

    @property
    def first(self) -> Region:
        """The graph that `apply` captured: the module tree of the tuned model is its tree."""
        return self.graphs["forward"][0]

    @property
    def off(self) -> bool:
        """Whether this is a set without its tuners, for as long as they are disabled."""
        return self.sets.get(self.name, self) is not self

    def every_graph(self) -> Iterator[Region]:
        for graphs in self.graphs.values():
            yield from graphs

    def states(self) -> Iterator[Tuning]:
        """This set of tuners in all its variants."""
        yield self
        for variant in (self.unmerged, self.plain):
            if variant is not None:
                yield from variant.states()

    def every_state(self) -> Iterator[Tuning]:
        """All sets of tuners in all their variants."""
        for state in {id(state): state for state in (self, *self.sets.values())}.values():
            yield from state.states()

    def trees(self) -> list[nn.Module]:
        """Every module tree that holds the tensors of this set of tuners."""
        return [tree for state in self.states() for tree in (*state.every_graph(), state.twin)]

    def every_tree(self) -> list[nn.Module]:
        """Those of all sets."""
        return [tree for state in self.every_state() for tree in (*state.every_graph(), state.twin)]

    def path_in_twin(self, module: Any) -> str | None:
        return next((path for path, candidate in self.twin.named_modules() if candidate is module), None)

    def find(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Region | None:
        """The graph that takes these inputs, if it was captured."""
        for graph in self.graphs.get(method, ()):
            signature: Any = graph.signature
            if signature.accepts(args, kwargs) is None:
                return graph
        return None

    def graph_for(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Region:
        found = self.find(method, args, kwargs)
        graph = self.add(method, args, kwargs) if found is None else found
        if graph is not self.first and not torch.compiler.is_compiling():
            # The first graph's tree is what people see: a mode that they set on a module there holds in every graph.
            follow(graph, self.first)
        return graph

    @torch.compiler.disable(reason=f"{_UNSEEN}: {_PREPARE}")  # type: ignore[untyped-decorator,no-untyped-call]
    def add(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Region:
        """Capture the twin once more, rewrite it by the same plan, and let it share modules with the first graph.

        Nothing is kept if any of that fails. The random generator is left as it was.
        """
        if torch.compiler.is_exporting():
            raise InputError(f"{_UNSEEN}.", fix=_PREPARE)
        if torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
            raise UnsupportedModelError(
                "A tuned model cannot be traced for TorchScript.",
                found="torch.jit.trace, or torch.onnx.export with dynamo=False; its graph fits no traced sizes",
                fix="use torch.export.export, or torch.onnx.export with dynamo=True",
            )
        with torch.random.fork_rng(devices=[]):
            captured, _ = observed_capture(self.twin, (args, kwargs), method=method)
            graph = self.rewrite(captured)
        check_tuned_alike(graph, self.first, method)
        take_over(graph, self.first)
        self.settle(graph)
        self.graphs.setdefault(method, []).append(graph)
        return graph

    def settle(self, graph: Region) -> None:
        """Make a graph follow the modes of the tuned model and keep the original's buffers unwritten.

        Raises:
            PlanError: it computes with quantised weights itself.
        """
        check_unread(graph)
        frozen = self.batchnorm == "frozen"
        written = {id(buffer) for buffer in moving_buffers(graph, statistics=not frozen)}
        if written:
            make_private(self.original, self.trees(), lambda _, tensor: id(tensor) in written)
        for module in [*(batch_norms(graph) if frozen else ()), *still_modules(graph)]:
            freeze(module)
        # A further graph shares Regions with the first, whose modes may have been set one by one.
        follow(graph, self.twin if graph is self.first else self.first)
        self.dress(graph)

    def dress(self, graph: Region) -> None:
        """Put on the Regions what copies and pickles of them don't carry."""
        index_like(graph, self.twin)
        share_hooks(graph, self.twin)
        recompute(graph)
        if self.checkpointing is not None:
            checkpoint_blocks([graph], self.blocks, self.checkpointing)

    def checkpoint(self, options: dict[str, Any] | None) -> None:
        """Checkpoint the Blocks of every graph with these options; None stops it."""
        if options is None:
            keep_activations(self.every_graph(), self.blocks)
        else:
            checkpoint_blocks(self.every_graph(), self.blocks, options)
        self.checkpointing = options

    def set_mode(self, training: bool) -> None:
        self.twin.train(training)
        for graph in self.every_graph():
            follow(graph, self.twin)


def state_of(tuned: nn.Module) -> Tuning | None:
    """The state of a tuned model, None while it is being put together."""
    state = tuned.__dict__.get("_fxtune")
    return state if isinstance(state, Tuning) else None
