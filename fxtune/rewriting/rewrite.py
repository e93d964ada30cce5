"""Carrying out a patch: the one place where a captured graph changes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable

import torch
from torch import fx, nn

from fxtune.planning import Insertion, Patch
from fxtune.rewriting.layout import from_tokens, to_tokens
from fxtune.tuners import build


def rewrite(root: fx.GraphModule, patch: Patch, *, dtype: torch.dtype = torch.float32) -> fx.GraphModule:
    """Puts the tuners of `patch` into a captured model and gives it back.

    The tuners are built first, all of them: if one cannot be built, the graphs are as they were.

    Args:
        root: the captured model that the patch was planned on; its regions change.
        patch: what changes.
        dtype: of the new weights.

    Raises:
        RuleError: a tuner refuses its settings or its place.
    """
    built = [_build(root, insertion, i, patch, dtype) for i, insertion in enumerate(patch.insertions)]
    by_region: dict[str, list[tuple[Insertion, nn.Module]]] = {}
    for insertion, tuner in zip(patch.insertions, built, strict=True):
        by_region.setdefault(insertion.region, []).append((insertion, tuner))
    for path, insertions in by_region.items():
        region = root.get_submodule(path)
        assert isinstance(region, fx.GraphModule)
        _Region(region).insert(insertions)
    return root


def _build(root: fx.GraphModule, insertion: Insertion, number: int, patch: Patch, dtype: torch.dtype) -> nn.Module:
    """One seed for a call of `apply`; each tuner draws from a generator of its own, so that no tuner's draw depends on
    another's."""
    seed = None if patch.seed is None else patch.seed + number
    device = next((p.device for p in root.parameters()), torch.device("cpu"))
    return build(insertion.tuner, insertion.settings, insertion.place, seed=seed, dtype=dtype, device=device)


class _Region:
    """One graph while it changes."""

    def __init__(self, module: fx.GraphModule) -> None:
        self.module, self.graph = module, module.graph
        self.original: dict[str, fx.Node] = {node.name: node for node in self.graph.nodes}
        self.current: dict[fx.Node, fx.Node] = {}
        self.copies: dict[fx.Node, fx.Node] = {}

    def insert(self, insertions: Iterable[tuple[Insertion, nn.Module]]) -> None:
        if "tuners" not in self.module._modules:
            self.module.add_module("tuners", nn.ModuleDict())
        for insertion, tuner in insertions:
            tuners = self.module.tuners
            assert isinstance(tuners, nn.ModuleDict)
            tuners[insertion.label] = tuner
            self._add(insertion)
        self.graph.lint()
        self.module.recompile()

    def _add(self, insertion: Insertion) -> None:
        output = self.original[insertion.output]
        read = self._read(insertion, output)
        before = self.current.get(output, output)
        readers = list(before.users)
        after = self._branch(insertion, read, output, before)
        for reader in readers:
            if reader is not read:
                reader.replace_input_with(before, after)
        self.current[output] = after

    def _read(self, insertion: Insertion, output: fx.Node) -> fx.Node:
        """What the tuner reads: the operation's own output, or a value as the graph has it now, tuned or not."""
        source = self.original[insertion.source.node]
        if source is output:
            return source
        source = self.current.get(source, source)
        if not insertion.source.copied:
            return source
        if source not in self.copies:
            # Right behind its producer: later it may be overwritten.
            copy = self._behind(source, torch.ops.aten.clone.default, (source,))
            copy.meta["val"] = source.meta.get("val")
            self.copies[source] = copy
        return self.copies[source]

    def _branch(self, insertion: Insertion, read: fx.Node, output: fx.Node, before: fx.Node) -> fx.Node:
        """Tokens, tuner, the output's shape again, sum; gives the sum."""
        source, at = insertion.source, before
        plain_in = source.rank == 3 and source.axis == 2
        plain_out = insertion.rank == 3 and insertion.axis == 2
        branch = read if plain_in else (at := self._behind(at, to_tokens, (read, source.axis)))
        branch = at = self._behind(at, f"tuners.{insertion.label}", (branch,))
        if not (plain_in and plain_out):
            branch = at = self._behind(at, from_tokens, (branch, output, insertion.axis))
        total = self._behind(at, operator.add, (before, branch))
        total.meta["val"] = before.meta.get("val")
        return total

    def _behind(self, node: fx.Node, target: Callable[..., object] | str, args: tuple[object, ...]) -> fx.Node:
        """A new node right behind `node`; a text names a module."""
        with self.graph.inserting_after(node):
            kind = "call_module" if isinstance(target, str) else "call_function"
            made: fx.Node = self.graph.create_node(kind, target, args)  # type: ignore[arg-type]
        return made
