"""Mixtures of experts whose weights are quantised: merged, they compute what Transformers and PEFT compute."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import FineGrainedFP8Config, Mxfp4Config
from transformers.integrations.finegrained_fp8 import Fp8Quantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors
from zoo import FAMILIES, Family, build, inputs, load, logits
from zoo_adapters import MAX_ABS, compare, perturb

from suture import Options, dequantize, merge, verify
from suture.cli.app import app
from suture.errors import FormatError
from suture.formats import read_dense
from suture.verification.logits import LogitsSettings

pytestmark = pytest.mark.usefixtures("quiet_torch")

Tensors = dict[str, torch.Tensor]

FILES = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"
FUSED = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
N_EXPERTS = 4
ONE = 2  # the expert that alone is tuned
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])


# ------------------------------------------------------------------------------------------------------------- bases


def mxfp4(name: str, values: torch.Tensor, block: tuple[int, int] | None = None) -> Tensors:
    """Experts (experts, in, out) to the nearest codes, 32 of them scaled so that the largest is between 4 and 8."""
    groups = values.float().mT.unflatten(-1, (-1, 32))
    power = groups.abs().amax(-1).clamp(min=2.0**-120).log2().floor() - 2
    scaled = groups / power.exp2()[..., None]
    codes = (scaled.abs()[..., None] - E2M1).abs().argmin(-1) + 8 * (scaled < 0)
    packed = codes[..., 0::2] | codes[..., 1::2] << 4
    return {f"{name}_blocks": packed.to(torch.uint8), f"{name}_scales": (power + 127).to(torch.uint8)}


def fp8(name: str, values: torch.Tensor, block: tuple[int, int]) -> Tensors:
    """As Transformers quantises: codes of F8_E4M3, float32 scales."""
    size = (min(n, m) for n, m in zip(values.shape, block, strict=True))
    settings = SimpleNamespace(quantization_config=FineGrainedFP8Config(weight_block_size=tuple(size)))
    return dict(Fp8Quantize(settings).convert({name: values}))


@dataclass(frozen=True)
class Kind:
    """A tiny model, which of its tensors are packed and how, and Transformers' settings to dequantise it."""

    family: Family
    settings: Mapping[str, object]
    pack: Callable[[str, torch.Tensor, tuple[int, int]], Tensors]
    packed: tuple[str, ...]
    dense: type

    def dequantizing(self) -> object:
        """Settings with which Transformers loads the dense model."""
        return self.dense(**{k: v for k, v in self.settings.items() if k != "quant_method"}, dequantize=True)


def kind(name: str, changes: dict, settings: dict, *rest: object) -> Kind:
    family = FAMILIES[name]
    return Kind(replace(family, settings={**family.settings, **changes}), settings, *rest)


_SIZES = {"hidden_size": 64, "intermediate_size": 96}
_FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3"}
KINDS = {
    "gpt-oss": kind(
        "gpt-oss",
        _SIZES,
        {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]},
        mxfp4,
        ("experts.gate_up_proj", "experts.down_proj"),
        Mxfp4Config,
    ),
    "qwen3-moe": kind(
        "qwen3-moe",
        {**_SIZES, "moe_intermediate_size": 64, "head_dim": 16},
        {**_FP8, "weight_block_size": [32, 32], "modules_to_not_convert": ["lm_head", "mlp.gate"]},
        fp8,
        ("_proj.weight",),
        FineGrainedFP8Config,
    ),
    "deepseek-v3": kind(
        "deepseek-v3",
        {**_SIZES, "hidden_size": 256, "moe_intermediate_size": 128},
        {**_FP8, "weight_block_size": [128, 128]},
        fp8,
        ("_proj.weight", "a_proj_with_mqa.weight"),
        FineGrainedFP8Config,
    ),
}


@dataclass(frozen=True)
class Base:
    """A quantised base on disk, and the same as Transformers dequantises it, in float32."""

    kind: Kind
    folder: Path

    def live(self) -> torch.nn.Module:
        """The dense model. Its weights are those of 16 bits, as the config asks."""
        settings = self.kind.dequantizing()
        return load(self.kind.family, self.folder, dtype=torch.bfloat16, quantization_config=settings).float()


def write(folder: Path, files: Mapping[str, Tensors], config: Mapping[str, object]) -> Path:
    """A checkpoint of several files."""
    folder.mkdir()
    for file, tensors in files.items():
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / file, {"format": "pt"})
    of = {name: file for file, tensors in files.items() for name in tensors}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": of}))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def sharded(tensors: Tensors) -> dict[str, Tensors]:
    """The scales in a file of their own."""
    apart = {name: t for name, t in tensors.items() if name.endswith(("_scale_inv", "_scales"))}
    assert apart
    return {FILES[0]: {n: t for n, t in tensors.items() if n not in apart}, FILES[1]: apart}


def tensors_of(folder: Path) -> Tensors:
    return {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """The quantised base of a kind, each made once."""
    made: dict[str, Base] = {}

    def make(name: str) -> Base:
        if name not in made:
            one, folder = KINDS[name], tmp_path_factory.mktemp(name)
            build(one.family, folder / "plain", dtype=torch.bfloat16)
            tensors: Tensors = {}
            for tensor, values in tensors_of(folder / "plain").items():
                packed = tensor.endswith(one.packed)
                block = one.settings.get("weight_block_size")
                tensors |= one.pack(tensor, values, block) if packed else {tensor: values}
            config = json.loads((folder / "plain" / "config.json").read_text())
            config["quantization_config"] = one.settings
            made[name] = Base(one, write(folder / "base", sharded(tensors), config))
        return made[name]

    return make


# ---------------------------------------------------------------------------------------------------------- adapters

ATTENTION = {
    "gpt-oss": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "qwen3-moe": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "deepseek-v3": ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"],
}
NAMES = ["gate_proj", "up_proj", "down_proj"]  # of single experts


def attention(base: Base, folder: Path) -> Path:
    return saved(base, folder, target_modules=ATTENTION[base.kind.family.name])


def fused(base: Base, folder: Path) -> Path:
    """Factors for the parameters in which Transformers holds all experts of a layer."""
    return saved(base, folder, target_modules=[], target_parameters=FUSED)


def named(base: Base, folder: Path) -> Path:
    """Single experts asked for by name: PEFT makes factors for the fused parameters."""
    return saved(base, folder, target_modules=["o_proj", *NAMES])


def single(base: Base, folder: Path) -> Path:
    """A file of an older Transformers, in which every expert is a module: PEFT fuses its factors when it loads it."""
    fused(base, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    config |= {"target_modules": r".*\.(experts\..*(gate|up|down)|self_attn\.o)_proj", "target_parameters": None}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    rng = torch.Generator().manual_seed(5)
    tensors = {}
    for name, weight in tensors_of(base.folder).items():
        if (".experts." in name and name.endswith("_proj.weight")) or name.endswith(".o_proj.weight"):
            module = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{module}.lora_A.weight"] = 0.1 * torch.randn(4, weight.shape[1], generator=rng)
            tensors[f"{module}.lora_B.weight"] = 0.1 * torch.randn(weight.shape[0], 4, generator=rng)
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    return folder


def one_expert(base: Base, folder: Path) -> Path:
    """All of B is zero but for one expert."""
    fused(base, folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    for name, tensor in tensors.items():
        if "lora_B" in name:
            others = torch.arange(tensor.shape[1]) % N_EXPERTS != ONE
            tensor[:, others] = 0
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    return folder


def saved(base: Base, folder: Path, **settings: object) -> Path:
    torch.manual_seed(3)
    model = get_peft_model(base.live(), LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **settings))
    perturb(model, seed=4, std=0.05)
    model.save_pretrained(folder)
    return folder


FORMS = [
    *[(name, form) for name in KINDS for form in (attention, fused)],
    *[(name, form) for name in ("qwen3-moe", "deepseek-v3") for form in (named, single)],
]
each_form = pytest.mark.parametrize(("name", "form"), FORMS, ids=[f"{n}-{f.__name__}" for n, f in FORMS])
each_base = pytest.mark.parametrize("name", KINDS)


# ------------------------------------------------------------------------------------------------------------- tests


def test_the_writer_of_mxfp4():
    """It gives back values that have codes, and is never farther off than half a step."""
    exact = convert_moe_packed_tensors(*mxfp4("x", torch.randn(4, 64, 32)).values(), dtype=torch.bfloat16)
    assert torch.equal(convert_moe_packed_tensors(*mxfp4("x", exact).values(), dtype=torch.bfloat16), exact)
    values = torch.randn(4, 64, 32)
    got = convert_moe_packed_tensors(*mxfp4("x", values).values(), dtype=torch.float32)
    largest = values.unflatten(1, (-1, 32)).abs().amax(2, keepdim=True).expand(-1, -1, 32, -1).flatten(1, 2)
    assert ((got - values).abs() <= largest / 4).all()


@each_form
def test_a_merge_is_the_dequantised_base_with_its_adapter(bases, tmp_path, name, form):
    base = bases(name)
    family, adapter, out = base.kind.family, form(base, tmp_path / "adapter"), tmp_path / "out"
    model = base.live()
    feed = inputs(family, model)
    bare = logits(model, feed)
    tuned = logits(PeftModel.from_pretrained(model, adapter).eval(), feed)
    assert float((tuned - bare).abs().max()) > 10 * MAX_ABS

    receipt = merge(base.folder, adapter, out, options=Options(dtype="F32"))
    assert any("weights are dequantised" in note for note in receipt.notes)
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    merged = load(family, out)  # no key is missing or unexpected
    assert not getattr(merged, "is_quantized", False)
    comparison = compare(tuned, logits(merged, feed))
    assert comparison.same, comparison


@each_form
def test_verified(bases, tmp_path, name, form):
    base = bases(name)
    adapter, out = form(base, tmp_path / "adapter"), tmp_path / "out"
    merge(base.folder, adapter, out)
    verdict = verify(base.folder, adapter, out, full=True, logits=LogitsSettings(n_prompts=1))
    assert verdict.ok, verdict
    assert verdict.logits is not None


@each_base
def test_logits_of_a_merge_in_float32(bases, tmp_path, name):
    """The limits are the narrow ones."""
    base, options = bases(name), Options(dtype="F32")
    adapter, out = fused(base, tmp_path / "adapter"), tmp_path / "out"
    merge(base.folder, adapter, out, options=options)
    verdict = verify(base.folder, adapter, out, options=options, logits=LogitsSettings(n_prompts=1))
    assert verdict.ok, verdict


@each_base
def test_a_dequantised_base_is_what_transformers_loads(bases, tmp_path, name):
    base = bases(name)
    dequantize(base.folder, tmp_path / "out")
    ours = load(base.kind.family, tmp_path / "out").state_dict()
    theirs = base.live().state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())


@each_base
def test_the_right_expert_and_no_other(bases, tmp_path, name):
    base = bases(name)
    adapter = one_expert(base, tmp_path / "adapter")
    merge(base.folder, adapter, tmp_path / "out")
    dequantize(base.folder, tmp_path / "dense")
    before, after = tensors_of(tmp_path / "dense"), tensors_of(tmp_path / "out")
    assert before.keys() == after.keys()
    for tensor, values in before.items():
        if not (".experts." in tensor and tensor.endswith(base.kind.packed)):
            assert same_bytes(values, after[tensor]), tensor
        elif name == "gpt-oss":
            others = [e for e in range(N_EXPERTS) if e != ONE]
            assert same_bytes(values[others] + 0.0, after[tensor][others]), tensor
            assert not torch.equal(values[ONE], after[tensor][ONE]), tensor
        else:
            tuned = f".experts.{ONE}." in tensor
            assert tuned != same_bytes(values + 0.0, after[tensor]), tensor  # W + 0 has no minus zero
    expected = PeftModel.from_pretrained(base.live(), adapter).merge_and_unload().state_dict()
    got = load(base.kind.family, tmp_path / "out").state_dict()
    assert expected.keys() == got.keys()
    # PEFT sums in another order, which at times decides a rounding.
    assert all(torch.allclose(got[n], expected[n].bfloat16().float(), rtol=2**-7, atol=1e-6) for n in got)


def same_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    assert one.dtype == other.dtype
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


@each_base
def test_rows_of_an_expert_in_the_wrong_order_are_found(bases, tmp_path, name):
    base, out = bases(name), tmp_path / "out"
    adapter = attention(base, tmp_path / "adapter")
    merge(base.folder, adapter, out)
    assert verify(base.folder, adapter, out, full=True).ok
    expert = read_dense(out).tensors[
        "model.layers.1.mlp.experts." + ("down_proj" if name == "gpt-oss" else f"{ONE}.up_proj.weight")
    ]
    path, size = out / expert.file, expert.n_bytes // expert.n_values * expert.shape[-1]
    data = bytearray(path.read_bytes())
    first, second = (slice(expert.begin + i * size, expert.begin + (i + 1) * size) for i in (5, 6))
    data[first], data[second] = data[second], data[first]
    path.chmod(0o644)
    path.write_bytes(data)
    verdict = verify(base.folder, adapter, out, full=True)
    assert not verdict.ok
    assert expert.name in str(verdict)


@each_base
def test_scales_in_another_file_or_the_same(bases, tmp_path, name):
    base = bases(name)
    config = json.loads((base.folder / "config.json").read_text())
    whole = write(tmp_path / "whole", {FILES[0]: tensors_of(base.folder)}, config)
    adapter = fused(base, tmp_path / "adapter")
    for folder, out in ((base.folder, "one"), (whole, "two")):
        merge(folder, adapter, tmp_path / out)
    one, two = tensors_of(tmp_path / "one"), tensors_of(tmp_path / "two")
    assert one.keys() == two.keys()
    assert all(same_bytes(tensor, two[key]) for key, tensor in one.items())


@each_base
def test_a_missing_scale_is_named(bases, tmp_path, name):
    base = bases(name)
    adapter = attention(base, tmp_path / "adapter")
    files = {file: load_file(base.folder / file) for file in FILES}
    experts = sorted(n for n in files[FILES[1]] if ".experts." in n)
    lost = experts[len(experts) // 2]
    del files[FILES[1]][lost]
    broken = write(tmp_path / "broken", files, json.loads((base.folder / "config.json").read_text()))
    with pytest.raises(FormatError, match=rf"no {lost}(?!_)"):
        merge(broken, adapter, tmp_path / "out")
    run = CliRunner().invoke(app, ["merge", str(broken), str(adapter), "-o", str(tmp_path / "out")])
    assert run.exit_code == FormatError.exit_code, run.output
    assert isinstance(run.exception, SystemExit)
    assert lost in "".join(run.output.split())
    assert "Traceback" not in run.output
    assert not (tmp_path / "out").exists()
    assert not [path for path in tmp_path.iterdir() if path.name not in ("adapter", "broken")]


def test_scales_without_their_weight_are_refused(bases, tmp_path):
    base = bases("qwen3-moe")
    adapter = attention(base, tmp_path / "adapter")
    files = {file: load_file(base.folder / file) for file in FILES}
    lost = "model.layers.1.mlp.experts.0.gate_proj.weight"
    del files[FILES[0]][lost]
    broken = write(tmp_path / "broken", files, json.loads((base.folder / "config.json").read_text()))
    with pytest.raises(FormatError, match=f"there is no {lost}"):
        merge(broken, adapter, tmp_path / "out")
