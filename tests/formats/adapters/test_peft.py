import numpy as np
import pytest
from corpus.folders import FACTORS, PEFT_CONFIG, adapter, single_model, write_text

from suture.errors import FormatError, InputError, PickleRefused
from suture.formats import TensorReader, other_weights, read_adapter


def assert_complete(found):
    assert found.tensors.keys() == FACTORS.keys()
    with TensorReader(found.folder) as reader:
        for name, info in found.tensors.items():
            np.testing.assert_array_equal(reader.array(info), FACTORS[name])


def test_the_folder_itself(tmp_path):
    found = read_adapter(adapter(tmp_path))
    assert_complete(found)
    assert (found.name, found.file, found.folder) == ("default", "adapter_model.safetensors", tmp_path)
    assert found.config == PEFT_CONFIG


def test_what_peft_saves_is_read_with_its_keys_untouched(tmp_path):
    import torch
    from peft import LoraConfig, get_peft_model

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.up = torch.nn.Linear(4, 6)

        def forward(self, x):
            return self.up(x)

    model = get_peft_model(Net(), LoraConfig(r=2, target_modules=["up"]))
    model.add_adapter("other", LoraConfig(r=3, target_modules=["up"]))
    model.save_pretrained(tmp_path)
    default, other = read_adapter(tmp_path), read_adapter(tmp_path, name="other")
    assert {n: t.shape for n, t in default.tensors.items()} == {
        "base_model.model.up.lora_A.weight": (2, 4),
        "base_model.model.up.lora_B.weight": (6, 2),
    }
    assert (default.config["r"], default.name) == (2, "default")
    assert (other.config["r"], other.name, other.folder) == (3, "other", tmp_path / "other")


def test_the_only_adapter_in_a_subfolder_is_taken(tmp_path):
    adapter(tmp_path / "ref")
    write_text(tmp_path, "README.md", "logs/x.txt")
    found = read_adapter(tmp_path)
    assert_complete(found)
    assert (found.name, found.folder) == ("ref", tmp_path / "ref")


def test_of_several_adapters_none_is_guessed(tmp_path):
    for name in ("reference", "policy"):
        adapter(tmp_path / name)
    with pytest.raises(InputError, match="there are 2 adapters: policy, reference") as caught:
        read_adapter(tmp_path)
    assert "--adapter-name" in caught.value.do
    assert read_adapter(tmp_path, name="policy").folder == tmp_path / "policy"


def test_the_folder_itself_comes_before_its_subfolders(tmp_path):
    adapter(adapter(tmp_path) / "other")
    adapter(tmp_path / "checkpoint-10")
    assert read_adapter(tmp_path).folder == tmp_path
    assert read_adapter(tmp_path, name="default").folder == tmp_path
    assert read_adapter(tmp_path, name="other").name == "other"


@pytest.mark.parametrize("name", ["none", "../elsewhere", "", "policy/", "/policy"])
def test_a_name_that_is_not_there_lists_those_that_are(tmp_path, name):
    adapter(tmp_path / "policy")
    adapter(tmp_path.parent / "elsewhere")
    with pytest.raises(InputError, match="there is no adapter") as caught:
        read_adapter(tmp_path, name=name)
    assert caught.value.expected == "policy"


def test_the_only_checkpoint_of_a_trainer_is_taken(tmp_path):
    adapter(tmp_path / "checkpoint-500")
    found = read_adapter(tmp_path)
    assert (found.name, found.folder) == ("default", tmp_path / "checkpoint-500")


def test_of_several_checkpoints_the_latest_is_pointed_out(tmp_path):
    for step in (500, 1000, 90):
        adapter(tmp_path / f"checkpoint-{step}")
    with pytest.raises(InputError, match="there are 3 adapters") as caught:
        read_adapter(tmp_path)
    assert "The latest checkpoint is checkpoint-1000." in caught.value.do


def test_named_adapters_inside_a_checkpoint_are_found(tmp_path):
    for name in ("policy", "reference"):
        adapter(tmp_path / "checkpoint-500" / name)
    with pytest.raises(InputError, match="checkpoint-500/policy, checkpoint-500/reference"):
        read_adapter(tmp_path)
    assert read_adapter(tmp_path, name="checkpoint-500/policy").name == "policy"


def test_missing_weights_are_an_error_unless_nobody_needs_them(tmp_path):
    adapter(tmp_path, weights=False)
    with pytest.raises(InputError, match="no weights"):
        read_adapter(tmp_path)
    found = read_adapter(tmp_path, need_weights=False)
    assert (found.tensors, found.config) == ({}, PEFT_CONFIG)


def test_pickled_weights_are_refused_unopened(tmp_path):
    adapter(tmp_path, weights=False)
    (tmp_path / "adapter_model.bin").write_bytes(b"not even a pickle")
    with pytest.raises(PickleRefused, match=r"adapter_model\.bin"):
        read_adapter(tmp_path)
    assert read_adapter(tmp_path, need_weights=False).tensors == {}


def test_damaged_weights_are_named(tmp_path):
    path = adapter(tmp_path) / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FormatError, match=r"adapter_model\.safetensors: the file is cut"):
        read_adapter(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"fine_tune_type": "lora", "num_layers": 8, "lora_parameters": {"rank": 8}}, "of MLX's format"),
        ({"r": 8, "lora_alpha": 16}, "no peft_type"),
        ({"peft_type": None, "r": 8}, "no peft_type"),
        ({"peft_type": ["LORA"]}, "no peft_type"),
    ],
)
def test_a_config_of_another_tool_is_recognised(tmp_path, config, message):
    with pytest.raises(FormatError, match=message) as caught:
        read_adapter(adapter(tmp_path, config))
    assert caught.value.where.endswith("adapter_config.json")


@pytest.mark.parametrize(
    ("file", "tool"),
    [
        ("adapters.safetensors", "MLX"),
        ("pytorch_lora_weights.safetensors", "diffusers"),
        ("lit_model.pth.lora", "LitGPT"),
        ("adapter_model.pt", "torchtune"),
        ("my-lora-f16.gguf", "llama.cpp"),
    ],
)
def test_files_of_another_tool_are_recognised(tmp_path, file, tool):
    write_text(tmp_path, file)
    with pytest.raises(FormatError, match=f"looks like an adapter of {tool}"):
        read_adapter(tmp_path)


def test_a_folder_without_an_adapter_says_what_it_is(tmp_path):
    with pytest.raises(InputError, match=r"there is no adapter_config\.json"):
        read_adapter(tmp_path)
    write_text(tmp_path, "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"adapter weights but no adapter_config\.json"):
        read_adapter(tmp_path)
    with pytest.raises(InputError, match="a model, not an adapter"):
        read_adapter(single_model(tmp_path / "model"))


def test_links_out_of_the_folder_are_refused(tmp_path):
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        folder = adapter(tmp_path / file)
        (folder / file).rename(tmp_path / f"elsewhere-{file}")
        (folder / file).symlink_to(tmp_path / f"elsewhere-{file}")
        with pytest.raises(FormatError, match="leaves its folder"):
            read_adapter(folder)


def test_side_files_and_other_weights(tmp_path):
    adapter(tmp_path)
    write_text(tmp_path, "tokenizer.json", "chat_template.jinja", "README.md", "non_lora_state_dict.bin")
    write_text(tmp_path, "value_head.safetensors", "new_embeddings.safetensors", "training_args.bin", "optimizer.pt")
    found = read_adapter(tmp_path)
    assert found.side_files == ("README.md", "chat_template.jinja", "tokenizer.json")
    assert other_weights(found.folder) == (
        "new_embeddings.safetensors",
        "non_lora_state_dict.bin",
        "value_head.safetensors",
    )
