import json
import os
import tracemalloc
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from suture.errors import FormatError, InputError
from suture.formats import jsonfile
from suture.formats.jsonfile import MAX_JSON_BYTES, parse_json_object, read_json_object

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
objects = st.dictionaries(st.text(st.characters(codec="utf-8")), values, max_size=5)


@given(objects, st.booleans())
def test_objects_come_back_as_they_were(value, ascii_only):
    assert parse_json_object(json.dumps(value, ensure_ascii=ascii_only).encode(), "x") == value


@given(st.binary(max_size=40) | st.text(alphabet='{}[]",:0\\u').map(str.encode))
def test_any_bytes_give_an_object_or_a_format_error(raw):
    with suppress(FormatError):
        assert isinstance(parse_json_object(raw, "x"), dict)


def test_infinity_is_kept_as_configs_of_real_models_have_it():
    assert parse_json_object(b'{"time_step_limit": [0.0, Infinity]}', "x") == {"time_step_limit": [0.0, float("inf")]}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "malformed JSON"),
        (b"[1]", "a list"),
        (b"null", "a NoneType"),
        (b'{"a": 1, "b": {"c": 1, "c": 1}}', "'c' appears twice"),
        (b'{"a": ' + b"[" * 70 + b"]" * 70 + b"}", "nested too deeply"),
        (b'{"a": ' + b"[" * 10**6 + b"]" * 10**6 + b"}", "nested too deeply"),
        (b'{"a": ' + b'{"b":' * 10**5 + b"1" + b"}" * 10**5 + b"}", "nested too deeply"),
        (b'{"a": ' + b"1" * 5000 + b"}", "malformed JSON"),
        (b'{"a": "\\udfff"}', "UTF-8"),
        (b'{"a": "\xff"}', "UTF-8"),
        (b'{"a": "line\nbreak"}', "malformed JSON"),
    ],
)
def test_malformed_files_are_refused(raw, message, tmp_path):
    (tmp_path / "c.json").write_bytes(raw)
    with pytest.raises(FormatError, match=message) as caught:
        read_json_object(tmp_path / "c.json")
    assert caught.value.where == str(tmp_path / "c.json")


def test_a_file_over_the_limit_is_not_read(tmp_path):
    path = tmp_path / "c.json"
    path.touch()
    os.truncate(path, MAX_JSON_BYTES + 1)  # a sparse file
    tracemalloc.start()
    with pytest.raises(FormatError, match=f"at most {MAX_JSON_BYTES}"):
        read_json_object(path)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("unit", [b"[],", b"{},", b'"",', b"0,"])
def test_parsing_is_bounded_in_memory(unit, monkeypatch):
    monkeypatch.setattr(jsonfile, "MAX_JSON_VALUES", 100_000)
    raw = b'{"a": [' + unit * (jsonfile.MAX_JSON_BYTES // 8 // len(unit)) + b"0]}"
    tracemalloc.start()
    with pytest.raises(FormatError, match="values"):
        parse_json_object(raw, "x")
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_pipes_and_folders_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    for path in (tmp_path / "pipe.json", tmp_path, tmp_path / "none.json"):
        with pytest.raises(InputError):
            read_json_object(path)


def test_minus_zero_is_no_whole_number():
    found = parse_json_object(b'{"a": -0, "b": [0, -1, -0.0], "c": "-0"}', "x")
    assert [type(v) for v in (found["a"], *found["b"])] == [float, int, int, float]
    assert found == {"a": 0, "b": [0, -1, 0], "c": "-0"}
