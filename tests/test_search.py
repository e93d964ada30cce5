"""Searching for sizes: what is found is anybody's, and a killed search goes on the same."""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxtune
from families import build
from fxtune import cli
from fxtune.errors import CheckpointError, InputError, PlanError, RuleError, SourceError
from fxtune.saving import FILE, read
from fxtune.searching import Candidate, Found, Supernet
from fxtune.tuned import TunedModel, one_capture
from fxtune.tuners import Placement, registry
from supernets import WIDTH, example, inputs, logits, run, supernet_on, tuner_at


@pytest.fixture(scope="module")
def known() -> Supernet:
    return supernet_on("vit")


# ---- search --------------------------------------------------------------------------------------------------------

QUICK = {"population": 8, "generations": 3, "parents": 3, "progress": False}
BUDGET = 1500


def score(tuned: TunedModel) -> float:
    """Of what the sub-network computes; it differs for any two of them."""
    with torch.no_grad():
        return float(logits(tuned(**inputs("vit")))[:, 0].sum())


@pytest.fixture(scope="module")
def whole(known: Supernet, tmp_path_factory: pytest.TempPathFactory) -> tuple[Found, Path]:
    """A search that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    return fxtune.search(known, score, budget=BUDGET, folder=folder, **QUICK), folder


def files(folder: Path) -> dict[str, Any]:
    """What the files of a folder hold; of weights their digest, for safetensors orders its header as it likes."""
    found: dict[str, Any] = {path.name: path.read_bytes() for path in folder.iterdir()}
    return found | {FILE: read(folder).digest}


def test_the_best_that_was_scored_is_found(known: Supernet, whole: tuple[Found, Path]) -> None:
    found, folder = whole
    assert len(found.history) == 24
    best = max(found.history, key=lambda candidate: candidate.score)
    assert (best.sizes, best.score, best.weights) == (found.sizes, found.score, found.weights)
    assert found.weights == known.count(found.sizes) <= BUDGET
    assert score(found.tuned) == pytest.approx(found.score, rel=1e-12)
    assert found.weights == sum(p.numel() for n, p in found.tuned.named_parameters() if tuner_at(n))
    lines = (folder / "history.jsonl").read_text().splitlines()
    assert [Candidate.model_validate_json(line) for line in lines[1:]] == list(found.history)
    assert f"{found.weights:,} weights" in str(found) and str(found).count("\n") == 3


def test_what_is_found_is_anybodys(known: Supernet, whole: tuple[Found, Path]) -> None:
    """It is loaded from the folder, and its rules are a file like any other."""
    found, folder = whole
    model = known.tuned.strip()
    assert torch.equal(run(fxtune.load(model, folder)), run(found.tuned))
    by_file = fxtune.apply(model, folder / "rules.yaml", example_inputs=example("vit"), dtype=torch.float64)
    assert set(by_file.state_dict()) == set(found.tuned.state_dict())
    assert [rules["name"] for rules in found.rules] == ["noah_found"]
    assert all("choices" not in rule and 0 not in rule["insert"].values() for rule in found.rules[0]["rules"])
    assert len(found.rules[0]["rules"]) <= 3 * 3, "equal sizes are one rule"
    with pytest.raises(RuleError, match="no size open"):
        Supernet(found.tuned)


def test_a_new_head_and_trained_weights_come_along() -> None:
    supernet = supernet_on("vit", num_classes=7)
    part = supernet.subnetwork([0, 1, 5, 0, 10, 1])
    with supernet.narrowed([0, 1, 5, 0, 10, 1]):
        torch.testing.assert_close(run(part), run(supernet.tuned), rtol=1e-12, atol=1e-14)
    assert run(part).shape == (3, 7)
    with torch.no_grad():
        part.get_parameter("head.weight").zero_()
    assert supernet.tuned.get_parameter("head.weight").any(), "a copy"


def test_a_sub_network_is_in_the_dtype_to_which_its_supernet_was_cast() -> None:
    supernet = supernet_on("vit")
    supernet.tuned.float()
    part = supernet.subnetwork([0, 1, 5, 0, 10, 1])
    assert {tensor.dtype for tensor in (*part.parameters(), *part.buffers())} == {torch.float32}
    x = {name: value.float() for name, value in inputs("vit").items()}
    with supernet.narrowed([0, 1, 5, 0, 10, 1]):
        whole = supernet.tuned(**x)
    torch.testing.assert_close(part(**x), whole, rtol=1e-4, atol=1e-5)
    assert {weight.dtype for weight in supernet.tuned.strip().parameters()} == {torch.float64}


def test_a_saved_supernet_is_one_when_it_is_loaded(known: Supernet, tmp_path: Path) -> None:
    known.tuned.save(tmp_path)
    loaded = Supernet(fxtune.load(known.tuned.strip(), tmp_path))
    assert list(map(str, loaded.slots)) == list(map(str, known.slots))
    with known.narrowed([5] * 6), loaded.narrowed([5] * 6):
        assert torch.equal(run(loaded.tuned), run(known.tuned))


@pytest.mark.parametrize("batch", range(2))
def test_a_search_that_is_cut_off_ends_the_same(
    batch: int, known: Supernet, whole: tuple[Found, Path], tmp_path: Path
) -> None:
    """Cut off in the score of any candidates, and its last line torn anywhere: every file is the same, bit for bit."""
    rng, cuts = random.Random(batch), 0
    path = tmp_path / "history.jsonl"
    found = None
    while found is None:
        calls = itertools.count()
        last = rng.randrange(8)

        def cut_off(tuned: TunedModel, calls: Iterator[int] = calls, last: int = last) -> float:
            if next(calls) == last:
                raise KeyboardInterrupt
            return score(tuned)

        try:
            found = fxtune.search(known, cut_off, budget=BUDGET, folder=tmp_path, **QUICK)
        except KeyboardInterrupt:
            cuts += 1
            whole_lines = path.read_bytes()
            start = whole_lines.rindex(b"\n", 0, -1) + 1
            if rng.random() < 0.5 and start > whole_lines.index(b"\n"):
                path.write_bytes(whole_lines[: rng.randrange(start, len(whole_lines))])
    assert cuts > 2
    assert (found.sizes, found.score, found.history) == (whole[0].sizes, whole[0].score, whole[0].history)
    assert files(tmp_path) == files(whole[1])


def test_a_finished_search_scores_nothing_again(known: Supernet, whole: tuple[Found, Path]) -> None:
    def never(tuned: TunedModel) -> float:
        raise AssertionError

    assert fxtune.search(known, never, budget=BUDGET, folder=whole[1], **QUICK).sizes == whole[0].sizes


def test_in_memory_it_is_the_same(known: Supernet, whole: tuple[Found, Path]) -> None:
    found = fxtune.search(known.tuned, score, budget=BUDGET, **QUICK)
    assert (found.sizes, found.history) == (whole[0].sizes, whole[0].history)
    other = fxtune.search(known, score, budget=BUDGET, **{**QUICK, "seed": 1})
    assert other.history != found.history


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_killed_process_goes_on_where_it_was(known: Supernet, whole: tuple[Found, Path], tmp_path: Path) -> None:
    """SIGKILL at any moment; at the end every file is what an undisturbed search writes."""

    def slow(tuned: TunedModel) -> float:
        time.sleep(0.01)
        return score(tuned)

    rng, seen = random.Random(0), [0]
    while seen[-1] < len(whole[0].history):
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                fxtune.search(known, slow, budget=BUDGET, folder=tmp_path, **QUICK)
            os._exit(0)
        until = min(seen[-1] + rng.randrange(1, 8), len(whole[0].history))
        while lines_in(tmp_path) < until:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        seen.append(lines_in(tmp_path))
    assert len(seen) > 4 and seen == sorted(set(seen)), "it was killed at other places, and went on"
    fxtune.search(known, score, budget=BUDGET, folder=tmp_path, **QUICK)
    assert files(tmp_path) == files(whole[1])


def lines_in(folder: Path) -> int:
    path = folder / "history.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


# ---- what is refused -----------------------------------------------------------------------------------------------


def search(known: Supernet, **changed: Any) -> Found:
    return fxtune.search(known, changed.pop("score", score), **{"budget": BUDGET, **QUICK, **changed})


@pytest.mark.parametrize(
    ("changed", "error", "parts"),
    [
        ({"budget": -1}, PlanError, ["no candidate keeps the budget", "has 0 weights", "raise the budget"]),
        ({"budget": 1e6}, PlanError, ["budget=1000000.0", "whole number"]),
        ({"population": 0}, PlanError, ["population=0", "greater than or equal to 1"]),
        ({"mutation": 1.5}, PlanError, ["mutation=1.5"]),
        ({"seed": "x"}, PlanError, ["seed='x'"]),
        ({"score": lambda _: float("nan")}, InputError, ["no finite number", "nan for the sizes ["]),
        ({"score": lambda _: None}, InputError, ["no finite number", "None"]),
        ({"score": lambda _: torch.zeros(2)}, InputError, ["no finite number"]),
    ],
)
def test_what_cannot_be_searched_is_told(
    changed: dict[str, Any], error: type[Exception], parts: list[str], known: Supernet
) -> None:
    with pytest.raises(error) as told:
        search(known, **changed)
    assert all(part in str(told.value) for part in parts), told.value


def test_a_budget_that_no_candidate_keeps() -> None:
    rules = {"rules": [{"at": "ffn", "insert": {"res_adapter": {"dim": 4}}, "choices": {"dim": [2, 4]}}]}
    net = Supernet(fxtune.apply(build("vit"), rules))
    least = 2 * (2 * WIDTH * 2 + 2 + WIDTH)
    assert search(net, budget=least, score=lambda _: 0.0).sizes == (2, 2)
    with pytest.raises(PlanError, match=f"the smallest has {least:,} weights"):
        search(net, budget=least - 1)


def test_another_search_is_refused(known: Supernet, whole: tuple[Found, Path], tmp_path: Path) -> None:
    folder = whole[1]
    for changed, part in [({"budget": 1600}, "differs in budget"), ({"seed": 1}, "differs in plan")]:
        with pytest.raises(CheckpointError, match=part):
            search(known, folder=folder, **changed)
    other = Supernet(copy.deepcopy(known.tuned))
    with torch.no_grad():
        other.tuned.get_parameter(other.tuned.trainable[0]).add_(1e-9)
    with pytest.raises(CheckpointError, match="differs in weights"):
        search(other, folder=folder)
    (tmp_path / "history.jsonl").write_text("something else\n")
    with pytest.raises(CheckpointError, match="no history"):
        search(known, folder=tmp_path)
    lines = (folder / "history.jsonl").read_text().splitlines()
    changed_line = {**json.loads(lines[3]), "sizes": [0] * 6}
    (tmp_path / "history.jsonl").write_text("\n".join([*lines[:3], json.dumps(changed_line), ""]))
    with pytest.raises(CheckpointError, match="cannot be gone on with"):
        search(known, folder=tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="can't be written"):
        search(known, folder=tmp_path / "file")


@pytest.mark.parametrize(
    ("sizes", "part"),
    [([0] * 5, "5 numbers, and 6 slots"), ([0, 0, 0, 0, 0, 2], "2 at ffn <- res_adapter.dim, block 1")],
)
def test_sizes_that_are_none_are_refused(sizes: list[int], part: str, known: Supernet) -> None:
    for use in (known.count, known.rules, known.subnetwork):
        with pytest.raises(InputError, match=part):
            use(sizes)
    with pytest.raises(InputError, match=part), known.narrowed(sizes):
        pass


def test_what_is_no_supernet_is_refused() -> None:
    with pytest.raises(PlanError, match="a supernet is a tuned model"):
        Supernet(nn.Linear(2, 2))  # type: ignore[arg-type]
    with one_capture():
        with pytest.raises(RuleError, match="leave no size open"):
            Supernet(fxtune.apply(build("vit"), "lora"))
        with pytest.raises(RuleError, match=r"vpt at `blocks\.0` cannot be left open"):
            Supernet(fxtune.apply(build("vit"), "noah", form="original"))
        shallow = {"rules": [{"at": "block", "insert": {"vpt_shallow": {}}, "choices": {"tokens": [0, 10]}}]}
        with pytest.raises(RuleError, match=r"vpt_shallow at `blocks\.0` cannot be left open"):
            Supernet(fxtune.apply(build("vit"), shallow))


MINE_YAML = """\
fxtune: 1
name: mine
rules:
  - at: ffn
    insert: {TUNER}
    choices: CHOICES
"""


@pytest.mark.parametrize(
    ("tuner", "choices", "error", "parts"),
    [
        ("res_adapter: {dim: 10}", "{dmi: [0, 1]}", RuleError, ["no size called 'dmi'", ":6:15", "'dim'"]),
        ("bitfit", "{dim: [0, 1]}", RuleError, ["no size called 'dim'", "its sizes: none", "leave `choices:` out"]),
        ("res_adapter: {dim: 10}", "{dim: [0, 20]}", RuleError, ["larger than the tuner", "20, and", ":6:20"]),
        ("res_adapter", "{dim: [11]}", RuleError, ["11, and res_adapter with dim=10"]),
        ("res_adapter", "{dim: [0, -1]}", SourceError, [":6:24", "greater than or equal to 0"]),
        ("res_adapter", "{dim: [1, 1]}", SourceError, [":6:20", "each size once"]),
        ("res_adapter", "{dim: []}", SourceError, [":6:20"]),
        ("res_adapter", "{dim: 5}", SourceError, [":6:20", "list"]),
        ("res_adapter", "{dim: [1.5]}", SourceError, [":6:21"]),
        ("res_adapter", "{dim: [1], scale: [1]}", SourceError, ["one size"]),
    ],
)
def test_broken_choices_are_refused_in_their_place(
    tuner: str, choices: str, error: type[Exception], parts: list[str], tmp_path: Path
) -> None:
    insert = tuner if ":" not in tuner else f"{{{tuner}}}"
    text = MINE_YAML.replace("{TUNER}", insert).replace("CHOICES", choices)
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(error) as told:
        fxtune.apply(build("vit"), tmp_path / "mine.yaml")
    assert all(part in str(told.value) for part in parts), told.value


def test_an_override_that_is_smaller_than_a_choice_is_refused() -> None:
    with pytest.raises(RuleError, match=r"10, and res_adapter with dim=4"):
        fxtune.apply(build("vit"), "noah", dim=4)


# ---- tuners of one's own -------------------------------------------------------------------------------------------


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_entries", {**registry._entries})


class Wide(nn.Module):
    """A sum of m maps of rank one, and one number."""

    narrows = {"many": {"a": 1, "b": 0, "c": None}}  # noqa: RUF012

    def __init__(self, place: Placement, *, many: int = 6) -> None:
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.randn(shape)) for shape in ((place.width, many), (many, place.width)))
        self.c = nn.Parameter(torch.randn(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.a.to(x.dtype) @ self.b.to(x.dtype) + self.c.to(x.dtype)


@pytest.mark.usefixtures("own_registry")
def test_a_tuner_of_ones_own_is_searched() -> None:
    fxtune.tuner("wide")(Wide)
    rule = {"at": "block", "insert": {"wide": {"many": 5}}, "choices": {"many": [0, 2, 5]}}
    choices = list(itertools.product([0, 2, 5], repeat=2))
    with one_capture():
        net = supernet_on("vit", {"rules": [rule]})
        check_sub_networks(net, choices)
    for sizes in choices:
        assert net.count(sizes) == sum(2 * WIDTH * size + 1 for size in sizes if size)


@pytest.mark.usefixtures("own_registry")
@pytest.mark.parametrize(
    "narrows", [{"much": {"a": 1}}, {"many": {}}, {"many": {"c": None}}, {"many": {"a": "1"}}, {"many": 1}, ["many"]]
)
def test_sizes_that_are_said_wrongly_are_refused(narrows: Any) -> None:
    with pytest.raises(RuleError, match="narrows = "):
        fxtune.tuner("wide")(type("Wrong", (Wide,), {"narrows": narrows}))


def check_sub_networks(net: Supernet, choices: Iterable[Sequence[int]]) -> None:
    """Each is on its own what the narrowed supernet is."""
    for sizes in choices:
        with net.narrowed(sizes):
            ours = run(net.tuned)
        torch.testing.assert_close(ours, run(net.subnetwork(sizes)), rtol=1e-12, atol=1e-13)


def test_sites_in_no_block_are_sizes_of_their_own() -> None:
    """The head lies in no block: its rule names the path."""
    rule = {"at": "linear", "insert": {"lora": {"rank": 3}}, "choices": {"rank": [0, 1, 3]}}
    rng = random.Random(0)
    with one_capture():
        net = supernet_on("vit", {"rules": [rule]})
        assert [slot.path for slot in net.slots if slot.block is None] == ["head"]
        check_sub_networks(net, [net.draw(rng) for _ in range(4)])


def test_rules_that_leave_nothing_open_stay_as_they_are() -> None:
    """Two rules with one tuner at one place: the second's is told from the first's when that is left out."""
    first = {"at": "ffn", "insert": {"res_adapter": {"dim": 3}}, "choices": {"dim": [0, 3]}}
    second = {"at": "ffn", "insert": {"res_adapter": {"dim": 2}}, "expect": "every block"}
    with one_capture():
        net = supernet_on("vit", [{"rules": [first, second]}, "prefix"])
        check_sub_networks(net, itertools.product([0, 3], repeat=2))
    assert [rules["name"] for rules in net.rules([0, 3])] == ["rules_found", "prefix"]


# ---- the command ---------------------------------------------------------------------------------------------------

MINE = """
import torch, fxtune
from test_search import supernet_on, score

def asked():
    return supernet_on("vit").tuned, score

def wrong():
    return 3
"""


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """``fxtune search`` in this process, beside the user's module `mine`."""
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)

    def run(*args: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fxtune", "search", *args])
        monkeypatch.setattr(sys, "path", [*sys.path])
        monkeypatch.delitem(sys.modules, "mine", raising=False)
        with pytest.raises(SystemExit) as left:
            cli.main()
        captured = capsys.readouterr()
        return int(left.value.code or 0), captured.out, captured.err

    return run


def test_the_command_finds_the_same(whole: tuple[Found, Path], command: Run, tmp_path: Path) -> None:
    sizes = ["--population", "8", "--generations", "3", "--parents", "3"]
    status, out, err = command("mine:asked", "--budget", str(BUDGET), "--out", "out", *sizes)
    assert (status, out) == (0, f"{whole[0]}\nsaved in out\n"), err
    assert files(tmp_path / "out") == files(whole[1])


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("mine:wrong", ["InputError", "gives nothing to search", "a pair"]),
        ("mine:aksed", ["no function called 'aksed'", "asked"]),
        ("nothing", ["names no function", "mine:search"]),
    ],
)
def test_the_command_tells_errors_in_words(name: str, parts: list[str], command: Run) -> None:
    status, _, err = command(name, "--budget", "1", "--out", "out")
    assert status == 1 and "Traceback" not in err
    assert all(part in err for part in parts), err
