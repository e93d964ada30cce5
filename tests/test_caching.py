"""Feature caches: what is read is what the trunk computed; nothing is lost, mixed up or taken for something else."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
)

import fxtune
from effort import examples
from families import FAMILIES, build
from fxtune.errors import CacheError, PlanError
from fxtune.tuned import TunedModel
from test_splitting import assert_same, gradients, with_bypass

COUNT = 11
IMAGES = torch.randn(COUNT, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(COUNT) % 4


@pytest.fixture(scope="module")
def tuned() -> TunedModel:
    return with_bypass("vit")


def images(batch_size: int = 4, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(IMAGES, LABELS), batch_size=batch_size, **options)


def counted(tuned: TunedModel) -> tuple[list[int], Callable[[], None]]:
    """The batch sizes that the trunk ran with, as they come; and how to stop counting."""
    sizes: list[int] = []
    handle = tuned.get_submodule("patch_embed.proj").register_forward_hook(lambda *call: sizes.append(len(call[2])))
    return sizes, handle.remove


class Augmented(Dataset[Any]):
    """Adds noise, drawn anew each time by torch's own generator."""

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return IMAGES[index] + torch.rand(()), LABELS[index]


# What is read


@pytest.mark.parametrize("family", FAMILIES)
def test_training_on_a_cache_is_training_on_the_model(family: str, tmp_path: Path) -> None:
    tuned = with_bypass(family).train()
    inputs, loss = FAMILIES[family].inputs(6), FAMILIES[family].loss
    batches = [{name: value[i : i + 3] for name, value in inputs.items()} for i in (0, 3)]
    for batch in batches:
        batch["sample_weight"] = torch.rand(3)
    cache = tuned.cache_features(batches, tmp_path / "cache")
    assert len(cache) == 6
    for (features, rest), batch in zip(cache.loader(batch_size=3), batches, strict=True):
        assert torch.equal(rest["sample_weight"], batch.pop("sample_weight"))
        torch.manual_seed(0)
        found = tuned.from_features(features)
        torch.manual_seed(0)
        expected = tuned(**batch)
        assert_same(found, expected)
        ours, theirs = gradients(tuned, loss(found, 3)), gradients(tuned, loss(expected, 3))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


@settings(max_examples=examples(15, 150), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 20), st.booleans(), st.booleans(), st.data())
def test_every_sample_is_read_once_and_right(
    tuned: TunedModel,
    tmp_path_factory: pytest.TempPathFactory,
    stored: int,
    read: int,
    rows: int,
    shuffled: bool,
    drop_last: bool,
    data: st.DataObject,
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    whole = tuned.compute_features(IMAGES)
    each = sum(value[0].numel() * 4 for value in whole.values()) + 16
    loader = images(stored, shuffle=data.draw(st.booleans()), drop_last=data.draw(st.booleans()))
    cache = tuned.cache_features(loader, folder, shard_bytes=rows * each)
    assert len(cache) == COUNT
    seen = []
    batches = cache.loader(read, shuffle=shuffled, drop_last=drop_last)
    for features, labels in batches:
        assert len(labels) == read or (not drop_last and len(labels) == COUNT % read)
        for i, label in enumerate(labels):
            index = int((whole["blocks.0.add_1"] - features["blocks.0.add_1"][i]).abs().sum(dim=(1, 2)).argmin())
            assert label == LABELS[index]
            for name, value in features.items():
                torch.testing.assert_close(value[i], whole[name][index], rtol=1e-4, atol=1e-5)
            seen.append(index)
    assert len(batches) == -(-len(seen) // read) if seen else len(batches) == 0
    assert len(seen) == len(set(seen)) == (COUNT // read * read if drop_last else COUNT)
    assert shuffled or seen == sorted(seen)
    shutil.rmtree(folder)


def test_a_shuffled_loader_shuffles_anew_and_repeatably(tuned: TunedModel, tmp_path: Path) -> None:
    cache = tuned.cache_features(images(shuffle=True), tmp_path / "cache")
    loader = cache.loader(COUNT, shuffle=True, generator=torch.Generator().manual_seed(0))
    orders = [next(iter(loader))[0]["blocks.0.add_1"][:, 0, 0] for _ in range(2)]
    again = next(iter(cache.loader(COUNT, shuffle=True, generator=torch.Generator().manual_seed(0))))
    assert not torch.equal(orders[0], orders[1])
    assert torch.equal(orders[0], again[0]["blocks.0.add_1"][:, 0, 0])


def test_it_is_a_dataset(tuned: TunedModel, tmp_path: Path) -> None:
    cache = tuned.cache_features(images(), tmp_path / "cache")
    features, labels = next(iter(DataLoader(cache, batch_size=4)))
    own, own_labels = next(iter(cache.loader(4)))
    assert torch.equal(labels, own_labels)
    assert all(torch.equal(features[name], own[name]) for name in own)
    assert torch.equal(cache[-1][0]["blocks.0.add_1"], cache[COUNT - 1][0]["blocks.0.add_1"])
    with pytest.raises(IndexError):
        cache[COUNT]
    copied = pickle.loads(pickle.dumps(cache))  # as workers of a DataLoader get it
    assert torch.equal(copied[3][0]["blocks.0.add_1"], cache[3][0]["blocks.0.add_1"])


def test_half_the_disk_in_bfloat16(tuned: TunedModel, tmp_path: Path) -> None:
    exact = tuned.cache_features(images(), tmp_path / "exact")
    half = tuned.cache_features(images(), tmp_path / "half", dtype=torch.bfloat16)
    others = COUNT * 2 * 8  # a label, and a number for the inputs
    assert 2 * (half.bytes - others) == exact.bytes - others
    for (found, _), (expected, _) in zip(half.loader(4), exact.loader(4), strict=True):
        for name, value in found.items():
            assert value.dtype is torch.float32
            assert torch.equal(value, expected[name].bfloat16().float())


def test_a_later_epoch_does_not_run_the_trunk(tuned: TunedModel, tmp_path: Path) -> None:
    cache = tuned.cache_features(images(), tmp_path / "cache")
    sizes, stop = counted(tuned)
    for features, _ in cache.loader(4):
        tuned.from_features(features)
    again = tuned.cache_features(images(), tmp_path / "cache")
    stop()
    assert sum(sizes) <= COUNT + 1, "the first samples alone are computed, to know what they look like"
    assert len(again) == COUNT


# Random augmentation


def test_random_augmentation_is_refused(tuned: TunedModel, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="views="):
        tuned.cache_features(DataLoader(Augmented(), batch_size=4), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_views(tuned: TunedModel, tmp_path: Path) -> None:
    data = DataLoader(Augmented(), batch_size=4, shuffle=True)
    cache = tuned.cache_features(data, tmp_path / "cache", views=3)
    assert len(cache) == COUNT
    views = [next(iter(cache.loader(COUNT, view=view))) for view in range(3)]
    assert all(torch.equal(labels, LABELS) for _, labels in views)
    values = torch.stack([features["blocks.0.add_1"] for features, _ in views])
    assert not torch.equal(values[0], values[1]) and not torch.equal(values[1], values[2])
    torch.manual_seed(0)
    drawn, labels = next(iter(cache.loader(COUNT, shuffle=False)))
    chosen = (values == drawn["blocks.0.add_1"]).flatten(2).all(-1)
    assert torch.equal(labels, LABELS)
    assert torch.equal(chosen.sum(0), torch.ones(COUNT, dtype=torch.long)) and chosen.any(1).all()
    assert len(tuned.cache_features(data, tmp_path / "cache", views=3)) == COUNT
    with pytest.raises(CacheError, match="view=3"):
        cache.loader(view=3)
    with pytest.raises(CacheError, match="another number of views"):
        tuned.cache_features(data, tmp_path / "cache", views=2)


# What it was made of


@pytest.fixture
def folder(tuned: TunedModel, tmp_path: Path) -> Path:
    tuned.cache_features(images(), tmp_path / "cache")
    return tmp_path / "cache"


def tuned_again(seed: int = 0, **options: Any) -> TunedModel:
    inputs = FAMILIES["vit"].inputs(2)
    return fxtune.apply(build("vit", seed), **{"rules": "res_bypass", "example_inputs": ((), inputs), **options})


def test_tuners_of_another_size_share_it(folder: Path) -> None:
    assert len(tuned_again(dim=3).cache_features(images(), folder)) == COUNT


def test_another_backbone_is_refused(folder: Path) -> None:
    with pytest.raises(CacheError, match=r"another backbone(.|\n)*weights differ"):
        tuned_again(seed=1).cache_features(images(), folder)


def test_the_same_weights_in_another_network_are_refused(folder: Path) -> None:
    model = build("vit")
    for block in model.blocks:
        block.attn.num_heads, block.attn.head_dim, block.attn.scale = 2, 16, 16**-0.5
    other = fxtune.apply(model, "res_bypass", example_inputs=((), FAMILIES["vit"].inputs(2)))
    with pytest.raises(CacheError, match="another backbone"):
        other.cache_features(images(), folder)


def test_another_family_is_refused(folder: Path) -> None:
    with pytest.raises(CacheError, match="another backbone"):
        with_bypass("resnet").cache_features([(IMAGES, LABELS)], folder)


def test_another_rule_is_refused(folder: Path) -> None:
    rules = {"bypass": {"horizontal": {"res_adapter": {}}, "stems": {"drop": [0]}}}
    with pytest.raises(CacheError, match="another rule"):
        tuned_again(rules=rules).cache_features(images(), folder)


def test_another_preprocessing_is_refused(tuned: TunedModel, folder: Path) -> None:
    with pytest.raises(CacheError, match="another preprocessing"):
        tuned.cache_features(DataLoader(TensorDataset(IMAGES * 2, LABELS), batch_size=4), folder)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"dtype": torch.bfloat16}, "another dtype"),
        ({"dataloader": DataLoader(TensorDataset(IMAGES[:9], LABELS[:9]), batch_size=4)}, "another (prep|number)"),
        ({"dataloader": DataLoader(TensorDataset(IMAGES, LABELS, LABELS), batch_size=4)}, "another kind of labels"),
    ],
)
def test_other_ways_to_store_it_are_refused(
    tuned: TunedModel, folder: Path, change: dict[str, Any], match: str
) -> None:
    with pytest.raises(CacheError, match=match):
        tuned.cache_features(**{"dataloader": images(), "folder": folder, **change})


def test_a_folder_with_something_else_is_refused(tuned: TunedModel, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(CacheError, match="something else"):
        tuned.cache_features(images(), tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "all of it"


# Interruptions


class Interrupted(Exception):
    pass


def failing(after: int) -> Any:
    class Data(TensorDataset):
        reads = 0

        def __getitem__(self, index: int) -> Any:
            Data.reads += 1
            if Data.reads > after:
                raise Interrupted
            return super().__getitem__(index)

    return DataLoader(Data(IMAGES, LABELS), batch_size=2)


@settings(max_examples=examples(8, 60), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 3 * COUNT + COUNT), st.integers(1, 4), st.floats(0, 1))
def test_a_half_made_cache_is_completed(
    tuned: TunedModel, tmp_path_factory: pytest.TempPathFactory, after: int, rows: int, cut: float
) -> None:
    folder = tmp_path_factory.mktemp("cache") / "inside"
    each = sum(value[0].numel() * 4 for value in tuned.compute_features(IMAGES[:1]).values()) + 16
    options: dict[str, Any] = {"shard_bytes": rows * each}
    try:
        tuned.cache_features(failing(after), folder, **options)
    except Interrupted:
        assert not (folder / "manifest.json").exists()
    shards = sorted(folder.glob("*.safetensors"))
    before = {shard: shard.read_bytes() for shard in shards}
    if shards and cut < 1:
        whole = before.pop(shards[-1])
        shards[-1].write_bytes(whole[: int(cut * len(whole))])  # as a crash of the machine may leave it
    sizes, stop = counted(tuned)
    cache = tuned.cache_features(images(2), folder, **options)
    stop()
    for shard, content in before.items():
        assert shard.read_bytes() == content, "complete shards are reused"
    probes = COUNT + 1
    kept = sum(1 for _ in before) * min(rows + rows % 2, COUNT)
    assert sum(sizes) <= probes + COUNT - min(kept, COUNT) + 1
    features, labels = next(iter(cache.loader(COUNT)))
    assert torch.equal(labels, LABELS)
    torch.testing.assert_close(features, tuned.compute_features(IMAGES), rtol=1e-4, atol=1e-5)
    shutil.rmtree(folder)


def test_going_on_in_another_order_is_refused(tuned: TunedModel, tmp_path: Path) -> None:
    batches = [(IMAGES[i : i + 2], LABELS[i : i + 2]) for i in range(0, COUNT, 2)]
    with pytest.raises(CacheError, match="not alike"):
        tuned.cache_features([*batches[:4], (IMAGES[:2], None)], tmp_path / "cache", shard_bytes=1)
    with pytest.raises(CacheError, match="samples 2 to 3"):
        tuned.cache_features([batches[0], *batches[2:]], tmp_path / "cache", shard_bytes=1)
    assert len(tuned.cache_features(batches, tmp_path / "cache", shard_bytes=1)) == COUNT


def test_nothing_is_unpickled(tuned: TunedModel, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("unpickling")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}
    assert len(list(tuned.cache_features(images(), folder).loader(4))) == 3


# Disk


def test_the_size_is_told_beforehand(tuned: TunedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = tuned.cache_features(images(), tmp_path / "cache")
    told = capsys.readouterr().err.replace("\n", " ")
    assert f"{COUNT} samples take {cache.bytes / 2**20:,.1f} MiB" in told
    files = sum(path.stat().st_size for path in cache.folder.glob("*.safetensors"))
    assert cache.bytes <= files <= cache.bytes + 4096
    tuned.cache_features(images(), tmp_path / "cache")
    assert capsys.readouterr().err == ""


def test_a_full_disk_is_refused_beforehand(tuned: TunedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(CacheError, match="not enough space"):
        tuned.cache_features(images(), tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.safetensors"))


# Bad input


@pytest.mark.parametrize(
    ("dataloader", "options", "match"),
    [
        (iter([(IMAGES, LABELS)]), {}, "once only"),
        ([], {}, "nothing to cache"),
        ([{"image": IMAGES}], {}, "a dict of image, where the model takes x"),
        ([("a", "b")], {}, "a tuple of str, str"),
        ([(IMAGES, LABELS[:4])], {}, r"`rest` is a Tensor of shape \(4,\)"),
        ([(IMAGES, object())], {}, "`rest` is a object"),
        ([(IMAGES, LABELS)], {"dtype": torch.int8}, "dtype=torch.int8"),
        ([(IMAGES, LABELS)], {"views": 0}, "views=0"),
        ([(IMAGES, LABELS)], {"shard_bytes": 0}, "shard_bytes=0"),
    ],
)
def test_bad_input(tuned: TunedModel, tmp_path: Path, dataloader: Any, options: dict[str, Any], match: str) -> None:
    with pytest.raises(CacheError, match=match):
        tuned.cache_features(dataloader, tmp_path / "cache", **options)


def test_images_of_several_sizes_are_refused(tmp_path: Path) -> None:
    batches = [torch.randn(2, 3, size, size) for size in (64, 96)]
    with pytest.raises(CacheError, match="resize images"):
        with_bypass("resnet").cache_features(batches, tmp_path / "cache")


def test_texts_of_several_lengths_give_one_token_each(tmp_path: Path) -> None:
    tuned = with_bypass("bert")
    batches = [FAMILIES["bert"].inputs(2), {name: v[:, :6] for name, v in FAMILIES["bert"].inputs(2).items()}]
    cache = tuned.cache_features(batches, tmp_path / "cache")
    for (features, _), batch in zip(cache.loader(2), batches, strict=True):
        assert_same(tuned.from_features(features), tuned(**batch))


class Stream(IterableDataset[Any]):
    """Samples that come one after another and have no index."""

    def __iter__(self) -> Iterator[Any]:
        return zip(IMAGES, LABELS, strict=True)


@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_that_a_sampler_of_ones_own_draws(tuned: TunedModel, tmp_path: Path, shuffle: bool) -> None:
    """As accelerate's loaders have it: in the dataset's order, the last one too."""
    data = TensorDataset(IMAGES, LABELS)
    order = RandomSampler(data) if shuffle else SequentialSampler(data)
    loader = DataLoader(data, batch_sampler=BatchSampler(order, 5, drop_last=shuffle))
    cache = tuned.cache_features(loader, tmp_path / "cache")
    _, labels = next(iter(cache.loader(COUNT)))
    assert torch.equal(labels, LABELS)
    assert len(tuned.cache_features(loader, tmp_path / "cache")) == COUNT


def test_samples_without_an_index(tuned: TunedModel, tmp_path: Path) -> None:
    cache = tuned.cache_features(DataLoader(Stream(), batch_size=5), tmp_path / "cache")
    features, labels = next(iter(cache.loader(COUNT)))
    assert torch.equal(labels, LABELS)
    torch.testing.assert_close(features, tuned.compute_features(IMAGES), rtol=1e-4, atol=1e-5)


def test_a_cache_is_a_folder(tuned: TunedModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CacheError, match="is a folder"):
        tuned.cache_features(images(), tmp_path / "file")
    with pytest.raises(CacheError, match="can't be written"):
        tuned.cache_features(images(), tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "mine"


def test_without_a_bypass_there_is_no_cache(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="res_bypass"):
        fxtune.apply(build("vit"), "lora").cache_features(images(), tmp_path / "cache")
