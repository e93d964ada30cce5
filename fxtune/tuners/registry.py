"""The names by which rule files call tuner classes, and what a class must look like to bear one.

A tuner is an ``nn.Module`` whose ``forward(x)`` maps tokens (B, N, D) to what is added to the output, (B, N, D):

    @fxtune.tuner("shift")
    class Shift(torch.nn.Module):
        refuses = {"mha": "its projection has a bias already"}  # optional: kind of site -> why not

        def __init__(self, place: fxtune.Placement, *, start: float = 0.0) -> None:
            super().__init__()
            self.shift = torch.nn.Parameter(torch.full((place.width,), start))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.shift.to(x.dtype).expand_as(x)

Its settings are its keyword-only parameters. Each needs a type that YAML can say (int, float, bool, str, Literal, list
or dict of these; ``Annotated`` constraints of pydantic hold) and a default. With ``maps_widths = True`` it reads tokens
of `place.width_in` channels and returns tokens of `place.width`. With ``reads_output = True`` its rules must say
``reads: output``.

Each further way in which it can be attached to the graph is a method over the same weights:

=============================  =======================================================================================
``forward(x)``                 unbound: the result is added to the operation's output
``on_map(x)``                  unbound, beside a class's `forward` or without one, as told below: the result, a map, is
                               added to the operation's output
``in_sequence(y)``             original, where the rule says ``reads: output``: the result replaces the output
``in_weights(weight, bias)``   original, at a single operation: it computes with the two tensors that are returned
                               (a linear map's weight is D x D_in; a bias that the model computes comes as its value;
                               None stands for what the operation lacks)
``attend(q, k, v, mask, *,     unbound, at an attention: the result replaces softmax(q kᵀ · scale + mask) v, and comes
causal, scale, dropout)``      with λ, B x H x N, for `gates`; q is B x H x N x d, k and v B x Hkv x S x d
``attend_original(...)``       original, at an attention: the result alone
=============================  =======================================================================================

A class that has `on_map` and no `forward` computes on maps, B x D x H x W to B x D x H x W. Where a site has tokens it
is given the map whose positions they are, and the tokens before that (a class token, say) as maps of one position; how
the two stand in the sequence is read from the dataflow and told as `place.grid` and `place.prefix`. A site without a
grid is refused.

A class that has both and `maps_widths = True` goes beside a convolution with `on_map`, and elsewhere with `forward`.
`place.convolution` tells kernel, stride, padding, dilation and groups: it maps what the convolution reads,
B x D_in x H x W (or other positions), to what is added to its output, B x D x H' x W'.

On a bypass a class with ``reads_mask = True`` attends to tokens as the unit beside it does: it is called with `x` and,
where that unit's attention has one, its mask, boolean or added to the logits, B x 1 x N x N or of one query for all;
`place.causal` tells of a causal one beside it. Further methods are for a bypass alone:

=============================  =======================================================================================
``on_map(x)``                  in `mixed` of a level whose stem is a map: x and the result are maps
``between(x)``                 in `vertical`: all that leads from one value of the bypass to the next; x comes as it is,
                               tokens or a map (`place.axes`), and the result is tokens, B x N x D, or one for all of
                               them (`place.pools`), B x 1 x D
=============================  =======================================================================================

With static methods `parted` and `joined` (see `fxtune.tuners.parting`) it moves between fused and split projections.

A tuner whose `prompts` (P x D) join the sequence as rows derives from `RowsInSoftmax`.

A tuner with a size, of which a search may use the first k units alone, says where that size lies in its weights:

    narrows = {"dim": {"down.weight": 0, "down.bias": 0, "up.weight": 1, "up.bias": None}}

For each such setting: name of a weight -> the axis along which its first k entries are taken, or None for a weight that
has no such axis and is zero at k = 0. What is not named stays whole. With the sliced weights the tuner must compute
what one that was built at size k computes, and nothing at k = 0: so it reads its sizes from its weights.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, PydanticUserError, ValidationError, create_model
from torch import nn

from fxtune.errors import RuleError
from fxtune.rules import Where
from fxtune.source import nearest

Class = TypeVar("Class", bound=type)
Refuse = Callable[[str, str], RuleError]
"""Makes the error that says what was found and how to mend it."""


@dataclass(frozen=True)
class Entry:
    """A registered tuner."""

    name: str
    cls: type[nn.Module]
    model: type[BaseModel]
    """Validates settings, strictly; has one aliased field for each."""
    settings: Mapping[str, tuple[Any, Any]]
    """name -> (annotation, default)"""
    refuses: Mapping[str, str]
    """kind of site -> why the tuner does not go there"""
    maps_widths: bool
    """whether it reads tokens of D_in channels and returns tokens of D"""
    narrows: Mapping[str, Mapping[str, int | None]]
    """setting -> name of a weight -> axis of its units, or None: zero where there is none"""


_entries: dict[str, Entry] = {}


def tuner(name: str) -> Callable[[Class], Class]:
    """Class decorator: registers an ``nn.Module`` as the tuner `name` (see the top of this module).

    Running the same definition again, as in a notebook, replaces the class.

    Raises:
        RuleError: the name is taken or ill-formed, or the class does not have a tuner's form.
    """

    if not isinstance(name, str):
        raise RuleError(
            f"{name!r} is registered under no name", found="@fxtune.tuner", fix='write `@fxtune.tuner("its_name")`'
        )

    def register(cls: Class) -> Class:
        _entries[name] = _entry(name, cls)
        return cls

    return register


def find(name: str, *, where: str | None = None) -> Entry:
    """The tuner called `name`.

    Raises:
        RuleError: there is none; the closest names. `where` says where it was asked for.
    """
    if name in _entries:
        return _entries[name]
    near = nearest(name, _entries)
    raise RuleError(
        f"No tuner is called {name!r}",
        found=f"the closest names are {', '.join(near)}" if near else f"the tuners are {', '.join(names())}",
        where=where,
        fix=f'a class of your own is named with @fxtune.tuner("{name}"); import it before the rules are used',
    )


def names() -> list[str]:
    """All registered tuners."""
    return sorted(_entries)


def maps_widths(name: str) -> bool:
    """Whether the tuner `name` maps the tokens of an operation's input to those of its output, whatever their widths.

    Raises:
        RuleError: no tuner is called so; the closest names.
    """
    return find(name).maps_widths


def reads_output(name: str) -> bool:
    """Whether the tuner `name` makes sense only of an operation's output.

    Raises:
        RuleError: no tuner is called so; the closest names.
    """
    return bool(getattr(find(name).cls, "reads_output", False))


def reads_mask(name: str) -> bool:
    """Whether the tuner `name` attends to tokens as the unit beside it does: on a bypass, where it is given the mask.

    Raises:
        RuleError: no tuner is called so; the closest names.
    """
    return bool(getattr(find(name).cls, "reads_mask", False))


def joins_rows(name: str) -> bool:
    """Whether the tuner `name` puts its `prompts` into the sequence.

    Raises:
        RuleError: no tuner is called so; the closest names.
    """
    return bool(getattr(find(name).cls, "joins_rows", False))


def spans_sites(name: str) -> bool:
    """Whether one tuner `name` serves all sites of a rule, its rows running from the first to the last.

    Raises:
        RuleError: no tuner is called so; the closest names.
    """
    return bool(getattr(find(name).cls, "spans_sites", False))


def narrows(name: str) -> dict[str, dict[str, int | None]]:
    """The settings of the tuner `name` that are sizes, and where each lies in its weights (see the top of this module).

    Raises:
        RuleError: no tuner is called so; the closest names.
    """
    return {size: dict(axes) for size, axes in find(name).narrows.items()}


def offers(name: str, method: str) -> bool:
    """Whether the tuner `name` can be attached by this method (see the top of this module).

    Raises:
        RuleError: no tuner is called so; the closest names.
    """
    found = getattr(find(name).cls, method, None)
    return callable(found) and found is not nn.Module.forward


def shipped() -> list[str]:
    """The tuners that fxtune itself brings."""
    here = __name__.partition(".")[0]
    return [name for name in names() if _entries[name].cls.__module__.partition(".")[0] == here]


def _entry(name: str, cls: Any) -> Entry:
    """The entry of a class that has a tuner's form."""

    def refuse(found: str, fix: str) -> RuleError:
        return RuleError(f"{cls!r} cannot be the tuner {name!r}", found=found, fix=fix)

    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise refuse(f"the name {name!r}", "use lower-case letters, digits and underscores, a letter first")
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise refuse("it is not a torch.nn.Module class", "derive it from torch.nn.Module")
    taken = _entries.get(name)
    if taken and (taken.cls.__module__, taken.cls.__qualname__) != (cls.__module__, cls.__qualname__):
        raise refuse(f"the name is taken by {taken.cls!r}", "choose another name")
    if cls.forward is nn.Module.forward and not any(hasattr(cls, way) for way in ("attend", "on_map", "between")):
        raise refuse("it has no forward", "define forward(self, x), tokens (B, N, D) to tokens (B, N, D)")
    refuses = getattr(cls, "refuses", {})
    if not isinstance(refuses, Mapping) or not all(isinstance(text, str) for pair in refuses.items() for text in pair):
        raise refuse(f"refuses = {refuses!r}", 'write `refuses = {"mha": "the reason"}`: kind of site to reason')
    maps = getattr(cls, "maps_widths", False)
    if not isinstance(maps, bool):
        raise refuse(f"maps_widths = {maps!r}", "write `maps_widths = True`, and read `place.width_in` channels")
    settings = _settings(cls, refuse)
    narrows = _narrows(cls, settings, refuse)
    return Entry(name, cls, _model(name, settings, refuse), settings, dict(refuses), maps, narrows)


def _narrows(cls: Any, settings: Collection[str], refuse: Refuse) -> dict[str, Mapping[str, int | None]]:
    """What the class says of its sizes."""
    narrows = getattr(cls, "narrows", {})
    well_formed = isinstance(narrows, Mapping) and all(
        size in settings
        and isinstance(axes, Mapping)
        and all(isinstance(weight, str) for weight in axes)
        and all(axis is None or type(axis) is int for axis in axes.values())
        and any(axis is not None for axis in axes.values())
        for size, axes in narrows.items()
    )
    if not well_formed:
        raise refuse(f"narrows = {narrows!r}", 'write `narrows = {"dim": {"down.weight": 0}}`: setting, weight, axis')
    return dict(narrows)


def _settings(cls: type[nn.Module], refuse: Refuse) -> dict[str, tuple[Any, Any]]:
    """name -> (annotation, default) of the keyword-only parameters after `place`."""
    signature = inspect.signature(cls.__init__)
    place, *settings = [*signature.parameters.values()][1:] or [
        inspect.Parameter("none", inspect.Parameter.VAR_KEYWORD)
    ]
    if place.name != "place" or place.kind is not place.POSITIONAL_OR_KEYWORD:
        raise refuse(f"__init__{signature}", "make `place: fxtune.Placement` its first parameter")
    for setting in settings:
        if setting.kind is not setting.KEYWORD_ONLY:
            raise refuse(f"the parameter {setting}", "put `*` after `place`: settings are keyword-only, one by one")
        if setting.annotation is setting.empty or setting.default is setting.empty:
            raise refuse(f"the setting {setting}", f"write `{setting.name}: type = default`")
        if setting.name in Where.model_fields:
            raise refuse(f"the setting {setting.name!r}", "choose another name: as a keyword it already chooses sites")
    try:
        hints = get_type_hints(cls.__init__, include_extras=True)
    except (NameError, TypeError) as error:
        raise refuse(f"its annotations cannot be read: {error}", "annotate settings with types that exist") from None
    return {setting.name: (hints[setting.name], setting.default) for setting in settings}


def _model(name: str, settings: Mapping[str, tuple[Any, Any]], refuse: Refuse) -> type[BaseModel]:
    """The pydantic model of the settings; their defaults are checked against it."""
    # Aliased fields: a setting may be called `copy` or `model_name` without clashing with pydantic's own names.
    fields: dict[str, Any] = {
        f"setting_{i}": (annotation, Field(default=default, alias=setting))
        for i, (setting, (annotation, default)) in enumerate(settings.items())
    }
    try:
        model: type[BaseModel] = create_model(
            f"settings of {name}", __config__=ConfigDict(extra="forbid", strict=True), **fields
        )
        model.model_validate({setting: default for setting, (_, default) in settings.items()})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise refuse(f"the default {first['input']!r} of {first['loc'][0]!r}", first["msg"]) from None
    except PydanticUserError as error:
        found = str(error).partition(".")[0]
        raise refuse(
            f"a setting that YAML cannot say: {found}", "use int, float, bool, str, Literal, list or dict"
        ) from None
    return model
