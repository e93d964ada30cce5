"""Data moves forward only: a room imports rooms to its left, and only through their entries."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import fxtune

PACKAGE = Path(fxtune.__file__).parent

ROOMS = [
    "errors",
    "libraries",
    "source",
    "resources",
    "files",
    "wrapped",
    "dtypes",
    "modes",
    "digests",
    "progress",
    "cards",
    "tracing",
    "collecting",
    "vocabulary",
    "view",
    "structure",
    "patterns",
    "matching",
    "rules",
    "unbinding",
    "tuners",
    "planning",
    "rewriting",
    "hoisting",
    "splitting",
    "caching",
    "saving",
    "interchange",
    "tuned",
    "inspection",
    "names",
    "api",
    "tasks",
    "accounting",
    "verifying",
    "searching",
    "data",
    "recipes",
    "training",
    "sampling",
    "sweeping",
    "testing",
    "cli",
    "__main__",
]
# Model libraries are optional; only a name that the user wrote makes fxtune import one.
# `hypothesis` is what fxtune.testing is made of, and nothing else may need it.
OPTIONAL = {"accelerate", "diffusers", "hypothesis", "peft", "pytest", "timm", "torchvision", "transformers"}
# What runs before torch is wanted: `import fxtune`, `fxtune --help`, `fxtune methods`, `fxtune schema`.
LIGHT = {"errors", "source", "resources", "rules", "cli", "__main__"}

FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Full dotted names that a file imports, wherever in it, and the lines; `from a import b` gives `a.b`."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def public(room: str, name: str) -> bool:
    """Whether the room's entry offers `name`: its `__all__` has it, or for a room of one file it has no underscore."""
    entry = PACKAGE / room / "__init__.py"
    if not entry.is_file():
        return not name.startswith("_")
    for node in ast.parse(entry.read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return name in ast.literal_eval(node.value)
    raise AssertionError(f"{entry} has no __all__")


def wrong_imports(path: Path) -> Iterator[str]:
    here = room_of(path)
    for name, line in imported(path):
        where = f"{path.name}:{line} imports {name}"
        top, _, rest = name.partition(".")
        if top in OPTIONAL and (here, top) != ("testing", "hypothesis"):
            yield f"{where}: an optional library"
        if top != "fxtune" or (not rest and here == "cli"):
            continue
        room, *inside = rest.split(".")
        if room not in ROOMS:
            yield f"{where}: not a room"
        elif ROOMS.index(room) > ROOMS.index(here):
            yield f"{where}: against the way of the data"
        elif room != here and inside and (len(inside) > 1 or not public(room, inside[0])):
            yield f"{where}: past the entry of the room"


def test_every_file_lies_in_a_room() -> None:
    assert {room_of(path) for path in FILES} <= set(ROOMS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_go_forward_through_entries(path: Path) -> None:
    assert list(wrong_imports(path)) == []


@pytest.mark.parametrize("path", [path for path in FILES if room_of(path) in LIGHT], ids=lambda path: path.name)
def test_light_rooms_do_not_import_torch(path: Path) -> None:
    top_level = ast.parse(path.read_text("utf-8")).body
    for node in top_level:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not any(name.split(".")[0] == "torch" for name in names), f"{path}:{node.lineno}"


@pytest.mark.parametrize(
    ("room", "line", "complaint"),
    [
        ("view", "from fxtune.matching import Site", "against the way"),
        ("view", "def f():\n    from fxtune import api", "against the way"),
        ("rules", "from fxtune.cards.inputs import example_inputs", "past the entry"),
        ("rules", "import fxtune.cards.inputs", "past the entry"),
        ("rules", "from fxtune.cards import inputs", "past the entry"),
        ("rules", "import timm", "optional"),
        ("testing", "import timm", "optional"),
        ("cli", "import hypothesis", "optional"),
        ("rules", "from fxtune import apply", "not a room"),
    ],
)
def test_wrong_imports_are_seen(
    room: str, line: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards" / "__init__.py").write_text("__all__ = ['find']", "utf-8")
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path)
    path = tmp_path / f"{room}.py"
    path.write_text(line, "utf-8")
    assert any(complaint in wrong for wrong in wrong_imports(path))
    path.write_text("from fxtune.cards import find\nfrom fxtune import source\nimport torch", "utf-8")
    assert list(wrong_imports(path)) == []
