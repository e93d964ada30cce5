"""The README is true: its Python runs, its rule files apply, its commands exist."""

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from typer.testing import CliRunner

import fxtune
from fxtune import rules
from fxtune.cli import app
from fxtune.tuners import registry

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.S | re.M)
    return [text for named, text in found if named == language]


def test_the_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_entries", {**registry._entries})  # its tuners are gone behind it
    torch.manual_seed(0)
    for block in blocks("yaml"):
        (name,) = re.findall(r"^name: (\w+)", block, flags=re.M)
        (tmp_path / f"{name}.yaml").write_text(block)
    names: dict[str, Any] = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    tests = [names[name] for name in names if name.startswith("test_")]
    assert tests
    for test in tests:
        test()
    assert any("ffn_shift" in name for name in names["tuned"].state_dict())


def test_a_tuner_of_ones_own_is_short() -> None:
    (section,) = re.findall(r"^## A tuner of your own$(.*?)^Its keyword-only", README, flags=re.S | re.M)
    code = [line for line in section.splitlines() if line.strip() and not line.startswith("```")]
    assert 10 < len(code) <= 40


MODELS = {
    "vit": lambda: timm.models.vision_transformer.VisionTransformer(
        img_size=16, patch_size=8, embed_dim=24, depth=6, num_heads=3
    ),
    "mixer": lambda: timm.models.mlp_mixer.MlpMixer(img_size=16, patch_size=8, num_blocks=2, embed_dim=24),
}


@pytest.mark.parametrize(("number", "model", "sites"), [(0, "vit", 5 + 6), (1, "mixer", 2), (3, "vit", 6)])
def test_the_rule_files_apply(number: int, model: str, sites: int, tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(blocks("yaml")[number])
    tuned = fxtune.apply(MODELS[model](), file)
    assert sum(len(outcome.sites) for outcome in tuned.report().outcomes) == sites


def test_the_commands_exist() -> None:
    commands = re.findall(r"^fxtune (\w+)  ?", "".join(blocks("")), flags=re.M)
    assert commands
    for command in commands:
        assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0


def test_every_rule_set_and_pattern_that_is_named_is_shipped() -> None:
    names = {rule_set.name for rule_set in rules.shipped()}
    assert {"tri_res", "dual_res"} <= names
    for path in re.findall(r"\]\((\w[\w/]*)\)", README):
        assert (Path(__file__).parent.parent / path).exists(), path
