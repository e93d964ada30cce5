"""The report, the counts and the optimiser's groups."""

import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fxtune.tuned import Report, RuleOutcome, TunedModel
from tuned_support import tuned_copy


@pytest.fixture
def tuned() -> TunedModel:
    return tuned_copy("vit")


OUTCOMES = (
    RuleOutcome(
        "ffn <- res_adapter(dim=10)",
        "adapter",
        tuple(f"blocks.{i}.mlp" for i in range(9)),
        1_234,
        near_misses=("blocks.9: relu [x]",),
    ),
    RuleOutcome("mha <- res_prefix(tokens=10)", skipped="no attention in this model", notes=("see the docs",)),
)


def test_it_tells_where_each_rule_matched_and_what_nearly_did() -> None:
    text = str(Report("Net", OUTCOMES, ("a note",)).counted(1_234, 100_000))
    for part in (
        "ffn <- res_adapter(dim=10): 9 sites, 1,234 weights added",
        "blocks.0.mlp, blocks.1.mlp, blocks.2.mlp, blocks.3.mlp, blocks.4.mlp, …, blocks.8.mlp",
        "nearly: blocks.9: relu [x]",
        "skipped: no attention in this model",
        "see the docs",
        "a note",
        "1,234 of 100,000 weights train (1.2340%)",
    ):
        assert part in text


def test_a_rich_console_shows_the_same() -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(Report("Net [x]", OUTCOMES).counted(1, 3))
    text = console.export_text()
    for part in ("Net [x]", "res_adapter(dim=10)", "1,234", "relu [x]", "no attention", "1 of 3 weights train"):
        assert part in text


def test_the_totals_are_the_models(tuned: TunedModel) -> None:
    trainable = sum(p.numel() for p in tuned.parameters() if p.requires_grad)
    total = sum(p.numel() for p in tuned.parameters())
    report = tuned.report()
    assert (report.trainable, report.total) == (trainable, total) == (4 + 5 * 33, total)
    assert report.outcomes[0].sites == ("blocks.0", "blocks.1")


def test_counts_are_printed_in_pefts_words(tuned: TunedModel, capsys: pytest.CaptureFixture[str]) -> None:
    tuned.print_trainable_parameters()
    total = sum(p.numel() for p in tuned.parameters())
    share = f"{100 * 169 / total:.4f}"
    assert capsys.readouterr().out == f"trainable params: 169 || all params: {total:,d} || trainable%: {share}\n"


@given(st.floats(1e-6, 1), st.floats(0, 1), st.none() | st.floats(1e-6, 1))
def test_groups_hold_each_trained_parameter_once(lr: float, decay: float, head_lr: float | None) -> None:
    tuned = tuned_copy("vit")
    tuned.get_parameter("norm.weight").requires_grad_(True)
    groups = tuned.parameter_groups(lr=lr, weight_decay=decay, head_lr=head_lr)
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(tuned.get_parameter(name)) for name in tuned.trainable)
    by_name = {group["name"]: group for group in groups}
    assert set(by_name) == {"tuners", "tuners/no_decay", "head", "head/no_decay", "backbone/no_decay"}
    for name, group in by_name.items():
        assert all((parameter.ndim > 1) == (not name.endswith("no_decay")) for parameter in group["params"])
        assert group["weight_decay"] == (0.0 if name.endswith("no_decay") else decay)
        assert group["lr"] == (head_lr if head_lr is not None and name.startswith("head") else lr)
    torch.optim.AdamW(groups)


def test_an_empty_report_has_no_share() -> None:
    assert "0 of 0 weights train (0.0000%)" in str(Report("Net", ()))
