"""The rule language: which sites a rule chooses, what a file may say, and how rule sets are found."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxtune import rules, source
from fxtune.errors import RuleError, SourceError
from fxtune.resources import rules_dir
from fxtune.rules import Where

SHIPPED = {path.stem for path in rules_dir().glob("*.yaml")}
TUNERS = ("adapter", "prefix", "prompt")
MANY = 60  # blocks of the reference; numbers drawn are below it


@st.composite
def numbers(draw):
    """A set of numbers as text or list, and the same set spelled out up to MANY."""
    if draw(st.booleans()):
        chosen = draw(st.lists(st.integers(0, MANY - 1), max_size=5))
        return chosen, set(chosen)
    texts, chosen = [], set()
    for _ in range(draw(st.integers(1, 3))):
        first = draw(st.integers(0, MANY - 1))
        last = draw(st.integers(first, MANY - 1))
        text, part = draw(
            st.sampled_from(
                [
                    (f"{first}", [first]),
                    (f"{first}..{last}", range(first, last + 1)),
                    (f"{first}..", range(first, MANY)),
                    (f"first {first + 1}", range(first + 1)),
                ]
            )
        )
        texts.append(draw(st.sampled_from(["", " "])) + text)
        chosen.update(part)
    return ",".join(texts).strip(), chosen


ONE_OR_NONE = st.none() | st.integers(0, MANY - 1)


@given(
    st.none() | numbers(),
    st.none() | numbers(),
    st.none() | numbers(),
    st.none() | st.integers(0, 9),
    st.none() | st.sampled_from(["self", "cross"]),
    ONE_OR_NONE,
    ONE_OR_NONE,
    st.integers(0, 9),
    st.none() | st.sampled_from(["self", "cross"]),
)
def test_sites_chosen_against_sets(blocks, drop, stages, least, wanted, block, stage, width, variant):
    where = Where(
        blocks=blocks and blocks[0],
        drop=drop and drop[0],
        stages=stages and stages[0],
        width=None if least is None else f"{least}..",
        variant=wanted,
    )
    chosen = (
        (blocks is None or block in blocks[1])
        and (drop is None or block not in drop[1])
        and (stages is None or stage in stages[1])
        and (least is None or width >= least)
        and (wanted is None or variant == wanted)
    )
    reason = where.refusal(block=block, stage=stage, width=width, path="m", variant=variant)
    assert (reason is None) == chosen


@given(st.lists(st.sampled_from(["blocks", "0", "attn", "Attn", "attn2"]), min_size=1, max_size=4), st.data())
def test_a_path_is_a_glob_across_dots(parts, data):
    path = ".".join(parts)
    i = data.draw(st.integers(0, len(path)))
    j = data.draw(st.integers(i, len(path)))

    def refusal(glob):
        return Where(path=glob).refusal(block=0, stage=0, width=1, path=path, variant=None)

    assert refusal(path[:i] + "*" + path[j:]) is None
    assert refusal(path) is None
    assert refusal(path.swapcase()) is not None or path == path.swapcase()
    assert refusal(path + ".x") is not None


@pytest.mark.parametrize(
    ("condition", "reason"),
    [
        ({"blocks": "0..3"}, "block 7 is not among blocks 0..3"),
        ({"drop": [7]}, "block 7 is dropped ([7])"),
        ({"stages": [0]}, "stage 1 is not among stages [0]"),
        ({"width": 768}, "width 320 is not 768"),
        ({"width": "640..1280"}, "width 320 is not 640..1280"),
        ({"path": "*.attn2"}, "module path 'a.attn1' does not fit '*.attn2'"),
        ({"variant": "cross"}, "variant 'self' is not 'cross'"),
    ],
)
def test_reasons(condition, reason):
    site = {"block": 7, "stage": 1, "width": 320, "path": "a.attn1", "variant": "self"}
    assert Where(**condition).refusal(**site) == reason
    assert Where(width="320..640").refusal(**site) is None
    nowhere = Where(blocks="0..").refusal(**{**site, "block": None})
    assert nowhere == "a site in no block is not among blocks 0.."


# A caret stands before the place of the fault; the second entry is in the complaint.
BROKEN = [
    ("rules: [{at: mha, insert: res_adapter, ^wher: {}}]", "nearest: 'where'"),
    ("rules: [^{insert: res_adapter}]", "missing key 'at'"),
    ("rules: [{at: mha, insert: ^{res_adapter: {}, res_prefix: {}}}]", "exactly one tuner"),
    ("rules: [{at: mha, insert: ^{}}]", "exactly one tuner"),
    ("rules: [{at: mha, insert: {res_adapter: ^3}}]", "expected a mapping"),
    ("rules: [{at: mha, insert: ^Res-Adapter}]", "expected pattern"),
    ("rules: [{at: ^'', insert: res_adapter}]", "at least 1 character"),
    ("rules: [{at: mha, on: ^[], insert: a}]", "at least 1 item"),
    ("rules: [{at: mha, on: ^3, insert: a}]", "a valid list"),
    ("rules: [{at: mha, insert: a, reads: ^inputs}]", "expected 'input' or 'output'"),
    ("rules: [{at: mha, insert: a, expect: ^all}]", "'every block'"),
    ("rules: [{at: mha, insert: a, expect: ^0}]", "greater than or equal to 1"),
    ("rules: [{at: mha, insert: a, required: ^'yes'}]", "a valid boolean"),
    ("rules: [{at: mha, insert: a, where: {blocks: ^6}}]", "'first 6' or [6]"),
    ("rules: [{at: mha, insert: a, where: {blocks: ^5..3}}]", "the smaller number first"),
    ("rules: [{at: mha, insert: a, where: {blocks: ^'0, x'}}]", "numbers such as '0..5'"),
    ("rules: [{at: mha, insert: a, where: {drop: ^[-1]}}]", "numbers from 0 on"),
    ("rules: [{at: mha, insert: a, where: {stages: ^first 0}}]", "'first 1'"),
    ("rules: [{at: mha, insert: a, where: {width: ^'320, 640'}}]", "a range such as '320..640'"),
    ("train: ^[tuner]", "nearest: 'tuners'"),
    ("train: ^[tuners, tuners]", "each entry once"),
    ("train: ^[]", "at least 1 item"),
    ("train: ^tuners", "a valid list"),
    ("^rule: []", "nearest: 'rules'"),
]


@given(st.sampled_from(BROKEN), st.integers(0, 5))
def test_a_broken_file_is_refused_in_its_place(fault, comments):
    text, expected = fault
    lines = ["fxtune: 1", "name: mine", *["# a comment"] * comments, text.replace("^", "")]
    with pytest.raises(SourceError) as error:
        source.parse("\n".join(lines), "f.yaml").validate(rules.RuleFile)
    assert error.value.where == f"f.yaml:{len(lines)}:{text.index('^') + 1}"
    assert expected in str(error.value)


def test_the_form_of_another_version_is_refused(tmp_path):
    path = tmp_path / "new.yaml"
    path.write_text("fxtune: 2\nname: new\n")
    with pytest.raises(SourceError, match="expected 1") as error:
        rules.load(path)
    assert error.value.where == f"{path}:1:9"


def test_a_rule_set_from_a_file_a_dict_and_a_list(tmp_path, monkeypatch):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "fxtune: 1\nname: mine\ntrain: ['*.bias', head]\nrules:\n"
        "  - at: mixer\n    insert: res_adapter\n    reads: output\n    where: {blocks: 0..3, drop: [1]}\n"
        "patterns:\n  mixer: {in: x, out: y, dataflow: y = tanh(x)}\n"
    )
    monkeypatch.chdir(tmp_path)
    same = {
        "train": ("*.bias", "head"),
        "rules": [
            {
                "at": "mixer",
                "insert": {"res_adapter": None},
                "reads": "output",
                "where": {"blocks": "0..3", "drop": (1,)},
            }
        ],
        "patterns": {"mixer": {"in": "x", "out": "y", "dataflow": "y = tanh(x)"}},
    }
    named, text, local, data = (rules.load(one)[0] for one in (path, str(path), "mine.yaml", same))
    first, shipped = rules.load([path, "tri_res"])
    assert (first.name, first.rules) == (named.name, named.rules)
    for rule_set in (named, text, local, data):
        assert rule_set.train == ("*.bias", "head")
        pattern = rule_set.patterns["mixer"]
        assert (pattern.inputs, pattern.output, pattern.dataflow) == (["x"], "y", "y = tanh(x)")
        (rule,) = rule_set.rules
        assert (rule.tuner, rule.settings, rule.reads, rule.expect, rule.required) == (
            "res_adapter",
            {},
            "output",
            None,
            False,
        )
        assert rule.where == Where(blocks="0..3", drop=[1])
    assert (named.name, named.origin, named.place(0)) == ("mine", "file", f"{path}:5:5")
    assert named.place(0, "where", "drop") == f"{path}:8:33"
    assert named.document.where(("patterns", "mixer", "dataflow")) == f"{path}:10:36"
    assert (data.name, data.origin, data.place(0, "at")) == ("rules", "dict", "<dict>: rules[0].at")
    assert (shipped.name, shipped.origin) == ("tri_res", "shipped")


def test_operations_of_a_unit_are_a_list_or_words():
    one, other = (
        rules.load({"rules": [{"at": "mha", "on": on, "insert": "lora"}]})[0].rules[0]
        for on in (["q_proj", "v_proj"], "q_proj v_proj")
    )
    assert one == other
    assert (one.on, one.target) == (["q_proj", "v_proj"], "mha.q_proj, v_proj")
    (whole,) = rules.load({"rules": [{"at": "mha", "insert": "lora"}]})[0].rules
    assert (whole.on, whole.target) == ([], "mha")


def test_a_dict_may_say_little():
    (rule_set,) = rules.load({})
    assert (rule_set.train, rule_set.rules) == (("tuners", "head if any"), ())


@given(st.sampled_from(sorted(SHIPPED)), st.data())
def test_a_misspelt_name_gets_the_closest(name, data):
    i = data.draw(st.integers(0, len(name) - 1))
    misspelt = name[:i] + "z" + name[i + 1 :]
    with pytest.raises(RuleError) as error:
        rules.load(misspelt)
    assert name in error.value.found
    assert "fxtune methods" in error.value.fix


@pytest.mark.parametrize("nothing", [[], 3, None, [3], [["tri_res"]], {"tri_res"}])
def test_what_is_no_rule_set_is_refused(nothing):
    with pytest.raises(RuleError, match="rules="):
        rules.load(nothing)


def test_a_missing_file_is_named():
    with pytest.raises(SourceError, match=r"no_such\.yaml"):
        rules.load("no_such.yaml")


PUBLISHED = {  # methods in their original placement: the sites of their rules
    "adapter": ["ffn"],
    "adapter_houlsby": ["mha", "ffn"],
    "adaptformer": ["ffn_residual"],
    "bitfit": ["biased"],
    "convpass": ["mha", "ffn"],
    "full": [],
    "linear": [],
    "lora": ["mha.q_proj, k_proj, v_proj", "convolution", "pointwise"],
    "mam_adapter": ["mha", "ffn"],
    "noah": ["block", "mha.q_proj, v_proj", "ffn"],
    "prefix": ["mha"],
    "prompt": ["mha"],
    "ssf": ["convolution", "norm", "linear"],
    "vpt_deep": ["block"],
    "vpt_shallow": ["block"],
}


TABLE_2 = {
    **{f"single_{tuner}_{op}": [(op, tuner)] for tuner in TUNERS for op in ("mha", "ffn", "block")},
    **{f"dual_{first}_{second}": [("mha", first), ("ffn", second)] for first in TUNERS for second in TUNERS},
    "dual_res": [("mha", "adapter"), ("ffn", "adapter")],
    "tri_res": [("mha", "adapter"), ("ffn", "adapter"), ("block", "adapter")],
    "tri_res_prefix": [("mha", "adapter"), ("ffn", "adapter"), ("block", "prefix")],
    "tri_res_prompt": [("mha", "adapter"), ("ffn", "adapter"), ("block", "prompt")],
}
"""Every cell of the paper's Table 2: which tuner goes where."""
del TABLE_2["dual_adapter_adapter"]  # it is dual_res


BESIDE = {
    "lst": {"reduce": 16, "temperature": 0.1, "mixed": {"side_block": {"mlp_ratio": 4}}},
    "side_tuning": {"along": "backbone", "vertical": {"side_network": {}}},
}
BYPASS = {
    "res_bypass": ["horizontal", "vertical"],
    "res_bypass_horizontal": ["horizontal"],
    "res_bypass_vertical": ["vertical"],
    "res_bypass_none": [],
}


def test_every_cell_of_table_2_is_a_rule_set():
    found = {rule_set.name: rule_set for rule_set in rules.shipped()}
    assert len(TABLE_2) == 9 + 9 + 3
    assert set(found) == SHIPPED == {*TABLE_2, *PUBLISHED, *BYPASS, *BESIDE}
    for name, cells in TABLE_2.items():
        assert [(rule.at, rule.tuner) for rule in found[name].rules] == [(at, f"res_{tuner}") for at, tuner in cells]
        assert all(rule.settings.get("tokens", rule.settings.get("dim")) == 10 for rule in found[name].rules)
        assert "Res-Tuning" in found[name].about
    trains = {"full": ("all",), "linear": ("head",)}
    for name, rule_set in found.items():
        assert rule_set.train == trains.get(name, ("tuners", "head if any")) and rule_set.about
    for name, targets in PUBLISHED.items():
        assert [rule.target for rule in found[name].rules] == targets


@pytest.mark.parametrize(("name", "said"), BESIDE.items())
def test_a_network_beside_is_a_bypass(name, said):
    (rule_set,) = rules.load(name)
    assert rule_set.rules == () and rule_set.bypass.model_dump(exclude_unset=True) == said


@pytest.mark.parametrize(("name", "sides"), BYPASS.items())
def test_a_bypass_has_its_tuners(name, sides):
    (rule_set,) = rules.load(name)
    assert rule_set.rules == () and list(rule_set.bypass.tuners) == sides
    assert all(insert == {"res_adapter": {"dim": 10}} for insert in rule_set.bypass.tuners.values())


def test_the_schema_describes_every_key():
    schema = rules.schema()
    assert json.loads(json.dumps(schema)) == schema
    models = {"RuleFile": schema, **schema["$defs"]}
    assert set(models) == {"RuleFile", "Rule", "Bypass", "Where", "PatternSpec"}
    for model in models.values():
        assert model["additionalProperties"] is False
        assert all(text.get("description") for text in model["properties"].values())
    assert schema["required"] == ["fxtune", "name"]


def test_rules_are_listed_without_torch():
    code = "import sys, fxtune.rules as r; r.shipped(); r.schema(); sys.exit('torch' in sys.modules)"
    root = Path(__file__).resolve().parent.parent
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


@pytest.mark.parametrize("named", [["lora", "lora"], ["prefix", "lora", Path("prefix.yaml")]], ids=str)
def test_a_rule_set_named_twice_is_refused(named, tmp_path):
    shutil.copy(rules_dir() / "prefix.yaml", tmp_path / "prefix.yaml")
    given = [tmp_path / rule if isinstance(rule, Path) else rule for rule in named]
    with pytest.raises(RuleError, match=f"names the rule set '{named[0]}' twice"):
        rules.load(given)
    own = {"rules": [{"at": "ffn", "insert": "res_adapter"}]}
    assert len(rules.load([own, {"rules": [*own["rules"], *own["rules"]]}])) == 2, "different rules under one name"
