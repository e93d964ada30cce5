"""Training: what a step computes, that a killed training ends the same, and what is said when it goes wrong."""

from __future__ import annotations

import contextlib
import errno
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast
from typer.testing import CliRunner

import fxtune
from fxtune import cli
from fxtune.data import Data, Split, load_data
from fxtune.errors import CheckpointError, DataError, FxtuneError, InputError, PlanError, SourceError, TrainingError
from fxtune.recipes import load_recipe
from fxtune.training import Run, state, tokenizer_of
from fxtune.training.order import Order, seed_of
from fxtune.training.steps import Stepper
from training_models import DIGITS, RECIPE, tuned_on, vit


@pytest.fixture(scope="module")
def digits() -> Data:
    return load_data(DIGITS)


def weights(run: Run) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in run.tuned.state_dict().items()}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in lines(folder) if "split" not in line]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def whole(digits: Data, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A training that nothing interrupts."""
    return tuned_on(digits, tmp_path_factory.mktemp("whole"))


# ---- what it computes ------------------------------------------------------------------------------------------------


PLAIN: dict[str, dict[str, Any]] = {
    "adamw": {"clip": 1.0, "optimizer__betas": (0.5, 0.9), "optimizer__eps": 1e-3, "optimizer__weight_decay": 2.0},
    "sgd": {"optimizer__name": "sgd", "optimizer__head_lr": 0.01, "optimizer__momentum": 0.8, "smoothing": 0.2},
}


@pytest.mark.parametrize("how", PLAIN)
def test_a_training_is_what_a_plain_loop_computes(how: str, digits: Data, tmp_path: Path) -> None:
    """Images that are squeezed whole, torch's own optimizer, and the order of the samples."""
    settings = {"images__crop": "none", "schedule__shape": "constant", "schedule__warmup": 0, "epochs": 2, "seed": 3}
    tuned_on(digits, tmp_path, model=vit(), **PLAIN[how], **settings)
    tuned = fxtune.apply(vit(), "tri_res", num_classes=10, seed=3)
    groups = tuned.parameter_groups(lr=0.003, weight_decay=2.0)
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups, betas=(0.5, 0.9), eps=1e-3)
    if how == "sgd":
        optimizer = torch.optim.SGD(tuned.parameter_groups(lr=0.003, weight_decay=0.05, head_lr=0.01), momentum=0.8)
    train = digits.split("train")
    order = Order(len(train), 16, seed_of("data", 3))
    mean, std = (torch.tensor(found).view(3, 1, 1) for found in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))

    def image(index: int) -> torch.Tensor:
        picture = train[index].picture
        assert picture is not None
        pixels = torch.tensor(np.array(picture())).permute(2, 0, 1)
        bigger = F.interpolate(pixels.float()[None], (16, 16), mode="bilinear", antialias=True)[0]
        return (bigger.round().to(torch.uint8).float() / 255 - mean) / std

    expected = []
    tuned.train()
    for step in range(2 * order.steps):
        keys = order.keys(step)
        images = torch.stack([image(key.sample) for key in keys])
        labels = torch.tensor([train[key.sample].label for key in keys])
        loss = F.cross_entropy(tuned(images), labels, label_smoothing=0.2 if how == "sgd" else 0.0)
        optimizer.zero_grad()
        loss.backward()
        if how == "adamw":
            nn.utils.clip_grad_norm_([p for p in tuned.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        expected.append(loss.item())
    assert losses(tmp_path) == pytest.approx(
        expected, rel=1e-4
    )  # pixels are resized by another library: to one of 255 shades
    assert len(expected) == 6


def test_it_learns_and_tells_what_came_of_it(whole: Run, digits: Data) -> None:
    told = json.loads((whole.folder / "run.json").read_text())
    assert set(whole.scores) == {"val", "test"} and told["accuracy"] == dict(whole.scores)
    assert (
        told["trained_weights"]
        == whole.trained_weights
        == sum(weight.numel() for weight in whole.tuned.parameters() if weight.requires_grad)
    )
    assert whole.epochs == 3 and not whole.tuned.training
    found = losses(whole.folder)
    assert len(found) == 9 and sum(found[-3:]) < sum(found[:3])
    vals = [line["accuracy"] for line in lines(whole.folder) if line.get("split") == "val"]
    assert len(vals) == 3 and whole.scores["val"] == max(vals)
    assert whole.best_epoch == 1 + vals.index(max(vals))
    assert list((whole.folder / "tensorboard").iterdir())
    assert f"{whole.trained_weights:,} weights" in str(whole)


def test_what_it_learnt_is_loaded_again(whole: Run, digits: Data) -> None:
    tuned = fxtune.load(vit(drop_rate=0.1), whole.folder / "tuned")
    for split in ("val", "test"):
        assert fxtune.evaluate(tuned, digits, split=split, recipe=RECIPE) == whole.scores[split]


@pytest.mark.parametrize("tuned", [False, True])
def test_to_evaluate_leaves_each_module_in_its_own_mode(digits: Data, tuned: bool) -> None:
    model = vit(drop_rate=0.5, num_classes=10)
    model = fxtune.apply(model, "tri_res", seed=0) if tuned else model
    expected = fxtune.evaluate(model.eval(), digits, recipe=RECIPE)
    model.train()
    model.blocks[1].eval()
    modes = [module.training for module in model.modules()]
    assert fxtune.evaluate(model, digits, recipe=RECIPE) == expected
    assert [module.training for module in model.modules()] == modes and True in modes and False in modes


def test_accuracy_is_counted_among_the_classes_that_a_test_set_has(whole: Run, digits: Data) -> None:
    test = digits.split("test")
    some = tuple(sample for sample in test if sample.label in (3, 8))
    data = digits.with_splits({"few": Split(some, among=(3, 8)), "all": Split(some)})
    logits = []
    tuned = fxtune.load(vit(drop_rate=0.1), whole.folder / "tuned").eval()
    handle = tuned.register_forward_hook(lambda _, __, output: logits.append(output.detach()))
    found = {split: fxtune.evaluate(tuned, data, split=split, recipe=RECIPE) for split in data.splits}
    handle.remove()
    every = torch.cat(logits[: len(logits) // 2])
    labels = torch.tensor([sample.label for sample in some])
    masked = every.index_fill(1, torch.tensor([0, 1, 2, 4, 5, 6, 7, 9]), -torch.inf)
    assert found["few"] == pytest.approx((masked.argmax(1) == labels).float().mean().item())
    assert found["all"] == pytest.approx((every.argmax(1) == labels).float().mean().item())


@pytest.mark.parametrize("accumulate", [2, 5, 16])
def test_pieces_of_a_step_add_up(digits: Data, tmp_path: Path, accumulate: int) -> None:
    """In float64; the last step of an epoch has 8 samples for up to 16 pieces."""
    options: dict[str, Any] = {"model": vit().double(), "rules": "tri_res"}
    runs = []
    for i, pieces in enumerate((1, accumulate)):
        run = fxtune.tune(
            options["model"], digits, "tri_res", out=tmp_path / str(i), recipe=RECIPE, progress=False,
            settings={"accumulate": pieces, "epochs": 2}, options={"dtype": torch.float64},
        )  # fmt: skip
        runs.append((run, losses(run.folder)))
    assert runs[0][1] == pytest.approx(runs[1][1], rel=1e-10)
    for name, weight in weights(runs[0][0]).items():
        assert torch.allclose(weight, weights(runs[1][0])[name], rtol=1e-8, atol=1e-10), name


def test_workers_change_nothing(whole: Run, digits: Data, tmp_path: Path) -> None:
    run = fxtune.tune(vit(drop_rate=0.1), digits, "tri_res", out=tmp_path, recipe=RECIPE, workers=2, progress=False)
    assert same(weights(run), weights(whole)) and lines(tmp_path) == lines(whole.folder)


@pytest.mark.parametrize(
    "settings",
    [
        {"precision": "bfloat16"},
        {"checkpointing": True},
        {"optimizer__name": "sgd", "smoothing": 0.1},
        {"optimizer__head_lr": 0.01, "schedule__shape": "linear"},
    ],
    ids=str,
)
def test_what_a_recipe_can_say(digits: Data, tmp_path: Path, settings: dict[str, Any]) -> None:
    run = tuned_on(digits, tmp_path, epochs=2, **settings)
    found = losses(tmp_path)
    assert all(torch.tensor(found).isfinite()) and set(run.scores) == {"val", "test"}
    moved = fxtune.apply(vit(), "tri_res", num_classes=10, seed=0).state_dict()
    assert not torch.equal(run.tuned.state_dict()["head.weight"], moved["head.weight"])


def test_checkpointing_computes_the_same(whole: Run, digits: Data, tmp_path: Path) -> None:
    run = tuned_on(digits, tmp_path, checkpointing=True)
    assert losses(tmp_path) == pytest.approx(losses(whole.folder), rel=1e-5)
    assert run.scores == whole.scores


def test_a_bypass_trains(digits: Data, tmp_path: Path) -> None:
    run = tuned_on(digits, tmp_path, rules="res_bypass", epochs=2)
    found = losses(tmp_path)
    assert found[-1] < found[0] and run.trained_weights > 0


def test_it_stops_when_nothing_gets_better(digits: Data, tmp_path: Path) -> None:
    """Labels drawn at random: what is learnt of them does not carry over."""
    drawn = random.Random(0)
    noise = digits.with_splits(
        {
            name: Split(tuple(type(s)(s.name, drawn.randrange(10), s.texts, s.picture) for s in split))
            for name, split in digits.splits.items()
        }
    )
    run = tuned_on(noise, tmp_path, patience=2, epochs=40)
    assert run.best_epoch is not None and run.epochs == run.best_epoch + 2 < 40
    vals = [line["accuracy"] for line in lines(tmp_path) if line.get("split") == "val"]
    assert run.scores["val"] == max(vals) > vals[-1] or vals[-1] == max(vals)


# ---- killed and gone on with -----------------------------------------------------------------------------------------


class Cut(BaseException):
    """Stands for a kill."""


@contextlib.contextmanager
def cut_at(step: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patched:
        original = Stepper._step

        def stopping(self: Stepper, number: int, pieces: Any) -> Any:
            if number == step:
                raise Cut
            return original(self, number, pieces)

        patched.setattr(Stepper, "_step", stopping)
        yield


@pytest.mark.parametrize("step", range(9))
def test_a_training_that_was_cut_short_ends_the_same(
    step: int, whole: Run, digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cut_at(step, monkeypatch), pytest.raises(Cut):
        tuned_on(digits, tmp_path)
    run = tuned_on(digits, tmp_path)
    assert same(weights(run), weights(whole)) and run.scores == whole.scores
    assert lines(tmp_path) == lines(whole.folder)
    again = tuned_on(digits, tmp_path)  # one that has ended is not trained further
    assert same(weights(again), weights(whole)) and lines(tmp_path) == lines(whole.folder)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"optimizer__lr": 0.1}, "recipe"),
        ({"rules": "dual_res"}, "rules"),
        ({"model": vit(embed_dim=12)}, "weights at the start"),
    ],
    ids=["recipe", "rules", "model"],
)
def test_another_training_in_the_same_folder_is_refused(
    change: dict[str, Any], told: str, digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cut_at(4, monkeypatch), pytest.raises(Cut):
        tuned_on(digits, tmp_path)
    before = (tmp_path / state.FILE).read_bytes()
    with pytest.raises(CheckpointError, match=f"another training[^$]*{told}"):
        tuned_on(digits, tmp_path, **change)
    with pytest.raises(CheckpointError, match=r"another training[^$]*samples"):
        tuned_on(load_data({**DIGITS, "seed": 1}), tmp_path)
    assert (tmp_path / state.FILE).read_bytes() == before


def test_a_damaged_state_is_refused(whole: Run, digits: Data, tmp_path: Path) -> None:
    content = (whole.folder / state.FILE).read_bytes()
    (tmp_path / state.FILE).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="cannot be read"):
        tuned_on(digits, tmp_path)


# ---- what goes wrong -------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_names_the_step_and_the_gradients(digits: Data, tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as caught:
        tuned_on(digits, tmp_path, optimizer__lr=1e30, schedule__warmup=0)
    told = str(caught.value)
    assert "the loss is nan at step" in told and "optimizer.lr=1e+29" in told
    assert "tuners" in told and "largest gradients" in told
    assert not (tmp_path / "tuned").exists()


def test_a_first_step_that_is_not_finite(digits: Data, tmp_path: Path) -> None:
    model = vit()
    with torch.no_grad():
        model.get_parameter("blocks.0.mlp.fc1.bias").fill_(torch.nan)
    with pytest.raises(
        TrainingError, match=r"at step 1[^$]*1 weights that are not finite[^$]*blocks\.0\.mlp\.fc1\.bias"
    ):
        tuned_on(digits, tmp_path, model=model)


def test_a_full_disk_is_told_and_gone_on_from(
    whole: Run, digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        original, calls = state.write_tensors, []

        def full(path: Path, *given: Any) -> None:
            calls.append(path)
            if len(calls) > 3:
                raise OSError(errno.ENOSPC, "No space left on device")
            original(path, *given)

        patched.setattr(state, "write_tensors", full)
        with pytest.raises(CheckpointError, match=r"No space left on device[^$]*make room"):
            tuned_on(digits, tmp_path)
    assert same(weights(tuned_on(digits, tmp_path)), weights(whole))


def test_images_that_do_not_decode_are_left_out_counted_and_named(tmp_path: Path) -> None:
    shades = random.Random(0)
    for i in range(12):
        for name in ("dark", "light"):
            place = tmp_path / "data" / "train" / name / f"{i}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            shade = shades.randrange(100) + (150 if name == "light" else 0)
            Image.new("RGB", (8, 8), (shade, shade, shade)).save(place)
    whole = fxtune.tune(
        vit(), f"images/{tmp_path / 'data'}", "tri_res", out=tmp_path / "a", recipe=RECIPE, progress=False
    )
    assert whole.unreadable == () and whole.scores == {}
    broken = [tmp_path / "data" / "train" / name for name in ("dark/3.png", "light/7.png")]
    for place in broken:
        place.write_bytes(place.read_bytes()[:50])
    run = fxtune.tune(
        vit(), f"images/{tmp_path / 'data'}", "tri_res", out=tmp_path / "b", recipe=RECIPE, progress=False
    )
    assert len(run.unreadable) == 2 and "2 samples could not be decoded" in str(run)
    assert all(any(str(place) in told for told in run.unreadable) for place in broken)
    assert len(json.loads((tmp_path / "b" / "run.json").read_text())["unreadable"]) == 2


def test_refusals(digits: Data, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"stop early[^$]*parts"):
        tuned_on(digits.with_splits({"train": digits.split("train")}), tmp_path, patience=2)
    with pytest.raises(PlanError, match="needs rules"):
        tuned_on(digits, tmp_path, rules=None)
    tuned = fxtune.apply(vit(), "tri_res", num_classes=10)
    with pytest.raises(PlanError, match="tuned already"):
        tuned_on(digits, tmp_path, model=tuned)
    with pytest.raises(InputError, match=r"no logits of 10 classes[^$]*\(2, 7\)"):
        tuned_on(digits, tmp_path, model=fxtune.apply(vit(), "tri_res"), rules=None)
    with pytest.raises(SourceError, match="unknown key 'lr'"):
        tuned_on(digits, tmp_path, lr=1)
    with pytest.raises(DataError, match="no split called 'tset'"):
        fxtune.evaluate(tuned, digits, split="tset", recipe=RECIPE)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(CheckpointError, match="can't be written to"):
        tuned_on(digits, file / "out")


def test_a_tuned_model_trains_without_rules(digits: Data, tmp_path: Path) -> None:
    tuned = fxtune.apply(vit(), "tri_res", num_classes=10)
    run = tuned_on(digits, tmp_path, model=tuned, rules=None, epochs=1)
    assert run.tuned is tuned


# ---- sentences -------------------------------------------------------------------------------------------------------

WORDS = ("good", "bad", "film", "the", "a", "was", "is")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT and its tokenizer, as transformers saves them."""
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=12, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32, num_labels=2, initializer_range=0.2,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without its head, as a model that has only been pretrained is saved."""
    folder = tmp_path_factory.mktemp("encoder")
    shutil.copytree(bert, folder, dirs_exist_ok=True)
    (folder / "model.safetensors").unlink()
    BertForSequenceClassification.from_pretrained(bert).bert.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def opinions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("opinions")
    drawn = random.Random(0)
    for split, count in (("train", 48), ("val", 20), ("test", 20)):
        rows = []
        for i in range(count):
            others = [drawn.choice(WORDS[2:]) for _ in range(drawn.randrange(2, 8))]
            rows.append({"text": " ".join([*others, WORDS[i % 2]]), "label": WORDS[i % 2]})
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.mark.parametrize("saved", ["bert", "encoder"])
def test_sentences_on_the_command_line(
    saved: str, opinions: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    bert = request.getfixturevalue(saved)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("fxtune: 1\nname: mine\noptimizer: {lr: 0.01}\nepochs: 12\nbatch: 8\n")
    command = [
        "tune",
        f"transformers/{bert}",
        "-r",
        "full",
        "-d",
        f"table/{opinions}",
        "--out",
        str(tmp_path / "out"),
    ]
    done = CliRunner().invoke(cli.app, [*command, "--recipe", str(recipe), "--set", "texts.length=16"])
    assert done.exit_code == 0, done.output
    told = json.loads((tmp_path / "out" / "run.json").read_text())
    assert told["accuracy"]["test"] > 0.85 and told["training"]["recipe"]["texts"]["length"] == 16
    assert f"test {told['accuracy']['test']:.2%}" in done.output

    checked = ["eval", f"transformers/{bert}", str(tmp_path / "out" / "tuned"), "-d", f"table/{opinions}"]
    again = CliRunner().invoke(cli.app, [*checked, "--recipe", str(recipe)])
    assert again.exit_code == 0 and again.stdout.strip() == f"test: {told['accuracy']['test']:.2%}"


def test_pairs_of_sentences(bert: Path, tmp_path: Path) -> None:
    rows = [{"a": "good", "b": WORDS[i % 2], "label": i % 2} for i in range(32)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, rows[:8])))
    run = fxtune.tune(
        f"transformers/{bert}",
        {"source": "table", "path": str(tmp_path), "texts": ["a", "b"]},
        "full",
        out=tmp_path / "out",
        recipe={"optimizer": {"lr": 0.01}, "epochs": 12, "batch": 8},
        tokenizer=tokenizer_of(str(bert)),
        progress=False,
    )
    assert run.scores["test"] == 1.0


def test_refusals_of_sentences(bert: Path, opinions: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tokenizer[^$]*--tokenizer"):
        fxtune.tune(f"transformers/{bert}", f"table/{opinions}", "tri_res", out=tmp_path, recipe="text")
    with pytest.raises(DataError, match="no tokenizer at"):
        tokenizer_of(str(tmp_path))
    with pytest.raises(FxtuneError, match="no recipe is called"):
        load_recipe("txt")
    wrong = CliRunner().invoke(
        cli.app, ["tune", "timm/x", "-r", "lora", "-d", "digits", "--out", "o", "--set", "epochs"]
    )
    assert isinstance(wrong.exception, SourceError) and "NAME=VALUE" in str(wrong.exception)


def test_recipes_are_listed() -> None:
    listed = CliRunner().invoke(cli.app, ["recipes"])
    assert listed.exit_code == 0 and "images" in listed.output and "text" in listed.output
