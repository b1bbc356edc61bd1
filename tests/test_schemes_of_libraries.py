"""Models quantised by the libraries that write such files: dequantised, and merged onto, as they compute."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import VOCAB, trained
from transformers import AutoModelForCausalLM, LlamaConfig
from zoo_adapters import compare

from suture import Options, check, dequantize, merge, verify
from suture.errors import UsageError

SIZES = {"hidden_size": 256, "intermediate_size": 320, "num_attention_heads": 4, "num_key_value_heads": 2}
FEED = torch.arange(5, 45).reshape(2, 20)
pytestmark = pytest.mark.filterwarnings("ignore:You passed `quantization_config`:UserWarning")


def plain():
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=VOCAB, num_hidden_layers=2, dtype="bfloat16", **SIZES)
    return AutoModelForCausalLM.from_config(config).to(torch.bfloat16)


def compressed(folder, **weights):
    """The scales are the largest values', as of an observer that has seen the weights."""
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        apply_quantization_config,
    )
    from compressed_tensors.quantization.utils import calculate_qparams

    model, size = plain(), weights.get("group_size")
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weights))
    settings = QuantizationConfig(config_groups={"all": scheme}, ignore=["lm_head"], quantization_status="frozen")
    apply_quantization_config(model, settings)
    for module in model.modules():
        if (own := getattr(module, "quantization_scheme", None)) is not None:
            values = module.weight.detach().float()
            values = values.unflatten(1, (-1, size)) if size else values.unsqueeze(1)
            scale, zero = calculate_qparams(values.amin(-1), values.amax(-1), own.weights)
            module.weight_scale.data = scale.to(module.weight_scale.dtype)
            if hasattr(module, "weight_zero_point"):
                module.weight_zero_point.data = zero.to(module.weight_zero_point.dtype)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(folder)
    return loaded_dense(folder)


def loaded_dense(folder):
    """What Transformers makes of a folder of compressed-tensors."""
    from transformers import CompressedTensorsConfig

    asked = CompressedTensorsConfig(dequantize=True)
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto", quantization_config=asked).state_dict()


def torchao(folder, name):
    quantization = pytest.importorskip("torchao.quantization")
    from transformers import TorchAoConfig

    plain().save_pretrained(folder.with_name("plain"))
    model = AutoModelForCausalLM.from_pretrained(
        folder.with_name("plain"), quantization_config=TorchAoConfig(getattr(quantization, name)())
    )
    model.save_pretrained(folder, max_shard_size="600KB")
    return dequantised(AutoModelForCausalLM.from_pretrained(folder))


def quanto(folder, weights):
    library = pytest.importorskip("optimum.quanto")
    model = plain()
    library.QuantizedModelForCausalLM.quantize(model, weights=weights, exclude="lm_head").save_pretrained(folder)
    return dequantised(library.QuantizedModelForCausalLM.from_pretrained(folder)._wrapped)


def layer_by_layer(folder, settings, quantise):
    """A folder in which each layer is what `quantise` makes of it: the tensors to store, and the dense weight."""
    model = plain()
    model.save_pretrained(folder)
    expected = {name: p.detach() for name, p in model.named_parameters()}
    tensors = dict(expected)
    for name, module in model.model.named_modules():
        if isinstance(module, torch.nn.Linear):
            stored, weight = quantise(module)
            del tensors[f"model.{name}.weight"]
            tensors |= {f"model.{name}.{key}": value.data.contiguous() for key, value in stored.items()}
            expected[f"model.{name}.weight"] = weight
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    return expected


def hqq(folder, nbits):
    library = pytest.importorskip("hqq.core.quantize")

    def quantise(linear):
        config = library.BaseQuantizeConfig(nbits=nbits, group_size=64)
        layer = library.HQQLinear(linear, config, compute_dtype=torch.bfloat16, device="cpu")
        return layer.state_dict(), layer.dequantize()

    return layer_by_layer(folder, {"quant_method": "hqq"}, quantise)


def groups_of(linear, size):
    """The weight in float32; the scale and the zero of each group of columns, for codes from 0 to 15."""
    weight = linear.weight.detach().float()
    groups = weight.unflatten(1, (-1, size))
    scales = (groups.amax(-1) - groups.amin(-1)) / 15
    return weight, scales, (-groups.amin(-1) / scales).round().clamp(0, 15)


def gptq(folder):
    pytest.importorskip("gptqmodel")
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear

    def quantise(linear):
        weight, scales, zeros = groups_of(linear, 32)
        plain, n_in = torch.nn.Linear(linear.in_features, linear.out_features, bias=False), linear.in_features
        plain.weight.data = weight
        layer = TorchLinear(4, 32, False, True, n_in, linear.out_features, bias=False)
        in_any_order = torch.arange(n_in).div(32, rounding_mode="floor")[torch.randperm(n_in)]
        layer.pack_original(plain, scales, zeros, in_any_order.int())
        return layer.state_dict(), layer.eval().dequantize_weight().T

    settings = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True, "checkpoint_format": "gptq_v2"}
    return layer_by_layer(folder, settings, quantise)


def awq(folder):
    pytest.importorskip("gptqmodel")
    from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear

    def quantise(linear):
        _, scales, zeros = groups_of(linear, 32)
        layer = AwqTorchLinear(
            4, 32, False, False, linear.in_features, linear.out_features, bias=False, register_buffers=True
        )
        layer.pack(linear.float(), scales, zeros)
        return layer.state_dict(), layer._dequantize_weight_for_inference(torch.empty(0), dtype=layer.scales.dtype).T

    settings = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}
    return layer_by_layer(folder, settings, quantise)


def dequantised(model):
    """What the library computes with."""
    return {name: p.dequantize() if hasattr(p, "dequantize") else p for name, p in model.named_parameters()}


KINDS = {
    "awq": awq,
    "gptq in any order": gptq,
    "hqq 3 bits": lambda f: hqq(f, 3),
    "hqq 4 bits": lambda f: hqq(f, 4),
    "int4 in groups": lambda f: compressed(f, num_bits=4, strategy="group", group_size=32, symmetric=False),
    "int8 in rows": lambda f: compressed(f, num_bits=8, strategy="channel"),
    "fp8 in rows": lambda f: compressed(f, num_bits=8, type="float", strategy="channel"),
    "torchao int8": lambda f: torchao(f, "Int8WeightOnlyConfig"),
    "torchao fp8": lambda f: torchao(f, "Float8WeightOnlyConfig"),
    "quanto qint4": lambda f: quanto(f, "qint4"),
    "quanto qint8": lambda f: quanto(f, "qint8"),
    "quanto qfloat8": lambda f: quanto(f, "qfloat8"),
}


@pytest.fixture(scope="module", params=sorted(KINDS))
def quantized(request, tmp_path_factory):
    """A folder with a quantised base and an adapter for it, and the values that the library computes with."""
    folder = tmp_path_factory.mktemp("scheme")
    expected = {name: p.detach().clone() for name, p in KINDS[request.param](folder / "base").items()}
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    trained(get_peft_model(plain(), config)).save_pretrained(folder / "adapter")
    return folder, expected


def test_a_dequantised_folder_holds_the_librarys_values(quantized, tmp_path):
    folder, expected = quantized
    dequantize(folder / "base", tmp_path / "out")
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert not (tmp_path / "out" / "quanto_qmap.json").exists()
    model, told = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto", output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    (weights,) = (tmp_path / "out").glob("*.safetensors")
    found = load_file(weights)
    assert expected.keys() == found.keys() == model.state_dict().keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_merge_is_the_dequantised_base_with_its_adapter(quantized, tmp_path):
    folder, expected = quantized
    options = Options(dtype="F32")
    merge(folder / "base", folder / "adapter", tmp_path / "out", options=options)
    dense = plain().float()
    dense.load_state_dict({name: value.float() for name, value in expected.items()})
    with torch.no_grad():
        tuned = PeftModel.from_pretrained(dense, folder / "adapter").eval()(FEED).logits
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)(FEED).logits
    assert compare(tuned, merged).same
    assert verify(folder / "base", folder / "adapter", tmp_path / "out", options=options, full=True).ok


def test_the_form_is_kept_or_the_refusal_names_it(quantized, tmp_path):
    folder, _ = quantized
    config = json.loads((folder / "base" / "config.json").read_text()).get("quantization_config", {})
    options = Options(output="same", ignore=("N512",))
    if "compressed-tensors" not in config.get("quant_method", "") or config["format"] == "pack-quantized":
        with pytest.raises(UsageError, match=r"quantised again"):
            merge(folder / "base", folder / "adapter", tmp_path / "out", options=options)
        assert not (tmp_path / "out").exists()
        return
    merge(folder / "base", folder / "adapter", tmp_path / "out", options=options)
    assert verify(folder / "base", folder / "adapter", tmp_path / "out", full=True).ok
    dequantize(tmp_path / "out", tmp_path / "dense")
    theirs, ours = loaded_dense(tmp_path / "out"), load_file(tmp_path / "dense" / "model.safetensors")
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    merge(folder / "base", folder / "adapter", tmp_path / "whole", options=Options(dtype="F32"))
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    off = {name: float((ours[name] - value).norm() / value.norm()) for name, value in whole.items()}
    assert 0 < max(off.values()) < 0.03, "next to the exact sum, as far as eight bits go"


@pytest.mark.parametrize(
    ("kind", "file", "said"),
    [
        ("gptq in any order", "quantize_config.json", {"bits": 4, "group_size": 32, "desc_act": True}),
        ("awq", "quant_config.json", {"w_bit": 4, "q_group_size": 32, "version": "GEMM", "zero_point": True}),
    ],
)
def test_old_tools_say_it_in_a_file_of_their_own(tmp_path, kind, file, said):
    base = tmp_path / "base"
    KINDS[kind](base)
    dequantize(base, tmp_path / "one")
    config = json.loads((base / "config.json").read_text())
    settings = config.pop("quantization_config")
    (base / "config.json").write_text(json.dumps(config))
    (base / file).write_text(json.dumps({**said, "checkpoint_format": settings.get("checkpoint_format", "")}))
    dequantize(base, tmp_path / "other")
    assert not (tmp_path / "other" / file).exists()
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "other"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_folder_that_its_library_saved_is_sound(quantized):
    folder, _ = quantized
    assert not [f for f in check(folder / "base") if f.severity == "error"]
