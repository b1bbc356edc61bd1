"""Malformed safetensors files: name → (bytes of the file, what the error must say).

    cd tests && python -m corpus.headers FOLDER     writes all of them
"""

import json
import sys
from pathlib import Path

from corpus.raw import VALID, entry, packed

DATA = bytes(8)
ONE = json.dumps(entry())


def _one(**changes):
    return packed({"a": entry(**changes)}, DATA)


HEADERS = {
    # the beginning of the file
    "empty_file": (b"", "0 bytes"),
    "only_a_length": (packed({})[:8], "8 bytes"),
    "length_beyond_the_file": (packed({"a": entry()}, DATA, length=10**6), "claims 1000000 bytes"),
    "length_beyond_the_cap": (packed({}, DATA, length=2**63), "claims 9223372036854775808 bytes"),
    "length_of_all_ones": (b"\xff" * 40, "claims 18446744073709551615 bytes"),
    "length_zero": (packed("", DATA), "does not begin with"),
    "length_cuts_the_json": (packed({"a": entry()}, DATA, length=20), "malformed JSON"),
    "length_runs_into_the_data": (packed({"a": entry()}, DATA, length=len(json.dumps({"a": entry()})) + 4), "malformed JSON"),
    "git_lfs_pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n", "Git LFS pointer"),
    "zip_archive": (b"PK\x03\x04" + bytes(60), "zip archive"),
    "gguf_file": (b"GGUF\x03\0\0\0" + bytes(60), "GGUF"),
    "html_page": (b"<!DOCTYPE html><html>error 503</html>", "HTML"),
    # the JSON
    "leading_space": (packed(" " + json.dumps({"a": entry()}), DATA), "does not begin with"),
    "byte_order_mark": (packed(b"\xef\xbb\xbf" + json.dumps({"a": entry()}).encode(), DATA), "does not begin with"),
    "not_utf8": (packed(b'{"\xff\xfe": ' + ONE.encode() + b"}", DATA), "not UTF-8"),
    "not_json": (packed("{'a': 1}"), "malformed JSON"),
    "text_after_the_json": (packed(json.dumps({"a": entry()}) + "x", DATA), "malformed JSON"),
    "an_array": (packed([entry()], DATA), "does not begin with"),
    "duplicate_tensor": (packed(f'{{"a": {ONE}, "a": {ONE}}}', DATA), "'a' appears twice"),
    "duplicate_field": (packed('{"a": {"dtype": "F32", "dtype": "I32", "shape": [2], "data_offsets": [0, 8]}}', DATA), "'dtype' appears twice"),
    "duplicate_metadata": (packed('{"__metadata__": {"x": "1", "x": "2"}}'), "'x' appears twice"),
    "deep_array": (packed('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"), "nested too deeply"),
    "deep_object": (packed('{"a":' * 100_000 + "1" + "}" * 100_000), "nested too deeply"),
    "many_values": (packed('{"a": [' + "[]," * 4_300_000 + "[]]}"), "values"),
    "huge_integer": (packed('{"a": {"dtype": "F32", "shape": [' + "9" * 5000 + '], "data_offsets": [0, 8]}}', DATA), "malformed JSON"),
    "half_a_surrogate": (packed(f'{{"\\ud800": {ONE}}}', DATA), "not UTF-8"),
    # the metadata
    "metadata_not_an_object": (packed({"__metadata__": ["pt"]}), "__metadata__"),
    "metadata_null": (packed({"__metadata__": None}), "__metadata__"),
    "metadata_with_a_number": (packed({"__metadata__": {"epoch": 3}}), "__metadata__"),
    # one tensor's entry
    "entry_not_an_object": (packed({"a": 5}), "'int'"),
    "entry_null": (packed({"a": None}), "'NoneType'"),
    "field_missing": (packed({"a": {"dtype": "F32", "shape": [2]}}, DATA), "exactly"),
    "field_unknown": (_one(strides=[1]), "strides"),
    "dtype_unknown": (_one(dtype="F31"), "'F31'"),
    "dtype_lower_case": (_one(dtype="f32"), "'f32'"),
    "dtype_not_text": (_one(dtype=["F32"]), "the dtype is"),
    "dtype_very_long": (_one(dtype="F" * 10_000), "FFF…"),
    "shape_not_a_list": (packed({"a": {"dtype": "F32", "shape": "2", "data_offsets": [0, 8]}}, DATA), "the shape is"),
    "shape_negative": (_one(shape=(-2,)), "the shape is"),
    "shape_twice_negative": (_one(shape=(-1, -2)), "the shape is"),
    "shape_fraction": (_one(shape=(2.0,)), "the shape is"),
    "shape_boolean": (_one(shape=(True, 2)), "the shape is"),
    "shape_text": (_one(shape=("2",)), "the shape is"),
    "shape_not_a_number": (packed('{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 8]}}', DATA), "the shape is"),
    "shape_minus_zero": (packed('{"a": {"dtype": "F32", "shape": [-0, 3], "data_offsets": [0, 0]}}'), "the shape is '[-0.0, 3]'"),
    "offsets_minus_zero": (packed('{"a": {"dtype": "F32", "shape": [0], "data_offsets": [-0, 0]}}'), "the offsets are '[-0.0, 0]'"),
    "shape_axis_too_long": (_one(shape=(2**63,)), "the shape is"),
    "shape_too_many_axes": (_one(shape=(1,) * 65), "the shape is"),
    "shape_overflows": (_one(shape=(2**32, 2**32, 2)), "8 bytes for F32"),
    "shape_wraps_to_the_right_size": (_one(shape=(2**62 + 1, 2)), "8 bytes for F32"),
    "shape_overflows_before_a_zero": (packed({"a": entry(shape=(2**62, 2**62, 0), offsets=(0, 0))}), "overflows"),
    "offsets_one": (_one(offsets=(8,)), "the offsets are"),
    "offsets_three": (_one(offsets=(0, 8, 8)), "the offsets are"),
    "offsets_backwards": (_one(offsets=(8, 0)), "the offsets are"),
    "offsets_negative": (_one(offsets=(-8, 0)), "the offsets are"),
    "offsets_huge": (_one(offsets=(2**64 - 8, 2**64)), "the offsets are"),
    "size_too_small": (_one(shape=(3,)), "8 bytes for F32"),
    "size_too_large": (_one(shape=(1,)), "8 bytes for F32"),
    "size_of_a_scalar": (_one(shape=()), "8 bytes for F32"),
    "size_of_nothing": (_one(shape=(0, 5)), "8 bytes for F32"),
    "size_and_half_a_byte": (_one(dtype="F4", shape=(17,)), "8.5 bytes"),
    "size_and_quarters_of_a_byte": (_one(dtype="F6_E2M3", shape=(5,)), "3.75 bytes"),
    "size_beyond_a_float": (_one(dtype="F4", shape=(2**63 - 1,) * 20), "8 bytes for F4"),
    "size_not_whole_bytes": (_one(dtype="F4", shape=(15,)), "7.5 bytes"),
    # the tensors together
    "hole_at_the_start": (packed({"a": entry(offsets=(8, 16))}, bytes(16)), "leaves a hole"),
    "hole_between": (packed({"a": entry(), "b": entry(offsets=(12, 20))}, bytes(20)), "leaves a hole"),
    "overlap": (packed({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)), "overlaps"),
    "same_bytes_twice": (packed({"a": entry(), "b": entry()}, DATA), "overlaps"),
    "cut_in_the_data": (VALID[:-1], "is cut"),
    "cut_to_the_header": (VALID[:-20], "is cut"),
    "bytes_after_the_data": (VALID + b"\0", "belong to no tensor"),
    "bytes_but_no_tensor": (packed({}, DATA), "belong to no tensor"),
    "offsets_beyond_the_file": (_one(shape=(2**40,), offsets=(0, 2**42)), "is cut"),
}

if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    for name, (content, _) in HEADERS.items():
        (target / f"{name}.safetensors").write_bytes(content)
