"""Broken sharded models: name → (what is done to a good folder, what the error must say).

    cd tests && python -m corpus.indexes FOLDER     writes all of them
"""

import sys
from pathlib import Path

from corpus.folders import INDEX, SHARDS, TENSORS, sharded_model, write_index, write_json

MAP = {name: file for file, names in SHARDS.items() for name in names}
EMBED, MLP, NORM = sorted(TENSORS)
FIRST, SECOND = sorted(SHARDS)


def _remapped(**changes):
    return lambda folder: write_index(folder, MAP | changes)


def _renamed(old, new):
    return lambda folder: (folder / old).rename(folder / new)


def _text(text):
    return lambda folder: (folder / INDEX).write_text(text)


def _pointing(target):
    def break_(folder):
        (folder / FIRST).unlink()
        (folder / FIRST).symlink_to(target)

    return break_


INDEXES = {
    "not_json": (_text("weight_map:"), "malformed JSON"),
    "not_an_object": (_text("[]"), "a list"),
    "too_deep": (_text('{"weight_map": ' + "[" * 10**5 + "]" * 10**5 + "}"), "nested too deeply"),
    "tensor_twice": (_text(f'{{"weight_map": {{"a": "{FIRST}", "a": "{SECOND}"}}}}'), "appears twice"),
    "no_weight_map": (_text("{}"), "weight_map is not"),
    "weight_map_a_list": (_text('{"weight_map": ["a"]}'), "weight_map is not"),
    "weight_map_empty": (_text('{"weight_map": {}}'), "names no tensor"),
    "a_shard_without_a_tensor": (
        lambda f: write_index(f, {n: s for n, s in MAP.items() if s == FIRST}),
        f"the index names no tensor of '{SECOND}'",
    ),
    "file_a_number": (_text('{"weight_map": {"a": 1}}'), "weight_map is not"),
    "metadata_a_list": (lambda f: write_json(f / INDEX, {"metadata": [], "weight_map": MAP}), "metadata is not"),
    "file_above_the_folder": (_remapped(**{EMBED: "../model.safetensors"}), "'../model.safetensors'"),
    "file_at_an_absolute_path": (_remapped(**{EMBED: "/etc/x.safetensors"}), "'/etc/x.safetensors'"),
    "file_in_a_subfolder": (_remapped(**{EMBED: "sub/x.safetensors"}), "'sub/x.safetensors'"),
    "file_of_another_kind": (_remapped(**{EMBED: "pytorch_model.bin"}), "'pytorch_model.bin'"),
    "file_with_a_null_byte": (_remapped(**{EMBED: "a\0b.safetensors"}), "missing"),
    "file_absent": (_remapped(**{EMBED: "model-00003-of-00003.safetensors"}), "missing: 'model-00003-of-00003"),
    "shard_removed": (lambda f: (f / SECOND).unlink(), f"missing: '{SECOND}'"),
    "tensor_in_no_file": (_remapped(**{"extra.weight": FIRST}), "1 listed but in no file ('extra.weight')"),
    "tensor_not_listed": (
        lambda f: write_index(f, {n: s for n, s in MAP.items() if n != NORM}),
        f"1 in the files but not listed ('{NORM}')",
    ),
    "tensor_listed_elsewhere": (_remapped(**{NORM: FIRST}), f"1 listed in another file than they are in ('{NORM}')"),
    "two_sets_of_weights": (lambda f: (f / "model.safetensors").touch(), "two sets of weights"),
    "shard_a_link_out_of_the_folder": (_pointing("/etc/hostname"), "a symlink that leaves its folder"),
    "shard_a_link_to_a_device": (_pointing("/dev/zero"), "a symlink that leaves its folder"),
    "index_a_link_out_of_the_folder": (
        lambda f: ((f / INDEX).unlink(), (f / INDEX).symlink_to("/etc/hostname")),
        "a symlink that leaves its folder",
    ),
    "index_gone_and_a_shard_missing": (
        lambda f: ((f / INDEX).unlink(), (f / FIRST).unlink()),
        f"missing: '{FIRST}'",
    ),
    "index_gone_and_many_shards_missing": (
        lambda f: ((f / INDEX).unlink(), (f / FIRST).unlink(), _renamed(SECOND, "model-00002-of-00012.safetensors")(f)),
        "missing: 'model-00001-of-00012.safetensors', 'model-00003-of-00012.safetensors'",
    ),
    "index_gone_and_a_gap_in_shards_from_zero": (
        lambda f: (
            (f / INDEX).unlink(),
            _renamed(FIRST, "model-00000-of-00002.safetensors")(f),
        ),
        "missing: 'model-00001-of-00002.safetensors",
    ),
    "index_gone_and_a_shard_copied": (
        lambda f: ((f / INDEX).unlink(), (f / "model-copy.safetensors").write_bytes((f / SECOND).read_bytes())),
        "is in model-00002-of-00002.safetensors and in model-copy.safetensors",
    ),
    "index_gone_and_a_total_beyond_reason": (
        lambda f: (
            (f / INDEX).unlink(),
            (f / SECOND).unlink(),
            _renamed(FIRST, f"model-00001-of-{'9' * 90}.safetensors")(f),
        ),
        "missing: 'model-00002-of-9999",
    ),
}

if __name__ == "__main__":
    for name, (break_, _) in INDEXES.items():
        break_(sharded_model(Path(sys.argv[1]) / name))
