"""The attention core of a site: what the tuner that takes its place is to compute."""

from __future__ import annotations

import torch
from torch import fx

from fxtune.errors import PlanError
from fxtune.matching import Attention, Site
from fxtune.planning.edits import Bias, Core
from fxtune.planning.place import Places
from fxtune.view import Tap, Use, View, example_size
from fxtune.view import Value as Computed
from fxtune.vocabulary import RESHAPING

_KNOWN = (
    "additive, boolean, padding and causal masks, cross-attention, grouped-query heads, relative bias, rotary "
    "embedding, qk-norm, separate and fused projections"
)


def core_edit(view: View, places: Places, site: Site, method: str) -> tuple[str, Core]:
    """The region of a site's attention core, and the edit that puts a tuner in its place.

    Raises:
        PlanError: the core does something that no prefix or prompt is defined for; what, and where.
    """
    return _Reader(view, places, site).read(method)


class _Reader:
    def __init__(self, view: View, places: Places, site: Site) -> None:
        assert site.attention is not None
        self.view, self.places, self.site = view, places, site
        self.attention: Attention = site.attention

    def read(self, method: str) -> tuple[str, Core]:
        core = self.view.values[self.attention.core]
        if not core.taps:
            raise self._refused("is computed inside a module that is kept whole", core)
        tap = core.taps[0]
        for name in ("q", "k", "v"):
            operand = self.view.values[getattr(self.attention, name)]
            if len(operand.shape) != 4:
                raise self._refused(f"has {len(operand.shape)} axes instead of batch, heads, tokens, head_dim", operand)
        if self.attention.product is None:
            return tap.region, self._fused(core, tap, method)
        return tap.region, self._written_out(tap, method)

    def _fused(self, core: Computed, tap: Tap, method: str) -> Core:
        schema = core.target._schema
        given = dict(zip([a.name for a in schema.arguments], core.args, strict=False)) | core.kwargs
        node = self.places.node(tap)
        dropout = float(given.get("dropout_p", 0.0))
        if dropout and node.op == "call_function":
            raise self._refused("drops weights in evaluation mode too", core)
        if node.op == "call_module" and not reads_inputs_alone(node.meta["body"], core.target):
            raise self._refused("is computed together with other steps that differ by mode", core)
        scale = given.get("scale")
        if scale is not None and not isinstance(scale, int | float):
            raise self._refused("scales its logits by a value that is computed", core)
        return Core(tap.node, None, (), None if scale is None else float(scale), dropout, method)

    def _written_out(self, tap: Tap, method: str) -> Core:
        product, weights = self.attention.product, self.attention.weights
        assert product is not None and weights is not None
        self._check_unread(weights)
        scale, biases = self._steps(weights, product, tap.region)
        found = self._tap(self.view.values[product], tap.region)
        return Core(tap.node, found, biases, scale, self._dropout(weights), method)

    def _steps(self, weights: int, product: int, region: str) -> tuple[float, tuple[Bias, ...]]:
        """What happens to the logits between the product and the softmax: factors and sums, read backwards."""
        scale, biases = 1.0, []
        at = self._in_order(self.view.uses(weights)[0])
        while at != product:
            step = self.view.values[at]
            uses = self.view.uses(at)
            if self.view.op(at) == "scale" and (factor := self.view.attrs(at)["factor"]) is not None:
                scale *= factor
                at = self._in_order(uses[0])
            elif self.view.op(at) == "add" and len(uses) == 2 and "alpha" not in self.view.attrs(at):
                through, bias = uses if self._leads(uses[0].source, product) else (uses[1], uses[0])
                groups = self._groups(step, self.view.values[product])
                biases.append(Bias(self._tap(self.view.values[bias.value], region), scale, groups))
                at = self._in_order(through)
            else:
                raise self._refused(f"changes its logits by `{step.op}`", step)
        return scale, tuple(biases)

    def _in_order(self, use: Use) -> int:
        """The source of an operand whose numbers are in the order in which they were computed."""
        for value in (self.view.values[id] for id in use.run):
            if self.view.quiet.get(value.id) == "layout" and value.op not in RESHAPING | {"contiguous"}:
                raise self._refused(f"rearranges its logits by `{value.op}`", value)
        return use.source

    def _groups(self, total: Computed, product: Computed) -> int | None:
        """Into how many samples each group is parted where a bias is added to the logits."""
        axes = len(total.shape)
        groups = total.shape[1] if axes == 5 else None
        alike = [example_size(size) for size in total.shape[-3:]] == [example_size(size) for size in product.shape[-3:]]
        if axes not in (4, 5) or not alike or not isinstance(groups, int | None):
            raise self._refused("adds a bias to logits that are not batch x heads x queries x keys", total)
        return groups

    def _leads(self, node: int, product: int) -> bool:
        """Whether the logits run through this operand of a sum: every step has them as one of its operands."""
        seen, pending = set(), [node]
        while pending:
            at = pending.pop()
            if at == product:
                return True
            if at > product and at not in seen:
                seen.add(at)
                pending += [use.source for use in self.view.uses(at)]
        return False

    def _dropout(self, weights: int) -> float:
        """Of the run between the softmax and the product with the values."""
        rate = 0.0
        for id in self._between(weights):
            value = self.view.values[id]
            if value.op != "dropout":
                if self.view.quiet.get(id) not in ("layout", "cast"):
                    raise self._refused(f"drops weights by `{value.op}`", value)
                continue
            p = float(value.args[1])
            if p and value.taps and self.places.node(value.taps[0]).op == "call_function":
                raise self._refused("drops weights in evaluation mode too", value)
            rate = 1 - (1 - rate) * (1 - p)
        return rate

    def _between(self, weights: int) -> tuple[int, ...]:
        use = next(use for use in self.view.uses(self.attention.core) if use.source == weights)
        return use.run

    def _check_unread(self, weights: int) -> None:
        """With the core gone there are no weights for anybody else to read."""
        for id in (weights, *self._between(weights)):
            readers = [reader for reader in self.view.readers.get(id, []) if self._computes(reader)]
            if len(readers) > 1 or id in self.view.returned:
                raise self._refused("gives its weights to somebody else", self.view.values[readers[-1]])

    def _computes(self, id: int) -> bool:
        """Whether a value is numbers, not a size or a dtype."""
        return isinstance(self.view.values[id].val, torch.Tensor)

    def _tap(self, value: Computed, region: str) -> str:
        for tap in value.taps:
            if tap.region == region:
                return tap.node
        raise self._refused(f"reads what is not at hand in `{region or '<root>'}`", value)

    def _refused(self, what: str, value: Computed) -> PlanError:
        return PlanError(
            f"no tuner can take part in the softmax of the {self.site.kind} at `{self.site.path}`",
            found=f"its attention {what}: {value.place()}",
            fix=f"choose other sites (`where:`), or a tuner that goes beside the unit; known here are {_KNOWN}",
        )


def reads_inputs_alone(body: fx.Graph, target: object) -> bool:
    """Whether a module does nothing but hand its inputs to one operator."""
    return all(node.op in ("placeholder", "output") or node.target is target for node in body.nodes)
