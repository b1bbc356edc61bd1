"""A saved adapter is read back and compared with memory: whatever differs is named, and whatever PEFT saves passes."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_live import CASES, ENDS
from tiny import TARGETS, make_base, make_model, trained, wrapped
from transformers import AutoModelForCausalLM

from suture.errors import NotSaved
from suture.targets import meaning
from suture.training.live import look
from suture.training.readback import gathered, in_memory, read_back, tensor_sha256

pytestmark = pytest.mark.usefixtures("quiet_torch")

FILE = "adapter_model.safetensors"


def sha256_by_hand(folder):
    """hashlib over the bytes that safetensors gives."""
    with safe_open(folder / FILE, "pt") as file:
        return {
            key: hashlib.sha256(file.get_tensor(key).contiguous().reshape(-1).view(torch.uint8).numpy()).hexdigest()
            for key in file.keys()  # noqa: SIM118
        }


@pytest.mark.parametrize("case", CASES)
def test_everything_that_peft_saves_passes_with_its_hash(case, tmp_path):
    of_model, of_lora = CASES[case]
    model = trained(wrapped(make_model(**of_model), **of_lora))
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    saved = read_back(tmp_path, look(model))
    assert saved.sha256 == sha256_by_hand(tmp_path)
    assert saved.config == json.loads((tmp_path / "adapter_config.json").read_text())


def test_an_adapter_of_another_name_lies_in_a_folder_of_its_own(tmp_path):
    model = trained(wrapped(adapter_name="mine"))
    model.save_pretrained(tmp_path)
    assert read_back(tmp_path, look(model)).sha256 == sha256_by_hand(tmp_path / "mine")


def test_the_active_one_of_two_adapters_is_read(tmp_path):
    model = wrapped()
    model.add_adapter("second", model.peft_config["default"])
    model.set_adapter("second")
    trained(model).save_pretrained(tmp_path)
    assert read_back(tmp_path, look(model)).sha256 == sha256_by_hand(tmp_path / "second") != sha256_by_hand(tmp_path)


RESIZED = {
    "lora": {},
    "saved": {"modules_to_save": ENDS},
    "tokens": {"trainable_token_indices": [98, 99]},
    "embedding-lora": {"target_modules": [*TARGETS, "embed_tokens"]},
    "together": {"modules_to_save": ENDS, "ensure_weight_tying": True},
}


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("case", RESIZED)
def test_a_resized_vocabulary_is_saved_with_the_adapter(tie, case, tmp_path):
    if case == "together" and not tie:
        return  # nothing is tied
    model = make_model(tie=tie)
    model.resize_token_embeddings(104, mean_resizing=False)
    model = trained(wrapped(model, **RESIZED[case]))
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    assert read_back(tmp_path, look(model)).sha256 == sha256_by_hand(tmp_path)
    if case != "together":  # there PEFT saves nothing beside what trains
        with torch.no_grad():
            copy = next(key for key in load_file(tmp_path / FILE) if key not in look(model).unique())
            in_memory(copy, look(model))[100] += 1
        with pytest.raises(NotSaved, match=r"bytes differ"):
            read_back(tmp_path, look(model))


@pytest.fixture
def saved(tmp_path):
    model = trained(wrapped(modules_to_save=["input_layernorm"]))
    model.save_pretrained(tmp_path)
    read_back(tmp_path, look(model))
    return tmp_path, model


def rewrite(folder, change):
    tensors = load_file(folder / FILE)
    change(tensors)
    save_file(tensors, folder / FILE)


KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def test_a_flipped_byte(saved):
    folder, model = saved
    content = bytearray((folder / FILE).read_bytes())
    content[-1] ^= 1
    (folder / FILE).write_bytes(content)
    with pytest.raises(NotSaved, match=r"v_proj.lora_B.weight: 1 of 256 bytes differ"):
        read_back(folder, look(model))


def test_a_missing_tensor(saved):
    folder, model = saved
    rewrite(folder, lambda tensors: tensors.pop(KEY))
    with pytest.raises(NotSaved, match=f"{KEY}: not in the file"):
        read_back(folder, look(model))


def test_an_empty_tensor_as_sharded_trainers_leave_it(saved):
    folder, model = saved
    rewrite(folder, lambda tensors: tensors.update({KEY: torch.empty(0)}))
    with pytest.raises(NotSaved, match=rf"{KEY}: \[0\] in the file, \[4, 32\] in memory"):
        read_back(folder, look(model))


def test_a_tensor_of_another_dtype(saved):
    folder, model = saved
    rewrite(folder, lambda tensors: tensors.update({KEY: tensors[KEY].bfloat16()}))
    with pytest.raises(NotSaved, match=f"{KEY}: BF16 in the file, F32 in memory"):
        read_back(folder, look(model))


def test_a_foreign_tensor(saved):
    folder, model = saved
    rewrite(folder, lambda tensors: tensors.update({"base_model.model.other.lora_A.weight": torch.ones(2)}))
    with pytest.raises(NotSaved, match=r"other.lora_A.weight: in the file, but not in the model"):
        read_back(folder, look(model))


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("lora_alpha", 64, "lora_alpha is 64, in memory 8"),
        ("target_modules", ["q_proj"], "target_modules is ['q_proj'], in memory ['down_proj', 'q_proj', 'v_proj']"),
        ("use_rslora", True, "use_rslora is True, in memory None"),
        ("init_lora_weights", "pissa", "init_lora_weights is 'pissa', in memory None"),
    ],
)
def test_another_config(saved, field, value, words):
    folder, model = saved
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(NotSaved) as caught:
        read_back(folder, look(model))
    assert f"adapter_config.json: {words}" in str(caught.value)


def test_every_wrong_tensor_is_counted_and_eight_are_shown(saved):
    folder, model = saved
    trained(model, seed=2)
    with pytest.raises(NotSaved) as caught:
        read_back(folder, look(model))
    assert str(caught.value).count("bytes differ") == 8
    assert "… and 6 more" in str(caught.value)


def test_what_is_equal_after_a_reload(saved):
    folder, model = saved
    again = PeftModel.from_pretrained(make_model(), folder)
    hashes = {key: tensor_sha256(p) for key, p in look(again).held.items()}
    assert hashes == {key: tensor_sha256(p) for key, p in look(model).held.items()}


def test_hashes_do_not_depend_on_strides():
    matrix = torch.arange(6.0).reshape(2, 3)
    assert tensor_sha256(matrix.T) == tensor_sha256(matrix.T.contiguous()) != tensor_sha256(matrix)
    assert tensor_sha256(torch.tensor(1.0)) == hashlib.sha256(b"\x00\x00\x80\x3f").hexdigest()
    assert tensor_sha256(torch.empty(0, 4)) == hashlib.sha256(b"").hexdigest()


def test_meaning_has_one_spelling():
    spellings = ({"target_modules": ["b", "a"], "bias": "none"}, {"target_modules": {"a", "b"}, "bias": "none"})
    assert meaning(spellings[0]) == meaning(spellings[1])
    assert meaning({"lora_bias": False, "init_lora_weights": True}) == meaning({"init_lora_weights": "gaussian"})
    assert meaning({"init_lora_weights": "olora"}) != meaning({})


class Sharded(torch.nn.Parameter):
    """A parameter of which every process has a part, as DTensor is."""

    def full_tensor(self):
        return torch.cat([self.detach(), self.detach()])


def test_sharded_parameters_are_compared_whole(saved, tmp_path):
    folder, model = saved
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    layer.lora_A["default"].weight = Sharded(torch.ones(2, 32))
    rewrite(folder, lambda tensors: tensors.update({KEY: torch.ones(4, 32)}))
    live = look(model)
    with pytest.raises(NotSaved, match=r"\[4, 32\] in the file, \[2, 32\] in memory"):
        read_back(folder, live)
    assert gathered(live).keys() == {KEY}
    assert KEY in read_back(folder, live, gathered(live)).sha256


def test_a_base_in_bf16_from_its_folder(tmp_path):
    base = AutoModelForCausalLM.from_pretrained(make_base(tmp_path / "base"), dtype=torch.bfloat16)
    model = trained(wrapped(base, modules_to_save=ENDS))
    model.save_pretrained(tmp_path / "adapter")
    assert read_back(tmp_path / "adapter", look(model)).sha256 == sha256_by_hand(tmp_path / "adapter")
