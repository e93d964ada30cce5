"""Which tuners can go into the weights of the operation that they change, and what stops the others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from torch import fx, nn

from fxtune.planning.edits import After, Beside, InWeights
from fxtune.planning.folds import Fold, Folding
from fxtune.planning.patch import Insertion
from fxtune.tuners import maps_widths, offers
from fxtune.view import Tap, View


def plan_folding(root: fx.GraphModule, view: View, insertions: Sequence[Insertion]) -> Folding:
    """What of the insertions can go into the weights of `root`."""
    reads = _Reads(root, view)
    at: dict[tuple[str, str], list[Insertion]] = defaultdict(list)
    for insertion in insertions:
        if isinstance(insertion.edit, Beside | After):
            at[insertion.region, insertion.edit.output.node].append(insertion)
    folds, refused = [], {}
    for insertion in insertions:
        reason = _refusal(insertion, reads)
        if reason is not None:
            refused[insertion.path] = reason
            continue
        edit, operation = insertion.edit, insertion.site.operation
        assert operation is not None and operation.weights is not None
        others = at[insertion.region, edit.output.node] if isinstance(edit, Beside | After) else []
        along = tuple(other.path for other in others if other is not insertion and _reads_output(other))
        bias = operation.weights.bias or _beside(operation.weights.weight or "", "bias")
        folds.append(Fold(insertion.path, operation.weights, bias, isinstance(edit, After), along))
    return Folding(tuple(folds)).without(refused)


def _refusal(insertion: Insertion, reads: _Reads) -> str | None:
    """Why a tuner can't go into weights; None if it can."""
    site, operation = insertion.site, insertion.site.operation
    if not isinstance(insertion.edit, Beside | After | InWeights) or not offers(insertion.tuner, "in_weights"):
        return f"{insertion.tuner} is no change of weights"
    if operation is None or operation.weights is None:
        return f"the {site.kind} at `{site.path}` is no single operation with weights of its own"
    if maps_widths(insertion.tuner) and _reads_output(insertion):
        return f"{insertion.tuner} reads the output of the {site.kind} at `{site.path}`"
    for name in (operation.weights.weight, operation.weights.bias):
        other = None if name is None else reads.elsewhere(name, operation.value)
        if other is not None:
            return f"`{name}` is read at {other}, too"
    return None


def _reads_output(insertion: Insertion) -> bool:
    edit = insertion.edit
    return isinstance(edit, After) or (isinstance(edit, Beside) and edit.source.node == edit.output.node)


def _beside(name: str, last: str) -> str:
    return ".".join([*name.split(".")[:-1], last])


class _Reads:
    """Which operations read a tensor of the model's state."""

    def __init__(self, root: fx.GraphModule, view: View) -> None:
        self.view = view
        self._modules = dict(root.named_modules(remove_duplicate=False))
        self._values: dict[tuple[int, str], list[int]] = defaultdict(list)
        for value in view.values:
            if value.op in ("param", "buffer"):
                self._values[self._held(str(value.target))].append(value.id)

    def elsewhere(self, name: str, operation: int) -> str | None:
        """Where another operation reads what is held under this name; None where none does.

        A tensor that is tied is held under two names, and can be parted. Calls of one module are one operation.
        """
        own = self._place(operation)
        for value in self._values[self._held(name)]:
            for reader in self._operations(value):
                if self._place(reader) != own:
                    return self.view.values[reader].place()
        return None

    def _held(self, name: str) -> tuple[int, str]:
        """The dict that holds a tensor: a module may stand under two names."""
        path, _, last = name.rpartition(".")
        return id(self._holder(path, last)), last

    def _holder(self, path: str, last: str) -> object:
        module: nn.Module = self._modules[path]
        return module._parameters if last in module._parameters else module._buffers

    def _operations(self, value: int) -> Iterator[int]:
        """What is computed from a value, casts and turns passed through; its sizes are no matter."""
        pending = list(self.view.readers.get(value, ()))
        while pending:
            reader = pending.pop()
            if reader in self.view.quiet:
                pending += self.view.readers.get(reader, ())
            elif reader in self.view.graph:
                yield reader

    def _place(self, value: int) -> Tap | int:
        """Where an operation stands: all calls of one module stand at one place."""
        taps = self.view.values[value].taps
        return taps[0] if taps else value
