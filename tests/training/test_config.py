"""Settings: what a file may say, everything that is wrong at once, and the way there and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from suture.errors import InputError, UsageError
from suture.training.config import AdapterConfig, DataConfig, RunConfig, changed_fields, dump, load
from suture.training.yamlfile import parse, to_text

LEAST = "base: some/model\nout: runs/a\ndata: {train: train.jsonl}\n"


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "run.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def wrong(folder: Path, text: str, overrides: tuple[str, ...] = ()) -> str:
    """The complaint about a file, which is a usage error and nothing else."""
    with pytest.raises(UsageError) as caught:
        load(write(folder, text), overrides)
    assert caught.value.where == str(folder / "run.yaml")
    return caught.value.found


def test_the_least_file_gets_the_defaults(tmp_path):
    config = load(write(tmp_path, LEAST))
    assert config == RunConfig(base="some/model", out=Path("runs/a"), data=DataConfig(train="train.jsonl"))
    assert config.adapter == AdapterConfig()
    assert config.embedding_rate == config.lr / 10


def test_paths_stay_relative_to_the_current_folder_and_a_tilde_is_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = load(write(tmp_path, "base: ~/model\nout: runs/a\ndata: {train: ../t.jsonl, template: ~/x.jinja}\n"))
    assert config.out == Path("runs/a")
    assert config.data.train == "../t.jsonl"
    assert (config.base, config.data.template) == (str(tmp_path / "model"), tmp_path / "x.jinja")


def test_every_setting_is_described():
    for model in (RunConfig, DataConfig, AdapterConfig):
        for name, field in model.model_fields.items():
            assert field.description, name
            assert field.description.endswith(")" if field.description.endswith(")") else "."), name


def test_overrides_are_yaml_and_reach_every_depth(tmp_path):
    overrides = (
        "adapter.rank=32",
        "save=[embed_tokens, lm_head]",
        "lr=1e-4",
        "data.fields.messages=conversations",
        "adapter.targets=[q_proj]",
        "adapter.rank_pattern.layers.0.q_proj=8",
        "tensorboard=false",
        "new_tokens={<think>: think, <end>: null}",
        "data.eval=a=b.jsonl",
    )
    config = load(write(tmp_path, LEAST + "adapter: {alpha: 8}\n"), overrides)
    assert (config.adapter.rank, config.adapter.alpha, config.lr) == (32, 8, 1e-4)
    assert config.save == ["embed_tokens", "lm_head"]
    assert config.data.fields == {"messages": "conversations"}
    assert config.adapter.rank_pattern == {"layers.0.q_proj": 8}
    assert config.tensorboard is False
    assert config.new_tokens == {"<think>": "think", "<end>": None}
    assert config.data.eval == "a=b.jsonl"


def test_everything_wrong_is_said_at_once(tmp_path):
    found = wrong(
        tmp_path,
        "out: x\ndata: {train: a, max_length: one}\nadapter: {rank: 0, rnk: 2, targets: [q_proj, lm_head]}\n"
        "rank: 3\nlr: fast\nschedule: round\ntensorboard: no\nsave: [lm_head]\nearly_stop: 2\nbatch_size: 1.5\n",
        ("keep", "seed=[", "lr.x=1", "data.packing=2"),
    )
    lines = found.split("\n  ")
    assert lines[0] == "14 settings are wrong"
    assert [line.split(" ", 1)[0] for line in lines[1:]] == [f"{n}." for n in range(1, 15)]
    for part in (
        "'keep' on the command line; expected name=value",
        "seed: '[' on the command line is not YAML",
        "lr.x: set on the command line inside something that is not a mapping",
        "base: missing; expected the base model: a folder, or a name on the Hugging Face Hub",
        "data.max_length: 'one'; expected a whole number",
        "data.packing: 2; expected true or false",
        "adapter.rank: 0; expected at least 1",
        "adapter.rnk: no such setting; did you mean adapter.rank?",
        "rank: no such setting; did you mean adapter.rank?",
        "lr: 'fast'; expected a number",
        "schedule: 'round'; expected 'linear', 'cosine' or 'constant'",
        "tensorboard: 'no'; expected true or false",
        "early_stop: 2, but no evaluations to count; expected eval_every, in steps",
        "batch_size: 1.5; expected a whole number",
    ):
        assert part in found


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            "save: [lm_head]\nadapter: {targets: [q_proj, lm_head]}",
            "save: lm_head, which adapter.targets names as well",
        ),
        ("save: [model.lm_head]\nadapter: {targets: [lm_head]}", "both trained in full and have LoRA"),
        ("save: [a, a]", "save: 'a' more than once"),
        ("new_tokens: [<a>, <b>, <a>]", "new_tokens: '<a>' more than once"),
        ("new_tokens: ['']", "new_tokens[0]: ''; expected text that is not empty"),
        ("new_tokens: [1]", "new_tokens[0]: 1 (put it in quotes if it is meant as text); expected text"),
        ("new_rows: only", "new_rows: only, without new_tokens"),
        ("adapter: {targets: []}", "adapter.targets: an empty list"),
        ("adapter: {targets: '(q'}", "adapter.targets: '(q' is no regular expression"),
        ("adapter: {targets: [q, v], exclude: [v]}", "adapter.exclude: v in targets as well"),
        ("adapter: {rank_pattern: {'(': 2}}", "adapter.rank_pattern: '(' is no regular expression"),
        ("adapter: {method: dora, parameters: [experts.down]}", "adapter.parameters: set with method: dora"),
        ("adapter: {dropout: 0.1, parameters: [experts.down]}", "adapter.parameters: set with a dropout"),
        ("adapter: {init: orthogonal, rank: 3}", "adapter.init: orthogonal with rank 3; expected even ranks"),
        ("adapter: [q_proj]", "adapter: ['q_proj']; expected a mapping"),
        ("adapter: {rank: true}", "adapter.rank: true; expected a whole number"),
        ("adapter: {rank: '8'}", "adapter.rank: '8'; expected a whole number"),
        ("warmup: 1.5", "warmup: 1.5; expected a share below 1, or a whole number of steps"),
        ("lr: 0", "lr: 0; expected above 0"),
        ("lr: .inf", "lr: '.inf'; expected a number"),
        ("eval_every: null\nearly_stop: 3", "early_stop: 3, but no evaluations"),
        ("quantise: nf4", "quantise: no such setting; did you mean quantize?"),
        ("xyzzy: 4", "xyzzy: no such setting"),
    ],
)
def test_what_makes_no_sense_is_named(tmp_path, more, said):
    found = wrong(tmp_path, LEAST + more + "\n")
    assert found.startswith("1 setting is wrong\n")
    assert said in found


def test_evaluation_needs_something_to_evaluate_on(tmp_path):
    none = LEAST.replace("}", ", eval_share: 0}") + "eval_every: 5\n"
    assert "eval_every: 5, but nothing to evaluate on" in wrong(tmp_path, none)
    assert load(write(tmp_path, none), ["data.eval=e.jsonl"]).eval_every == 5


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        ("base: x\nout: [1, 2\ndata: 3\n", ", line 3, column 5", "expected ',' or ']'"),
        ("base: x\nlr: 1\nlr: 2\n", ", line 3, column 1", "the key 'lr' again"),
        ("base: &a x\nout: *a\n", ", line 2, column 6", "an alias"),
        ("base: !!python/object/apply:os.getcwd []\n", ", line 1, column 7", "could not determine a constructor"),
        ("? [a]\n: 3\n", ", line 1, column 3", "a key that is not a word"),
        ("- base: x\n", "", "a list at top level"),
        ("base\n", "", "a text at top level"),
        ("base: \x07\n", "", "not YAML"),
        ("base: " + "[" * 5000, "", "nested too deeply"),
    ],
)
def test_broken_yaml_is_named_with_its_place(tmp_path, text, place, said):
    path = write(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        load(path)
    assert caught.value.where == f"{path}{place}"
    assert said in caught.value.found


def test_files_that_are_none(tmp_path):
    cases: list[tuple[Path, str]] = [
        (tmp_path / "no.yaml", "no such file"),
        (tmp_path, "a folder"),
        (write(tmp_path, b"a: \xff"), "byte 3 is not UTF-8"),
    ]
    for path, said in cases:
        with pytest.raises(InputError, match=said):
            load(path)
    with pytest.raises(InputError, match="more than 1 MiB"):
        load(write(tmp_path, "#" * (1 << 20) + "#"))


def test_an_empty_file_misses_what_is_required(tmp_path):
    found = wrong(tmp_path, "# nothing\n")
    assert all(f"{name}: missing" in found for name in ("base", "out", "data"))


def test_dump_reads_back(tmp_path):
    text = (
        LEAST + "lr: 1e-5\nnew_tokens: {1e-4: 'no', '012': null, '~': '1:30'}\nadapter: {rank_pattern: {b: 1, a: 2}}\n"
    )
    text = text.replace("1e-4:", "'1e-4':")
    config = load(write(tmp_path, text))
    again = load(write(tmp_path, dump(config)))
    assert again == config
    assert list(again.adapter.rank_pattern) == ["a", "b"]
    assert yaml.safe_load(dump(config))["new_tokens"] == config.new_tokens  # and other readers agree


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    )
)
def test_text_of_any_plain_value_reads_back(value: Any):
    assert parse(to_text(value)) == value


@given(st.text(max_size=40) | st.binary(max_size=40))
def test_any_file_is_a_mapping_or_a_named_error(tmp_path_factory, content):
    path = write(tmp_path_factory.mktemp("any"), content)
    with pytest.raises((UsageError, InputError)) as caught:
        load(path)  # too short for all that is required
    assert caught.value.where.startswith(str(path))


@given(
    st.dictionaries(
        st.sampled_from([*RunConfig.model_fields, "rank"]),
        st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.lists(st.text(max_size=3), max_size=2),
    )
)
def test_settings_of_any_kind_are_named_errors(tmp_path_factory, values):
    path = write(tmp_path_factory.mktemp("any"), to_text({**values, "data": {}}))
    with pytest.raises(UsageError, match=r"data.train: missing"):
        load(path)


def test_what_the_user_set_is_known(tmp_path):
    path = write(tmp_path, LEAST + "adapter: {alpha: 32}\nsave: []\n")
    names = changed_fields(load(path, ["adapter.rank=16", "data.packing=true"]))
    assert set(names) == {"base", "out", "data.train", "data.packing", "adapter.alpha", "adapter.rank", "save"}
    assert not [name for name in changed_fields(load(write(tmp_path, LEAST))) if name.startswith("adapter")]
