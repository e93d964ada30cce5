"""What a model computes, in a form that does not depend on who wrote it down.

Two libraries agree on it level with the canonical view, once that is taken a step further: layout becomes what it does
(which number goes where), a fused projection one linear map for each part that is read, a linear map rows of channels
however it is called, and what does not depend on the input the numbers that it is. The sites of patterns would be the
other choice. They leave out how the units hang together and what lies between them, so two models that compute
different things could pass for each other; and tuners can go on single operations, which no site of a unit holds.
"""

from fxtune.structure.comparing import difference, other_eps
from fxtune.structure.isomorphism import isomorphism
from fxtune.structure.numbers import Take, strided
from fxtune.structure.structure import STATE, Node, Operand, Structure
from fxtune.structure.structured import Structured, structured

__all__ = [
    "STATE",
    "Node",
    "Operand",
    "Structure",
    "Structured",
    "Take",
    "difference",
    "isomorphism",
    "other_eps",
    "strided",
    "structured",
]
