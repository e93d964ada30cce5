"""The parts of `bench/` that others rely on: the tables of evidence."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models import VisionTransformer
from torch import nn

import fxtune

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module", autouse=True)
def importable() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        for folder in ("demo", "bench"):
            patch.syspath_prepend(str(ROOT / folder))
        yield


def vit(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return VisionTransformer(img_size=8, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=10)


@pytest.fixture
def subjects(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A small model on a few digits in the place of those that take hours."""
    from evidence import comparing, forms, subjects
    from evidence.learning import Plan
    from evidence.samples import Pictures

    data = fxtune.load_data({"source": "digits", "limit": {"train": 40, "val": 20, "test": 20}})
    splits = {name: Pictures(data.split(name), 8) for name in subjects.SPLITS}
    made = {
        "small": lambda _: subjects.Subject(
            "A ViT, on digits", vit, "head", splits, Plan(2, 10), ["qkv"], subjects.MOST
        )
    }
    monkeypatch.setattr(comparing, "SUBJECTS", made)
    monkeypatch.setattr(forms, "SUBJECTS", made)
    monkeypatch.setattr(forms, "EPOCHS", {"small": 2})
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    return made


def test_batches_hold_each_sample_once(subjects: Any, tmp_path: Path) -> None:
    from fxtune.data import Sample, Split
    from minilm import Sentences

    def tokenizer(texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[len(word) for word in text.split()] for text in texts]}

    tokenizer.pad_token_id = 0
    texts = ["a " * (1 + i % 7) for i in range(23)]
    samples = Sentences(Split(tuple(Sample(str(i), i % 3, (text,)) for i, text in enumerate(texts))), tokenizer)
    for shuffle in (None, random.Random(0)):
        batches = list(samples.batches(5, shuffle))
        assert sorted(len(labels) for _, labels in batches) == [3, 5, 5, 5, 5]
        assert sum(int(inputs["attention_mask"].sum()) for inputs, _ in batches) == sum(len(t.split()) for t in texts)
        assert all(bool((inputs["input_ids"] == inputs["attention_mask"]).all()) for inputs, _ in batches)
    pictures = subjects["small"](tmp_path).splits["train"]
    seen = torch.cat([inputs["x"] for inputs, _ in pictures.batches(7, random.Random(0))])
    assert sorted(map(float, seen.sum((1, 2, 3)))) == sorted(map(float, pictures.images.sum((1, 2, 3))))


def test_tables_tell_what_the_trainings_came_to(subjects: Any, tmp_path: Path) -> None:
    from evidence import page
    from evidence.comparing import choosing, chosen
    from evidence.forms import Pair

    rows = {}
    for method in ("linear", "PEFT LoRA", "tri_res"):
        tried = choosing("small", method, (1e-9, 1e-2))
        for one in tried:
            one.run(tmp_path)
        val = [one.result(tmp_path)["val"] for one in tried]
        rows["small", method] = chosen(tried, tmp_path)
        assert rows["small", method][0].lr == tried[val.index(max(val))].lr
        for one in rows["small", method]:
            one.run(tmp_path)
            losses = one.result(tmp_path)["losses"]
            assert len(losses) == 8 and one.result(tmp_path)["backbone"] == sum(p.numel() for p in vit(0).parameters())
    pair = Pair("small", "prefix", "float64")
    pair.run(tmp_path)
    forms = pair.result(tmp_path)
    assert forms["original"]["losses"] == pytest.approx(forms["unbound"]["losses"], rel=1e-9)
    assert forms["original"]["losses"][-1] != forms["original"]["losses"][0]

    place = tmp_path / "page"
    place.mkdir()
    page.write(place, rows, [pair], tmp_path)
    told = (place / "README.md").read_text()
    for (_, method), trainings in rows.items():
        tests = [100 * one.result(tmp_path)["test"] for one in trainings]
        assert f"| {method} | {sum(tests) / 3:.2f} ± " in told and ", ".join(f"{test:.2f}" for test in tests) in told
    assert "| small | prefix | float64 |" in told and "| 0.00 |" in told
    written = json.loads((place / "results.json").read_text())
    assert len(written["tables"]) == 9 and len(written["forms"]) == 1
    assert written["forms"][0]["apart"] < 1e-9

    others = [{**one, "subject": "other", "about": "Another, too"} for one in written["tables"]]
    (place / "results.json").write_text(json.dumps({"tables": others, "forms": []}))
    page.write(place, {("small", "linear"): rows["small", "linear"]}, [], tmp_path)
    told = (place / "README.md").read_text()
    assert told.count("| tri_res |") == 1 and told.count("| linear |") == 2 and "## other" in told


def test_the_page_of_what_was_measured_keeps_the_other_parts(tmp_path: Path) -> None:
    import page

    def row(ratio: float) -> dict[str, Any]:
        return {"what": "one over another", "first_s": 1.0, "second_s": ratio, "ratio": ratio, "ratio_at_most": 1.02}

    method = {"what": "method: lora", "accuracy": 0.875, "trained": 1234, "saved_mib": 1.0, "peak_mib": 2.0}
    page.write(tmp_path, "training", "Steps.", {"threads": 2}, [row(1.0149)])
    page.write(tmp_path, "catalogue", "Methods.", {"threads": 1}, [{**method, "step_s": 3.0, "step_of_full": 0.625}])
    page.write(tmp_path, "training", "Steps.", {"threads": 2}, [row(1.0249)])
    told = (tmp_path / "README.md").read_text()
    assert "| one over another | ratio | 1.025 | 1.02 |" in told and "1.015" not in told
    assert "| lora | 87.5% | 1,234 | 1.0 | 2 | 0.62 |" in told
    at = [told.index(mark) for mark in ("## Catalogue", "(threads 1)", "## Training", "(threads 2)")]
    assert at == sorted(at)
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["training"]["rows"] == [row(1.0249)] and set(written) == {"training", "catalogue"}
