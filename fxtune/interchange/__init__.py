"""LoRA in the files of other libraries: PEFT's folders, and diffusers' files for one model of a pipeline.

A file becomes an `Adapter`, plain tensors by module path; `rules_of` makes rules of it, so that what is loaded is a
tuned model like any other. The same way back writes one. None of these libraries is needed for either.
"""

from fxtune.interchange.adapter import Adapter, LowRank, Placed, as_stored
from fxtune.interchange.fitting import Fitted, check_others, fitted, is_module, reads_of, rules_of
from fxtune.interchange.formats import Format, check_format, recognised
from fxtune.interchange.kept import Kept, kept_beside
from fxtune.interchange.reading import read_diffusers, read_peft
from fxtune.interchange.writing import write_diffusers, write_peft

__all__ = [
    "Adapter",
    "Fitted",
    "Format",
    "Kept",
    "LowRank",
    "Placed",
    "as_stored",
    "check_format",
    "check_others",
    "fitted",
    "is_module",
    "kept_beside",
    "read_diffusers",
    "read_peft",
    "reads_of",
    "recognised",
    "rules_of",
    "write_diffusers",
    "write_peft",
]
