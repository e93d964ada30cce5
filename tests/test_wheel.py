"""The built wheel works on its own, from another folder, and puts nothing beside the package."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]

APPLY = """
import sys
from pathlib import Path
import fxtune, timm, torch
from fxtune import resources

installed, checkout = map(Path, sys.argv[1:])
assert Path(fxtune.__file__).is_relative_to(installed), fxtune.__file__
assert resources.rules_dir().is_relative_to(installed) and resources.models_dir().is_relative_to(installed)
assert not any(Path(entry or ".").resolve() == checkout for entry in sys.path), sys.path

model = timm.models.VisionTransformer(img_size=32, patch_size=16, embed_dim=32, depth=2, num_heads=4, num_classes=5)
model.eval()
tuned = fxtune.apply(model, rules="tri_res").eval()
images = torch.randn(3, 3, 32, 32)
assert torch.equal(tuned(images), model(images))
print(sum(p.numel() for p in tuned.parameters() if p.requires_grad))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the checkout by the backend that is installed here."""
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-build-isolation", "--wheel-dir", str(folder), str(CHECKOUT))
    (built,) = folder.glob("fxtune-*.whl")
    return built


def pip(command: str, *args: str) -> None:
    """pip, without dependencies and without looking anywhere."""
    run = [sys.executable, "-m", "pip", command, "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    result = subprocess.run([*run, *args], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_the_wheel_holds_one_top_level_name(wheel: Path) -> None:
    files = zipfile.ZipFile(wheel).namelist()
    assert {file.split("/")[0].partition("-")[0] for file in files} == {"fxtune"}
    for name in ("rules", "models"):
        shipped = {file.removeprefix(f"fxtune/_shipped/{name}/") for file in files if f"/_shipped/{name}/" in file}
        here = {path.relative_to(CHECKOUT / name).as_posix() for path in (CHECKOUT / name).rglob("*.yaml")}
        assert shipped == here
    sources = {file for file in files if file.endswith((".py", "py.typed"))}
    assert sources == {
        path.relative_to(CHECKOUT).as_posix()
        for path in (CHECKOUT / "fxtune").rglob("*")
        if path.suffix == ".py" or path.name == "py.typed"
    }


def test_the_installed_wheel_applies_tri_res(wheel: Path, tmp_path: Path) -> None:
    installed, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip("install", "--target", str(installed), str(wheel))
    # -S leaves .pth files unread, and so the checkout that this environment may have installed as editable.
    libraries = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    path = os.pathsep.join([str(installed), *libraries])
    result = subprocess.run(
        [sys.executable, "-S", "-c", APPLY, str(installed), str(CHECKOUT)],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    # Width 32, 2 blocks: three adapters a block (2 * 32 * 10 + 10 + 32), a channel scale for two of them; the head.
    assert int(result.stdout) == 2 * (3 * (2 * 32 * 10 + 10 + 32) + 2 * 32) + 5 * 32 + 5
