from __future__ import annotations

import json
from textwrap import dedent
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from qdq.errors import RecipeError
from qdq.quantization.slot import Slot
from qdq.quantization.spec import PerAxis, QuantSpec
from qdq.recipes.recipe import Recipe, Rule, load_recipe, presets
from qdq.recipes.refinement import Refinement

if TYPE_CHECKING:
    from pathlib import Path

INT8, INT4 = QuantSpec(), QuantSpec(bits=4)


def slot(module: str, kind: str = "linear", name: str = "input") -> Slot:
    return Slot(module, kind, name)


SLOTS = [
    slot("embeddings.word", "embedding", "weight"),
    *(slot(f"encoder.layers.{n}.query", "linear", name) for n in (0, 1, 10) for name in ("input", "weight")),
    *(slot(f"encoder.layers.{n}.scores", "matmul", name) for n in (0, 1, 10) for name in ("input", "other")),
    slot("pooler.dense", "linear", "input"),
    slot("pooler.dense", "linear", "weight"),
]


def rule(module: str = "*", spec: QuantSpec | None = INT8, **settings: Any) -> Rule:
    return Rule(module=module, spec=spec, **{"slot": "*", **settings})


def recipe(*rules: Rule, **settings: Any) -> Recipe:
    return Recipe(name="test", rules=rules, **settings)


def chosen(recipe: Recipe) -> list[str]:
    return [str(slot) for slot, spec in recipe.assign(SLOTS).items() if spec is not None]


def problems_of(text: str, tmp_path: Path) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert str(path) in str(caught.value)
    return str(caught.value).removeprefix(str(path))


# --- presets ---


def test_presets_are_what_the_package_ships() -> None:
    calibrated = {"fp8", "linear", "onnxruntime", "openvino", "qdqbert", "tensorrt"}
    assert set(presets()) == calibrated | {"dynamic", "weight-only-int8", "weight-only-int4"}


@pytest.mark.parametrize("name", list(presets()))
def test_preset_names_its_schema_and_says_what_it_is_for(name: str) -> None:
    schema, comment = presets()[name].read_text(encoding="utf-8").splitlines()[:2]
    key, _, file = schema.partition("=")
    assert key == "# yaml-language-server: $schema"
    assert (presets()[name].parent / file).is_file()
    assert comment.startswith("# ")


@pytest.mark.parametrize("name", list(presets()))
def test_preset_loads_under_its_own_name_and_survives_json(name: str) -> None:
    loaded = load_recipe(name)
    assert loaded.name == name
    assert Recipe.from_dict(json.loads(json.dumps(loaded.to_dict()))) == loaded
    assert load_recipe(presets()[name]) == loaded, "by path, too"


@pytest.mark.parametrize("name", list(presets()))
def test_preset_means_what_plain_yaml_says(name: str) -> None:
    """The same file through PyYAML's own loader: every rule with the spec of its name."""
    values = yaml.safe_load(presets()[name].read_text(encoding="utf-8"))
    loaded = load_recipe(name)
    assert len(loaded.rules) == len(values["rules"])
    for rule, given in zip(loaded.rules, values["rules"], strict=True):
        assert (rule.module, rule.kind, rule.slot) == (given["module"], given.get("kind"), given["slot"])
        assert rule.spec == QuantSpec.from_dict(values["specs"][given["spec"]])


def test_presets_for_the_runtimes_keep_to_their_limits() -> None:
    for rule in load_recipe("tensorrt").rules:
        assert rule.spec is not None
        assert rule.spec.symmetric
        assert rule.spec.signed, "TensorRT takes symmetric int8 alone"
    for name in ("onnxruntime", "openvino"):
        rules = [rule for rule in load_recipe(name).rules if rule.kind == "linear" and not rule.optional]
        specs = {rule.slot: rule.spec for rule in rules}
        assert specs["input"] == QuantSpec(signed=False, symmetric=False)
        assert specs["weight"] == QuantSpec(granularity=PerAxis(0), overflow_safe=True)


# --- which rule decides ---


def test_last_match_wins() -> None:
    first, last = rule(spec=INT8), rule("encoder.layers.1.*", spec=INT4)
    assert recipe(first, last).assign(SLOTS)[slot("encoder.layers.1.query")] == INT4
    assert recipe(last, first).assign(SLOTS)[slot("encoder.layers.1.query")] == INT8
    assert recipe(first, last).assign(SLOTS)[slot("encoder.layers.10.query")] == INT8, "1 is not 10"


def test_off_takes_slots_out_again() -> None:
    got = chosen(recipe(rule(kind="linear"), rule("pooler*", spec=None)))
    assert got == [str(s) for s in SLOTS if s.kind == "linear" and s.module != "pooler.dense"]


def test_no_rule_no_spec_and_every_slot_is_answered() -> None:
    specs = recipe(rule("pooler.*", slot="weight")).assign(SLOTS)
    assert list(specs) == SLOTS
    assert chosen(recipe(rule("pooler.*", slot="weight"))) == ["pooler.dense.weight"]


def test_kind_and_slot_narrow_a_rule() -> None:
    assert chosen(recipe(rule("*.0.*", kind="matmul"))) == [
        "encoder.layers.0.scores.input",
        "encoder.layers.0.scores.other",
    ]
    assert chosen(recipe(rule("*.0.*", slot="input"))) == [
        "encoder.layers.0.query.input",
        "encoder.layers.0.scores.input",
    ]


def test_patterns_mind_upper_and_lower_case() -> None:
    with pytest.raises(RecipeError, match="matches nothing"):
        recipe(rule("Encoder.*")).assign(SLOTS)


def test_an_optional_rule_may_match_nothing() -> None:
    optional = rule("head.decoder", optional=True)
    assert chosen(recipe(rule("pooler.*", slot="weight"), optional)) == ["pooler.dense.weight"]
    assert chosen(recipe(rule("pooler.*", slot="weight", optional=True))) == ["pooler.dense.weight"]
    again = Recipe.from_dict(recipe(rule(), optional).to_dict())
    assert [one.optional for one in again.rules] == [False, True]
    assert "optional" not in rule().to_dict()
    with pytest.raises(RecipeError, match=r"optional is 'yes', must be true or false"):
        Recipe.from_dict({"name": "x", "rules": [{**rule().to_dict(), "optional": "yes"}]})


def test_include_and_exclude_have_the_last_word() -> None:
    everything = recipe(rule())
    included = everything.restrict(include=["encoder.layers.0.*", "pooler.*"])
    assert {name.split(".")[0] for name in chosen(included)} == {"encoder", "pooler"}
    assert len(chosen(included)) == 6
    both = included.restrict(exclude=["*.scores", "pooler.dense.weight"])
    assert chosen(both) == ["encoder.layers.0.query.input", "encoder.layers.0.query.weight", "pooler.dense.input"]
    assert chosen(everything) == [str(s) for s in SLOTS], "restrict makes a new recipe"
    assert Recipe.from_dict(both.to_dict()) == both


def test_what_matches_nothing_is_a_mistake_and_all_are_named() -> None:
    wrong = recipe(rule(), rule("encodr.*", kind="linear"), rule("pooler.*", slot="other", spec=None))
    wrong = wrong.restrict(include=["pooler.*", "pooller"], exclude=["decoder.*"])
    with pytest.raises(RecipeError) as caught:
        wrong.assign(SLOTS)
    text = str(caught.value)
    for word in ("'test'", "'encodr.*'", "kind: linear", "slot: 'other', spec: off", "include pattern 'pooller'"):
        assert word in text
    assert "exclude pattern 'decoder.*'" in text
    assert "'pooler.*' matches" not in text
    assert "encoder.layers.0.query" in text, "the message shows what names look like"


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("encodr.*", "encoder.layers.0.query"),
        ("encoder.layer.0.qery", "encoder.layers.0.query"),
        ("*.querry", "encoder.layers.0.query"),
        ("encoder.layers.77.scores", "encoder.layers.0.scores"),
        ("embedding.words", "embeddings.word"),
        ("poler", "pooler.dense"),
    ],
)
def test_a_pattern_without_match_comes_with_the_nearest_names(pattern: str, hint: str) -> None:
    for wrong in (recipe(rule(pattern)), recipe(rule()).restrict(exclude=[pattern])):
        with pytest.raises(RecipeError) as caught:
            wrong.assign(SLOTS)
        nearest = str(caught.value).partition("nearest to it: ")[2].split(", ")
        assert hint == nearest[0]
        assert not any("layers.1" in name for name in nearest), "one layer stands for all"


def test_a_name_without_that_slot_says_which_it_has() -> None:
    with pytest.raises(RecipeError, match=r"it names has kind matmul: input, other$"):
        recipe(rule("*.scores", slot="weight")).assign(SLOTS)
    with pytest.raises(RecipeError, match=r"it names has kind linear: input, weight; kind matmul: input, other$"):
        recipe(rule("encoder.*", kind="add")).assign(SLOTS)


def test_a_pattern_like_nothing_shows_how_names_begin() -> None:
    with pytest.raises(RecipeError, match=r"names are like embeddings\.word, encoder\.layers\.0\.query, "):
        recipe(rule("xyz")).assign(SLOTS)


def test_a_rule_for_several_kinds(tmp_path: Path) -> None:
    several = recipe(rule("*.0.*", kind=("linear", "matmul"), slot="input"))
    assert chosen(several) == ["encoder.layers.0.query.input", "encoder.layers.0.scores.input"]
    assert Recipe.from_dict(json.loads(json.dumps(several.to_dict()))) == several
    text = "name: a\nrules: [{module: a, kind: [linear, add], slot: input, spec: {}}]\n"
    (tmp_path / "a.yaml").write_text(text)
    (read,) = load_recipe(tmp_path / "a.yaml").rules
    assert read.kind == ("linear", "add")
    assert "kind: [linear, add]" in str(read)


def test_model_without_slots_says_so() -> None:
    with pytest.raises(RecipeError, match="no slots"):
        recipe(rule()).assign([])


# --- files ---


def test_file_with_everything(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        """
name: mine
specs:
  weight: &weight {granularity: per-axis(0)}
  narrow: {<<: *weight, narrow_range: true}
rules:
  - {module: "*", slot: weight, spec: narrow}
  - {module: "*", slot: input, spec: {bits: 4, signed: false, symmetric: false}}
  - {module: "pooler.*", slot: "*", spec: off}
  - {module: "*.10.*", slot: "*", spec: "off"}
include: ["encoder.*"]
exclude: ["*.scores"]
""",
        encoding="utf-8",
    )
    loaded = load_recipe(str(path))
    weight, activation, off, quoted = (rule.spec for rule in loaded.rules)
    assert weight == QuantSpec(granularity=PerAxis(0), narrow_range=True)
    assert activation == QuantSpec(bits=4, signed=False, symmetric=False)
    assert off is None
    assert quoted is None
    assert (loaded.include, loaded.exclude) == (("encoder.*",), ("*.scores",))


def test_all_mistakes_come_with_their_lines(tmp_path: Path) -> None:
    text = problems_of(
        """name: 5
foo: 1
specs:
  a: 1
  b:
    bitz: 3
    bits: 99
  c: {bits: 4}
rules:
  - hello
  - {module: "*", slot: input, spec: b}
  - module: 3
    slot: in
    kind: conv
    spec: zzz
    oops: true
  - {module: "*", slot: input, spec: {bits: true, signed: yes}}
  - {}
include: a
exclude: [1]
""",
        tmp_path,
    )
    expected = {
        1: ["name is 5"],
        2: ["unknown key 'foo'"],
        4: ["spec 'a' is 1"],
        6: ["b: unknown key 'bitz'"],
        7: ["b: bits is 99"],
        10: ["rule 'hello' is not a mapping"],
        12: ["module is 3"],
        13: ["slot is 'in', must be one of input, weight, other, *"],
        14: ["kind is 'conv', must be one of linear, embedding, matmul, add"],
        15: ["spec is 'zzz', must be one of off, a, b, c"],
        16: ["unknown key 'oops'"],
        17: ["spec: bits is True", "spec: signed is 'yes'"],
        18: ["needs the key 'module'", "needs the key 'slot'", "needs the key 'spec'"],
        19: ["include is not a list"],
        20: ["exclude has 1, must be a pattern"],
    }
    count = sum(map(len, expected.values()))
    assert f"{count} problems" in text
    for line, words in expected.items():
        for word in words:
            assert any(f"line {line}: " in entry and word in entry for entry in text.splitlines()), (line, word)


def test_mistakes_in_settings_come_with_their_own_lines(tmp_path: Path) -> None:
    text = problems_of(
        """name: a
specs:
  one:
    bits: [8]
    dynamic: 1
    learned_scale: maybe
    arithmetic: numpy
    granularity: per-group(0)
  two:
    dynamic: true
    granularity: per-tensor
    learned_scale: true
  three:
    symmetric: false
    granularity: per-token
    arithmetic: pytorch-quantization
rules: [{module: a, slot: input, spec: one}]
""",
        tmp_path,
    )
    expected = {
        4: ["one: bits is [8], must be a single value"],
        5: ["one: dynamic is 1, must be true or false"],
        6: ["one: learned_scale is 'maybe'"],
        7: ["one: arithmetic is 'numpy', must be one of onnx, pytorch-quantization"],
        8: ["one: granularity is 'per-group(0)'"],
        12: ["two: learned_scale and dynamic exclude each other"],
        15: ["three: granularity per-token needs dynamic"],
        16: ["symmetric", "has no granularity per-token"],
    }
    assert f"{sum(map(len, expected.values()))} problems" in text
    for line, words in expected.items():
        for word in words:
            assert any(f"line {line}: " in entry and word in entry for entry in text.splitlines()), (line, word)


def test_more_mistakes_than_a_screen_holds_are_all_listed(tmp_path: Path) -> None:
    rules = "".join("  - {module: a, slot: nothing, spec: off}\n" for _ in range(100))
    text = problems_of(f"name: a\nrules:\n{rules}", tmp_path)
    assert [f"line {line}: " in text for line in range(3, 103)] == [True] * 100


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "a recipe is a mapping"),
        ("# nothing\n", "a recipe is a mapping"),
        ("- a\n- b\n", "a recipe is a mapping"),
        ("linear", "a recipe is a mapping"),
        ("{}", "name is missing"),
        ("name: a\n", "rules is missing"),
        ("name: a\nrules: []\n", "line 2: rules is not a list with at least one rule"),
        ("name: a\nrules: 3\nspecs: 4\n", "line 3: specs is not a mapping"),
        ("name: a\nrules:\n  - {module: a, slot: b\n", "not a YAML file"),
        ("name: a\n\trules: 1\n", "not a YAML file"),
        ("name: a\n---\nname: b\n", "not a YAML file"),
        ("name: 2020\n", "line 1: name is 2020, must be text"),
        (
            "name: !!python/object/apply:os.getcwd []\n",
            "line 1: the type !!python/object/apply:os.getcwd is not allowed",
        ),
        ("\n? [a, b]\n: c\n", "line 2: a key must be text"),
        ("&a {name: *a}\n", "line 1: an alias stands inside what it refers to"),
        ("[" * 2000, "not a YAML file"),
        ("\x00\x01\x02", "not a YAML file"),
        (
            "name: a\nrules: [{module: x, slot: input, spec: off}]\nrules: []\n",
            "line 3: the key 'rules' is given more",
        ),
        ("name: a\nrules:\n  - {module: x, slot: input, spec: off, slot: weight}\n", "line 3: the key 'slot' is given"),
        (
            "name: a\nspecs:\n  x: {bits: 8, bits: 4}\nrules: [{module: a, slot: input, spec: x}]\n",
            "line 3: the key 'bits'",
        ),
        ("name: a\nspecs: {x: {}, x: {}}\nrules: [{module: a, slot: input, spec: x}]\n", "line 2: the key 'x'"),
        ("name: a\nrules: [{module: a, slot: input, spec: }]\n", "spec is None"),
        ("name: a\nrules: [{module: a, slot: input, spec: false}]\n", "spec is False"),
        ("name: a\nrules: [{module: a, slot: [input], spec: off}]\n", "slot is ['input']"),
        ("name: a\nrules: [{module: a, kind: [linear, conv], slot: input, spec: off}]\n", "kind is ['linear', 'conv']"),
        ("name: a\nrules: [{module: a, kind: [], slot: input, spec: off}]\n", "kind is []"),
        (
            "name: a\nspecs: {off: {}}\nrules: [{module: a, slot: input, spec: off}]\n",
            "line 2: the name of a spec is 'off'",
        ),
        ("name: a\nspecs: {8: {}}\nrules: [{module: a, slot: input, spec: off}]\n", "line 2: the name of a spec is 8"),
        ("nam: a\n", "line 1: unknown key 'nam' in a recipe; did you mean 'name'?"),
        ("name: ''\nrules: [{module: a, slot: input, spec: off}]\n", "name is ''"),
        ("1: 2\n", "unknown key 1"),
    ],
    ids=range(31),
)
def test_files_that_are_no_recipe(text: str, word: str, tmp_path: Path) -> None:
    assert word in problems_of(text, tmp_path)


def test_binary_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(range(256)))
    with pytest.raises(RecipeError, match="not a YAML file"):
        load_recipe(path)


@pytest.mark.parametrize("name", ["tensort", "no/such/file.yaml", "", "."])
def test_neither_preset_nor_file(name: str) -> None:
    with pytest.raises(RecipeError, match=r"neither a file nor one of the presets dynamic, fp8, linear, onnxruntime"):
        load_recipe(name)


def test_a_preset_almost_by_its_name() -> None:
    with pytest.raises(RecipeError, match=r"did you mean weight-only-int4\?"):
        load_recipe("weight_only_int4")
    with pytest.raises(RecipeError, match=r"neither a file"):
        load_recipe("a" * 5000)


def test_plain_values_have_no_lines_and_all_their_mistakes() -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_dict({"name": "x", "rules": [{"module": "a"}, 3]}, source="export.json")
    assert str(caught.value).startswith("export.json: 3 problems")
    assert "line" not in str(caught.value)
    with pytest.raises(RecipeError, match="a recipe is a mapping"):
        Recipe.from_dict([])  # type: ignore[arg-type]


def test_refinement_is_read_kept_and_left_out_where_there_is_none(tmp_path: Path) -> None:
    rules = "rules: [{module: '*', slot: weight, spec: {bits: 8}}]"
    (tmp_path / "r.yaml").write_text(f"name: r\n{rules}\nrefinement: {{smoothing: 0.5, rounding: gptq}}\n")
    recipe = load_recipe(tmp_path / "r.yaml")
    assert recipe.refinement == Refinement(smoothing=0.5, rounding="gptq")
    assert recipe.refinement.has_transforms
    assert recipe.refinement.is_layerwise
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    (tmp_path / "plain.yaml").write_text(f"name: r\n{rules}\n")
    plain = load_recipe(tmp_path / "plain.yaml")
    assert not plain.refinement
    assert "refinement" not in plain.to_dict()


def test_mistakes_in_a_refinement_come_with_their_lines(tmp_path: Path) -> None:
    text = """\
        name: r
        rules: [{module: "*", slot: weight, spec: {bits: 8}}]
        refinement:
          smoothing: 2
          shift: perhaps
          rounding: up
          bias: true
        """
    (tmp_path / "r.yaml").write_text(dedent(text))
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "r.yaml")
    message = str(caught.value)
    for line, words in (
        (4, "smoothing is 2, must be a number from 0 to 1"),
        (5, "shift is 'perhaps', must be true or false"),
        (6, "rounding is 'up', must be one of nearest, gptq"),
        (7, "unknown key 'bias' (known: shift, smoothing, bias_correction, clipping, rounding)"),
    ):
        assert f"line {line}: refinement: {words}" in message


def test_refinement_of_the_presets() -> None:
    refined = {name for name in presets() if load_recipe(name).refinement}
    assert refined == {"onnxruntime", "openvino", "tensorrt", "linear"}
    assert len({load_recipe(name).refinement for name in refined}) == 1
