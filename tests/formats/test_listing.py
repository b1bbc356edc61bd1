import os

import pytest
from corpus.folders import write_text

from suture.errors import FormatError, InputError
from suture.formats.listing import file_sizes, other_weights, side_files

TRAVELS = [
    ".gitattributes", "LICENSE", "README.md", "chat_template.jinja", "code/modeling.py", "config.json",
    "generation_config.json", "merges.txt", "preprocessor_config.json", "scheduler/scheduler_config.json",
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
]  # fmt: skip
WEIGHTS = [
    "flax_model.msgpack", "model.onnx", "model.onnx_data", "model.safetensors", "non_lora_state_dict.bin",
    "original/consolidated.00.pth", "pytorch_model.bin", "q4.GGUF", "tf_model.h5", "value_head.safetensors",
]  # fmt: skip
NEITHER = [
    "model.safetensors.index.json", "pytorch_model.bin.index.json", "tf_model.h5.index.json",
    "model.safetensors.index.fp16.json", "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin",
    "optimizer.pt", "optimizer.bin", "scheduler.pt", "rng_state.pth", "rng_state_0.pth", "scaler.pt",
    "training_args.bin", "trainer_state.json", "suture_receipt.json", ".git/config", ".cache/huggingface/x.json",
    "code/.hidden/x.py", "checkpoint-500/tokenizer.json", "checkpoint-500/model.safetensors", "global_step5/x.pt",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    write_text(tmp_path, *TRAVELS, *WEIGHTS, *NEITHER)
    return tmp_path


def test_side_files_travel_and_are_sorted(folder):
    assert side_files(folder) == tuple(sorted(TRAVELS))


def test_other_weights_are_weights_that_nobody_used(folder):
    assert other_weights(folder) == tuple(sorted(WEIGHTS))
    assert other_weights(folder, {"model.safetensors"}) == tuple(sorted(set(WEIGHTS) - {"model.safetensors"}))


def test_pipes_and_sockets_do_not_travel(tmp_path):
    write_text(tmp_path, "a.txt")
    os.mkfifo(tmp_path / "pipe")
    assert side_files(tmp_path) == ("a.txt",)


def test_a_side_file_that_is_a_link_out_of_the_folder_is_refused(tmp_path):
    (tmp_path / "README.md").symlink_to("/etc/hostname")
    with pytest.raises(FormatError, match=r"README\.md: a symlink that leaves its folder"):
        side_files(tmp_path)


def test_a_side_file_that_is_a_link_to_nothing_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").symlink_to("blob")
    with pytest.raises(FormatError, match=r"tokenizer\.json: a symlink to nothing"):
        side_files(tmp_path)


def test_a_link_that_runs_in_a_circle_is_refused(tmp_path):
    (tmp_path / "a.json").symlink_to("b.json")
    (tmp_path / "b.json").symlink_to("a.json")
    with pytest.raises(FormatError, match="a symlink to nothing"):
        side_files(tmp_path)


def test_linked_folders_are_not_followed(tmp_path):
    write_text(tmp_path, "a/x.txt")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "etc").symlink_to("/etc")
    assert side_files(tmp_path) == ("a/x.txt",)


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path, monkeypatch):
    def fail(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(InputError, match="cannot be listed: Permission denied"):
        side_files(tmp_path)


def test_sizes_of_all_files(tmp_path):
    for name in ("a.json", "inner/b.bin", ".hidden/c", "checkpoint-3/d"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("12345")
    (tmp_path / "gone").symlink_to(tmp_path / "nothing")
    assert file_sizes(tmp_path) == {"a.json": 5, "gone": None, "inner/b.bin": 5}
