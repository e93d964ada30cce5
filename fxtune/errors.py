"""One hierarchy of errors. Each says what was asked, what was found, where, and what to do."""

from __future__ import annotations


class FxtuneError(Exception):
    """Base of every error that fxtune raises on purpose.

    Args:
        asked: what was asked for and could not be done, one sentence.
        found: what was found instead.
        where: the place: ``file:line:column``, a graph node, or a line of the model's code.
        fix: what to do about it.
    """

    def __init__(
        self,
        asked: str,
        *,
        found: str | None = None,
        where: str | None = None,
        fix: str | None = None,
    ) -> None:
        self.asked, self.found, self.where, self.fix = asked, found, where, fix
        parts = [("found", found), ("where", where), ("do", fix)]
        super().__init__("\n".join([asked, *(f"  {label}: {text}" for label, text in parts if text)]))


class CaptureError(FxtuneError):
    """A model could not be captured as a graph."""


class InputError(FxtuneError):
    """A call's inputs do not fit the graph, or no example inputs are known."""


class UnsupportedModelError(FxtuneError):
    """A model is in a state that fxtune does not take yet (compiled, wrapped, quantised, ...)."""


class SourceError(FxtuneError):
    """A YAML file is broken or says something that its schema does not allow."""


class PatternError(SourceError):
    """A pattern's dataflow could not be read."""


class RuleError(FxtuneError):
    """A rule, a tuner or one of its settings is unknown or cannot stand where it was put."""


class MatchError(FxtuneError):
    """A rule matched less than it expects."""


class PlanError(FxtuneError):
    """Rules that cannot be carried out together, or on this model."""


class UntunedCallError(FxtuneError):
    """A call that would have run the model without its tuners."""


class CacheError(FxtuneError):
    """A feature cache cannot be made, or does not belong to what it is asked for."""


class CheckpointError(FxtuneError):
    """A saved tuned model cannot be written or read, or does not belong to the model that it is loaded on."""


class DataError(FxtuneError):
    """Data are not where they were said to be, or not as they should be."""


class TrainingError(FxtuneError):
    """A training that cannot go on: its loss is not finite."""
