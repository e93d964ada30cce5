"""Loading by structure: with the tuners a backbone of other names, or in other words, gives what the first one does."""

import base64
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional as F

import fxtune
from effort import examples
from fxtune.errors import CheckpointError
from fxtune.saving import FILE, file, read
from fxtune.structure import structured
from fxtune.view import view
from libraries import HEADS, LIBRARIES, WIDTH, Rules, in_timm, in_transformers, loaded, logits, refused, trained

# ---- a network with every module renamed, and its projections in several forms --------------------------------------

PROJECTIONS = {"split": ("q", "k", "v"), "fused": ("qkv",), "interleaved": ("qkv",), "half": ("q", "kv")}


class Written(nn.Module):
    """One network, whose modules are called and made as is asked for; `changes` make another one of it.

    Attributes:
        names: role of a module, without the number of its Block -> its name.
        form: of the projections: a name of `PROJECTIONS`.
    """

    def __init__(
        self, names: dict[str, str] | None = None, form: str = "split", order: Any = None, **changes: Any
    ) -> None:
        super().__init__()
        self.form, self.changes = form, changes
        roles = ["stem", "last", "head"]
        for i in range(2):
            roles += [f"{role}{i}" for role in ("norm", "other_norm", "up", "down", "out", *PROJECTIONS[form])]
        self.names = {
            role: (names or {}).get(role.rstrip("01"), role.rstrip("01")) + role[-1:] * role[-1:].isdigit()
            for role in roles
        }
        for role in order(roles) if order else roles:
            self.add_module(self.names[role], self._made(role))
        self.eval()

    def _made(self, role: str) -> nn.Module:
        kind, number = role.rstrip("01"), role[-1:]
        if "norm" in kind or kind == "last":
            return drawn(nn.LayerNorm(WIDTH, eps=self.changes.get("eps", 1e-5)), role)
        if kind not in ("qkv", "kv"):
            sizes = {"stem": (7, WIDTH), "head": (WIDTH, 5), "up": (WIDTH, 40), "down": (40, WIDTH)}
            return drawn(nn.Linear(*sizes.get(kind, (WIDTH, WIDTH))), role)
        parts = [drawn(nn.Linear(WIDTH, WIDTH), f"{part}{number}") for part in kind]
        made = nn.Linear(WIDTH, len(kind) * WIDTH)
        for name in ("weight", "bias"):
            pieces = [part.get_parameter(name).unflatten(0, (HEADS, -1)) for part in parts]
            whole = torch.stack(pieces, 1 if self.form == "interleaved" else 0).flatten(0, 2)
            made.get_parameter(name).data.copy_(whole)
        return made

    def part(self, role: str) -> Any:
        return getattr(self, self.names[role])

    def heads(self, x: torch.Tensor, i: int) -> list[torch.Tensor]:
        """Queries, keys and values, batch x heads x tokens x channels."""
        split = (HEADS, WIDTH // HEADS)
        if self.form == "split":
            return [self.part(f"{role}{i}")(x).unflatten(-1, split).transpose(1, 2) for role in "qkv"]
        if self.form == "half":
            q, kv = self.part(f"q{i}")(x).unflatten(-1, split), self.part(f"kv{i}")(x)
            return [part.transpose(1, 2) for part in (q, *kv.unflatten(-1, (2, *split)).unbind(2))]
        qkv = self.part(f"qkv{i}")(x)
        if self.form == "fused":
            return [part.unflatten(-1, split).transpose(1, 2) for part in qkv.chunk(3, -1)]
        return [part.transpose(1, 2) for part in qkv.view(*x.shape[:2], HEADS, 3, -1).unbind(3)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.part("stem")(x)
        for i in range(2):
            q, k, v = self.heads(self.part(f"norm{i}")(x), i)
            if i in self.changes.get("swapped", ()):
                q, k = k, q
            mixed = F.scaled_dot_product_attention(q, k, v, scale=self.changes.get("scale"))
            out = self.part(f"out{i}")(mixed.transpose(1, 2).flatten(2))
            around = x
            x = out + x if self.names["stem"] > "m" else x + out
            h = F.gelu(
                self.part(f"up{i}")(self.part(f"other_norm{i}")(x)), approximate=self.changes.get("gelu", "none")
            )
            x = (around if i in self.changes.get("edge", ()) else x) + self.part(f"down{i}")(h)
        found: torch.Tensor = self.part("head")(self.part("last")(x)[:, self.changes.get("token", 0)])
        return found


def drawn(module: nn.Module, role: str) -> nn.Module:
    """Weights that go with the role alone."""
    generator = torch.Generator().manual_seed(sum(map(ord, role)) * 31 + len(role))
    for parameter in module.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module


TOKENS = torch.randn(3, 6, 7, generator=torch.Generator().manual_seed(1))
OTHER_NAMES = {role: f"{letter}_{role[::-1]}" for role, letter in zip(
    ["stem", "last", "head", "norm", "other_norm", "up", "down", "out", "q", "k", "v", "qkv", "kv"], "zyxwvutsrqpon",
    strict=True)}  # fmt: skip
SHAPED = {"example_inputs": (torch.randn(2, 6, 7),)}


def saved_in(folder: Path, rules: Rules, form: str = "split", **options: Any) -> torch.Tensor:
    """A tuned model of the network, saved; and what it computes, which is not what the network does."""
    model = Written(form=form)
    tuned = trained(model, rules, **SHAPED, **options)
    tuned.save(folder)
    computed = logits(tuned, TOKENS)
    if "num_classes" not in options:
        assert not torch.allclose(computed, logits(model, TOKENS), atol=1e-3)
    return computed


def test_the_forms_compute_the_same() -> None:
    wanted = logits(Written(), TOKENS)
    for form in PROJECTIONS:
        assert torch.allclose(logits(Written(OTHER_NAMES, form), TOKENS), wanted, atol=1e-5)


EVERYWHERE = {
    "train": ["tuners", "head", "norm*.weight", "q1.bias"],
    "rules": [
        {"at": "mha", "insert": {"res_adapter": {"dim": 4}}},
        {"at": "linear", "where": {"path": ["down*", "k0"]}, "expect": 3, "insert": {"lora": {"rank": 2}}},
        {"at": "norm", "reads": "output", "where": {"path": "last"}, "insert": "ssf"},
    ],
}


@settings(max_examples=examples(2, 30), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.randoms(use_true_random=False))
def test_names_and_the_order_of_modules_do_not_matter(tmp_path_factory: Any, random: Any) -> None:
    folder = tmp_path_factory.mktemp("renamed")
    wanted = saved_in(folder, EVERYWHERE, head="head", num_classes=3)
    names = random.sample([f"{a}{b}" for a in "abcdefghijklmnopqrst" for b in "xyz"], len(OTHER_NAMES))
    renamed = Written(dict(zip(OTHER_NAMES, names, strict=True)), order=lambda roles: random.sample(roles, len(roles)))
    tuned = loaded(renamed, folder)
    assert torch.allclose(logits(tuned, TOKENS), wanted, atol=1e-6)
    again = tmp_path_factory.mktemp("again")
    tuned.save(again)  # it is an ordinary tuned model, whose rules speak of the names here
    assert torch.allclose(logits(loaded(renamed, again), TOKENS), wanted, atol=1e-6)
    assert torch.allclose(logits(loaded(Written(), again), TOKENS), wanted, atol=1e-6)
    assert len(tuned.trainable) == len(fxtune.load(Written(), folder).trainable)


# ---- projections fused and split ------------------------------------------------------------------------------------

ON_PROJECTIONS = {
    "train": ["tuners"],
    "rules": [
        {"at": "mha", "on": ["q_proj", "k_proj", "v_proj"], "insert": {"lora": {"rank": 2, "alpha": 3.0}}},
        {"at": "biased", "reads": "output", "insert": "bitfit"},
        {"at": "linear", "reads": "output", "insert": "ssf"},
    ],
}


@pytest.mark.parametrize(
    ("there", "here"),
    [("fused", "split"), ("split", "interleaved"), ("interleaved", "fused"), ("half", "fused"), ("fused", "half")],
)
def test_tuners_of_fused_projections_are_parted_and_joined(there: str, here: str, tmp_path: Path) -> None:
    wanted = saved_in(tmp_path / "there", ON_PROJECTIONS, there)
    tuned = loaded(Written(OTHER_NAMES, here), tmp_path / "there")
    assert torch.allclose(logits(tuned, TOKENS), wanted, atol=1e-5)
    tuned.save(tmp_path / "here")  # and all the way back
    assert torch.allclose(logits(loaded(Written(form=there), tmp_path / "here"), TOKENS), wanted, atol=1e-5)


def test_ranks_add_up_only_where_they_must(tmp_path: Path) -> None:
    """Of one A for all three, copies of it are joined again to one; of three A, a map of three times the rank."""
    rules = {"rules": [{"at": "mha", "on": ["q_proj", "k_proj", "v_proj"], "insert": {"lora": {"rank": 2}}}]}

    def ranks(tuned: Any) -> set[int]:
        return {len(weight) for name, weight in tuned.named_parameters() if name.endswith("lora.A")}

    saved_in(tmp_path / "one", rules, "fused")
    split = loaded(Written(OTHER_NAMES), tmp_path / "one")
    assert ranks(split) == {2}
    split.save(tmp_path / "copies")
    assert ranks(loaded(Written(form="fused"), tmp_path / "copies")) == {2}
    saved_in(tmp_path / "three", rules)
    assert ranks(loaded(Written(form="fused"), tmp_path / "three")) == {6}


def lora_on(*names: str) -> Rules:
    return {"train": ["tuners"], "rules": [{"at": "mha", "on": list(names), "insert": {"lora": {"rank": 2}}}]}


IMPOSSIBLE: dict[str, tuple[Rules, str, str, str]] = {
    "a tuner that mixes channels": (
        {"rules": [{"at": "mha", "on": ["q_proj", "k_proj", "v_proj"], "insert": {"res_adapter": {"dim": 2}}}]},
        "split",
        "fused",
        r"res_adapter at `.*q0.*projections that are fused.*cannot be taken apart",
    ),
    "two ranks in one rule": (
        lora_on("q_proj", "k_proj", "v_proj", "out_proj"),
        "split",
        "fused",
        r"rule 0 would need tuners of other sizes.*'rank': 6.*'rank': 2",
    ),
    "a part without a tuner there": (lora_on("q_proj", "v_proj"), "split", "fused", r"nothing of that rule stood"),
    "a part without a tuner here": (lora_on("q_proj", "v_proj"), "fused", "split", r"put nothing at `.*_k0`, where"),
    "a part of a weight": (
        {"train": ["tuners", "q*.bias"], "rules": [{"at": "ffn", "insert": "res_adapter"}]},
        "split",
        "fused",
        r"`.*vkq0\.bias` is one tensor here, and only a part of it trained there",
    ),
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_what_cannot_be_moved_is_refused_by_name(what: str, tmp_path: Path) -> None:
    rules, there, here, message = IMPOSSIBLE[what]
    trained(Written(form=there), rules, **SHAPED).save(tmp_path)
    refused(Written(OTHER_NAMES, here), tmp_path, f"(?s)cannot be moved.*{message}")


# ---- another structure, another epsilon, other weights --------------------------------------------------------------

OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "an attribute": (
        {"gelu": "tanh"},
        r"tuned on `%\d+ = gelu\(%.*; this model has `%\d+ = gelu\(approximate=tanh",
    ),
    "a factor": ({"scale": 0.5}, r"tuned on `%\d+ = sdpa\(.*this model has `%\d+ = sdpa\(scale=0.5"),
    "an edge": ({"edge": (1,)}, r"tuned on `%\d+ = add\(.*this model has `%\d+ = add\("),
    "the token that is read": ({"token": 1}, r"tuned on `%\d+ = linear\(.* at head.*this model has `%\d+ = linear\("),
    "epsilon": (
        {"eps": 1e-6},
        r"another epsilon.*1e-05 in `norm0`, which is `.*mron0` here, with 1e-06.*build the model with 1e-05",
    ),
}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    saved_in(folder, {"rules": [{"at": "ffn", "insert": {"res_adapter": {"dim": 2}}}]})
    return folder


@pytest.mark.parametrize("what", OTHERS)
def test_another_network_is_refused_with_what_differs(what: str, adapters: Path) -> None:
    changes, message = OTHERS[what]
    refused(Written(OTHER_NAMES, **changes), adapters, f"(?s){message}")


def test_queries_and_keys_that_change_places_are_other_weights(adapters: Path) -> None:
    """Nothing but the numbers tells the two apart."""
    with pytest.warns(
        UserWarning, match=r"other weights.*\n.*\d weights differ, the first is `.*_[qk]0.weight`, which was"
    ):
        fxtune.load(Written(OTHER_NAMES, swapped=(0,)), adapters)


def test_other_weights_are_told_under_both_names(adapters: Path) -> None:
    model = Written(OTHER_NAMES, "fused")
    loaded(model, adapters)
    with torch.no_grad():
        model.get_parameter(f"{OTHER_NAMES['qkv']}1.bias")[WIDTH + 3] += 1  # of the keys
    with pytest.warns(UserWarning, match=r"1 weights differ, the first is `.*vkq1.bias`, which was `k1.bias`"):
        fxtune.load(model, adapters)
    with pytest.raises(CheckpointError, match=r"which was `k1\.bias`"):
        fxtune.load(model, adapters, other_weights="refuse")


def test_tied_weights_are_no_weights_that_are_alike(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self, first: str, last: str, tied: bool) -> None:
            super().__init__()
            for name in (first, last):
                self.add_module(name, drawn(nn.Linear(6, 6), "same"))
            self.names = (first, last)
            if tied:
                self.get_submodule(last).weight = self.get_submodule(first).weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            up, down = (getattr(self, name) for name in self.names)
            found: torch.Tensor = down(F.gelu(up(x))) + x
            return found

    given = (torch.randn(2, 5, 6),)
    rules = {"train": ["tuners", "up.weight"], "rules": [{"at": "ffn", "insert": {"res_adapter": {"dim": 2}}}]}
    tuned = trained(Two("up", "down", True), rules, example_inputs=given)
    tuned.save(tmp_path)
    assert torch.allclose(logits(loaded(Two("a", "b", True), tmp_path), *given), logits(tuned, *given), atol=1e-6)
    refused(Two("a", "b", False), tmp_path, "another structure")


# ---- timm and transformers ------------------------------------------------------------------------------------------

RULES = ["tri_res", "dual_res", "res_bypass", "adapter", "prefix", "vpt_deep", "ssf", "bitfit", "lora", "full"]


@pytest.mark.parametrize("there", LIBRARIES)
@pytest.mark.parametrize("rules", RULES)
def test_tuners_go_from_one_library_to_the_other(rules: str, there: str, tmp_path: Path) -> None:
    first, second = (LIBRARIES[name]() for name in (there, *(name for name in LIBRARIES if name != there)))
    assert torch.allclose(logits(first), logits(second), atol=1e-6)
    classes = 3 if rules in ("tri_res", "lora") else None
    tuned = trained(first, rules, num_classes=classes)
    tuned.save(tmp_path)
    assert torch.allclose(logits(loaded(second, tmp_path)), logits(tuned), atol=1e-6)
    assert classes or not torch.allclose(logits(tuned), logits(first), atol=1e-2)


def test_attention_may_be_written_out(tmp_path: Path) -> None:
    """The fused operator, and its parts as timm and transformers write them, mask and all."""
    tuned = trained(in_timm(), ["dual_res", "prefix"])
    tuned.save(tmp_path)
    by_hand = in_timm()
    for module in by_hand.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    eager = in_transformers()
    eager.set_attn_implementation("eager")
    for model in (by_hand, eager):
        assert torch.allclose(logits(loaded(model, tmp_path)), logits(tuned), atol=1e-6)


def test_epsilon_as_transformers_has_it_is_refused(tmp_path: Path) -> None:
    trained(in_timm(), "adapter").save(tmp_path)
    refused(in_transformers(layer_norm_eps=1e-12), tmp_path, r"1e-06 in `blocks.0.norm1`.*layernorm_before.*with 1e-12")
    refused(in_transformers(num_hidden_layers=1), tmp_path, "another structure")


def test_what_is_known_of_a_large_backbone_is_small() -> None:
    from fxtune.api.drafting import capture_of

    with torch.device("meta"):
        graph = capture_of(VisionTransformer(img_size=224, embed_dim=768, depth=12, num_heads=12)).graph
    made = structured(graph, view(graph)).structure
    assert len(made.nodes) > 300 and len(file._packed(made)) < 20_000


# ---- strangers' files -----------------------------------------------------------------------------------------------


def told(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, torch.Tensor], dict[str, str]], None]:
    """A change of what the file says of its backbone."""

    def changed(tensors: dict[str, torch.Tensor], header: dict[str, str]) -> None:
        backbone = json.loads(file._unpacked(header["backbone"]))
        change(backbone)
        header["backbone"] = base64.b85encode(zlib.compress(json.dumps(backbone).encode())).decode()

    return changed


def first(nodes: list[dict[str, Any]], op: str) -> dict[str, Any]:
    return next(node for node in nodes if node["op"] == op and node.get("take"))


HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "what is read before it is there": (
        lambda b: b["structure"]["nodes"][3]["operands"].append({"node": 3, "how": ""}),
        "reads what is computed after it",
    ),
    "a tuner at no node": (lambda b: next(iter(b["tuners"].values()))["nodes"].append(10**6), "expected nodes below"),
    "two tuners at one node": (
        lambda b: b["tuners"].update(more=next(iter(b["tuners"].values()))),
        "2 tuners of that rule stood there",
    ),
    "rows beyond the map": (
        lambda b: first(b["structure"]["nodes"], "linear")["take"].update(offset=10**9),
        "are not those of its operation",
    ),
    "endless rows": (
        lambda b: first(b["structure"]["nodes"], "linear")["take"].update(spans=[[10**15, 1]]),
        "are not those of its operation",
    ),
    "places beyond the tensor": (
        lambda b: first(b["structure"]["nodes"], "state")["take"].update(offset=10**9),
        "its own header says",
    ),
}


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fused")
    saved_in(folder, {**lora_on("q_proj", "k_proj", "v_proj"), "train": ["tuners", "qkv*"]}, "fused")
    return folder


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_structures_are_refused(what: str, fused: Path, tmp_path: Path) -> None:
    change, message = HOSTILE[what]
    tensors = load_file(fused / FILE)
    with safe_open(fused / FILE, framework="pt") as opened:
        header = dict(opened.metadata())
    told(change)(tensors, header)
    header["digest"] = file._digest(header, tensors)
    save_file(tensors, tmp_path / FILE, metadata=header)
    refused(Written(OTHER_NAMES), tmp_path, message)


# ---- the usual names ------------------------------------------------------------------------------------------------


def test_the_usual_names_save_and_load(tmp_path: Path) -> None:
    model = in_transformers()
    tuned = trained(model, "adapter", num_classes=3)
    tuned.save_pretrained(tmp_path / "usual")
    tuned.save(tmp_path / "own")
    assert read(tmp_path / "usual").digest == read(tmp_path / "own").digest
    for cls in (fxtune.TunedModel, type(tuned)):
        again = cls.from_pretrained(model, tmp_path / "usual", other_weights="refuse")
        assert isinstance(again, fxtune.TunedModel) and torch.equal(logits(again), logits(tuned))
    tuned.save_pretrained(tmp_path / "theirs", is_main_process=True)  # as transformers' Trainer calls it
    assert (tmp_path / "theirs" / "model.safetensors").is_file() and not (tmp_path / "theirs" / FILE).exists()
    with pytest.raises(CheckpointError, match=r"takes a folder alone.*\n.*max_shard_size"):
        trained(in_timm(), "adapter").save_pretrained(tmp_path / "none", max_shard_size="1GB")
    assert not (tmp_path / "none").exists()
