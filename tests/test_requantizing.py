"""Merges that keep the base's quantised form, held against the library that quantised it."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import bitsandbytes.functional as bnb
import pytest
import torch
from click.testing import CliRunner
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import VOCAB, make_base
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig

from suture import Options, check, dequantize, merge, verify
from suture.cli.app import app
from suture.errors import Findings, UsageError
from suture.execute import pieces
from suture.values import Running

KINDS = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "nf4-nested": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "int8": {"load_in_8bit": True},
}
SIZES = {"hidden_size": 64, "intermediate_size": 192, "num_attention_heads": 4, "num_key_value_heads": 2}
FEED = torch.arange(5, 45).reshape(2, 20)
SAME = Options(output="same")
CHANGED = [f"model.layers.{n}.{name}.weight" for n in (0, 1) for name in ("self_attn.q_proj", "mlp.down_proj")]


def load(folder: Path, **settings):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **settings)


def adapter(model, folder: Path, size: float) -> Path:
    """An adapter for two modules of each layer, whose updates are about so large beside the weights."""
    tuned = get_peft_model(
        model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], lora_alpha=4, task_type="CAUSAL_LM")
    )
    generator = torch.Generator().manual_seed(1)
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * (0.02 * size / 2) ** 0.5
    tuned.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=sorted(KINDS))
def made(request, tmp_path_factory, quiet_torch):
    """A base quantised by the library, in several files, an adapter of some size, and their merge."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=VOCAB, num_hidden_layers=2, **SIZES))
    model.to(torch.bfloat16).save_pretrained(folder / "plain")
    settings = BitsAndBytesConfig(**KINDS[request.param])
    model = AutoModelForCausalLM.from_pretrained(folder / "plain", quantization_config=settings)
    model.save_pretrained(folder / "base", max_shard_size="60kB")
    adapter(model, folder / "adapter", 0.3)
    merge(folder / "base", folder / "adapter", folder / "out", options=SAME)
    return request.param, folder


def tensors(folder: Path):
    """All tensors, and the file that each is in."""
    files = sorted(folder.glob("*.safetensors"))
    found = {name: (path.name, tensor) for path in files for name, tensor in load_file(path).items()}
    return {n: t for n, (_, t) in found.items()}, {n: f for n, (f, _) in found.items()}


def test_the_form_is_the_bases(made):
    _, folder = made
    (before, files), (after, others) = tensors(folder / "base"), tensors(folder / "out")
    assert files == others
    assert len(set(files.values())) > 1
    assert all((before[n].dtype, before[n].shape) == (after[n].dtype, after[n].shape) for n in before)
    assert (folder / "base" / "config.json").read_bytes() == (folder / "out" / "config.json").read_bytes()
    names = ("weight_map", "metadata")
    one, other = (json.loads((folder / f / "model.safetensors.index.json").read_text()) for f in ("base", "out"))
    assert [one[name] for name in names] == [other[name] for name in names]


def test_only_what_the_adapter_changes_is_changed(made):
    _, folder = made
    before, after = tensors(folder / "base")[0], tensors(folder / "out")[0]
    differ = {name for name in before if not torch.equal(before[name], after[name])}
    owners = {name.split(".weight")[0].removesuffix(".SCB") + ".weight" for name in differ}
    assert owners == set(CHANGED)
    assert not [name for name in differ if "quant_map" in name or "quant_state" in name]


def test_the_quantiser_rounds_whatever_rounding_is_asked_for(made, tmp_path):
    _, folder = made
    options = Options(output="same", rounding="stochastic")
    receipt = merge(folder / "base", folder / "adapter", tmp_path / "out", options=options)
    assert any("no tensor that changes is written in 16 bits" in note for note in receipt.notes)
    one, other = tensors(folder / "out")[0], tensors(tmp_path / "out")[0]
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_transformers_loads_it_as_it_loads_the_base(made):
    _, folder = made
    told = [load(folder / name, output_loading_info=True)[1] for name in ("base", "out")]
    assert not told[1]["missing_keys"]
    assert told[1]["unexpected_keys"] == told[0]["unexpected_keys"]
    assert load(folder / "out").is_quantized


def quantized(kind: str, weight: torch.Tensor) -> torch.Tensor:
    """The library's own quantisation of a weight, dequantised by its formula."""
    if kind == "int8":
        codes, scales, _ = bnb.int8_vectorwise_quant(weight.half())
        return bnb.int8_vectorwise_dequant(codes, scales)
    codes, state = bnb.quantize_4bit(weight, blocksize=64, quant_type=kind.partition("-")[0])
    pairs = torch.stack([codes >> 4, codes & 15], -1).reshape(-1, 64).long()
    return (state.code[pairs] * state.absmax[:, None]).reshape(weight.shape)


def test_it_stands_for_what_the_library_makes_of_base_and_adapter(made, tmp_path):
    kind, folder = made
    dequantize(folder / "out", tmp_path / "out", dtype="F32")
    merge(folder / "base", folder / "adapter", tmp_path / "dense", options=Options(dtype="F32"))
    found, wanted = tensors(tmp_path / "out")[0], tensors(tmp_path / "dense")[0]
    for name in CHANGED:
        right = quantized(kind, wanted[name])
        # Nested scales are quantised against the old mean, and all but int8 are rounded to bf16 at the end.
        slack = {"int8": 1e-6, "nf4-nested": 2e-2}.get(kind, 2**-8)
        assert torch.allclose(found[name], right, rtol=slack, atol=1e-9), name
        off = (found[name] - wanted[name]).norm() / (right - wanted[name]).norm()
        assert 0.97 < off < 1.03, "no worse than the library"


def test_nested_scales_are_next_to_the_new_ones(made):
    kind, folder = made
    if kind != "nf4-nested":
        pytest.skip("no nested scales")
    after = tensors(folder / "out")[0]
    for name in CHANGED:
        state = json.loads(bytes(after[f"{name}.quant_state.bitsandbytes__nf4"].numpy()))
        scales = after[f"{name}.nested_quant_map"][after[f"{name}.absmax"].long()]
        scales = scales * after[f"{name}.nested_absmax"].repeat_interleave(256)[: len(scales)] + state["nested_offset"]
        assert scales.min() > 0


def test_it_computes_what_base_and_adapter_compute_as_well_as_codes_can(made):
    kind, folder = made
    base, out = (load(folder / name).dequantize().float() for name in ("base", "out"))
    with torch.no_grad():
        bare, merged = base(FEED).logits, out(FEED).logits
        tuned = PeftModel.from_pretrained(base, folder / "adapter").eval()(FEED).logits
    left = (tuned - merged).norm() / (tuned - bare).norm()
    assert left < (0.05 if kind == "int8" else 0.6)


@pytest.mark.parametrize("full", [False, True])
def test_it_verifies(made, full):
    _, folder = made
    verdict = verify(folder / "base", folder / "adapter", folder / "out", options=SAME, full=full)
    assert verdict.ok
    assert next(c for c in verdict.checks if c.name == "tensors that change").n_checked >= 2 * len(CHANGED)


def spoilt(folder: Path, to: Path, change) -> Path:
    """A copy of the merge, without its receipt, with tensors changed."""
    to.mkdir()
    for path in (folder / "out").iterdir():
        if path.suffix == ".safetensors":
            save_file(change(load_file(path)), to / path.name, metadata={"format": "pt"})
        elif path.name != "suture_receipt.json":
            (to / path.name).write_bytes(path.read_bytes())
    return to


def wrong(folder: Path, found: Path, *, full: bool = False) -> dict[str, str]:
    verdict = verify(folder / "base", folder / "adapter", found, options=SAME, full=full)
    assert verdict.ok == (not verdict.wrong)
    return {t.tensor: t.status for t in verdict.wrong}


def of(name: str, weight: str) -> bool:
    return name == weight or name.startswith(f"{weight}.") or name == weight.replace(".weight", ".SCB")


def test_a_missing_update_is_found(made, tmp_path):
    _, folder = made
    base = tensors(folder / "base")[0]
    out = spoilt(folder, tmp_path / "out", lambda ts: {n: base[n] if of(n, CHANGED[0]) else t for n, t in ts.items()})
    found = wrong(folder, out)
    assert found
    assert all(of(name, CHANGED[0]) and status == "unchanged" for name, status in found.items())


def test_another_layers_weight_is_found(made, tmp_path):
    _, folder = made
    merged = tensors(folder / "out")[0]
    swap = {"model.layers.0.self_attn.q_proj": "model.layers.1.self_attn.q_proj"}
    [(here, there)] = swap.items()
    out = spoilt(folder, tmp_path / "out", lambda ts: {n: merged[n.replace(here, there)] for n in ts})
    found = wrong(folder, out)
    assert CHANGED[0] in found
    assert all(of(name, CHANGED[0]) for name in found)


@pytest.mark.parametrize("scale", [0.5, 0.9, 2.0])
def test_another_scale_is_found(made, tmp_path, scale):
    _, folder = made
    (tmp_path / "other").mkdir()
    for path in (folder / "adapter").iterdir():
        (tmp_path / "other" / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    config["lora_alpha"] = 4 * scale
    (tmp_path / "other" / "adapter_config.json").write_text(json.dumps(config))
    options = Options(output="same", ignore=("N512",))
    merge(folder / "base", tmp_path / "other", tmp_path / "out", options=options)
    (tmp_path / "out" / "suture_receipt.json").unlink()
    assert set(CHANGED) <= wrong(folder, tmp_path / "out").keys()


def test_one_wrong_code_is_found(made, tmp_path):
    _, folder = made

    def change(ts):
        if CHANGED[0] in ts:
            flat = ts[CHANGED[0]].view(torch.uint8).reshape(-1)
            flat[-1] = flat[-1] ^ 0x70
        return ts

    assert wrong(folder, spoilt(folder, tmp_path / "out", change), full=True) == {CHANGED[0]: "wrong"}


def test_the_bytes_do_not_depend_on_workers_or_interruptions(made, tmp_path, monkeypatch, caplog):
    _, folder = made
    monkeypatch.setattr(pieces, "PIECE_BYTES", 1 << 12)
    merge(folder / "base", folder / "adapter", tmp_path / "one", options=SAME, running=Running(workers=1))
    code = (
        "import sys; from pathlib import Path; from crash import runner; from suture import Options, merge\n"
        "from suture.execute import pieces; from suture.values import Running\n"
        "base, adapter, out = map(Path, sys.argv[1:]); pieces.PIECE_BYTES = 1 << 12\n"
        "runner.at_call(30, 'pwrite', runner.kill, before=False)\n"
        "merge(base, adapter, out, options=Options(output='same'), running=Running(workers=2))\n"
    )
    paths = [str(p) for p in (folder / "base", folder / "adapter", tmp_path / "two")]
    tests = str(Path(__file__).parent)
    killed = subprocess.run([sys.executable, "-c", f"import sys; sys.path.insert(0, {tests!r})\n{code}", *paths])
    assert killed.returncode == -9
    assert not (tmp_path / "two").exists()
    with caplog.at_level(logging.WARNING):
        merge(folder / "base", folder / "adapter", tmp_path / "two", options=SAME, running=Running(workers=3))
    assert "going on with an interrupted merge" in caplog.text
    for path in sorted((tmp_path / "one").iterdir()):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_weights_of_many_blocks(made, tmp_path, monkeypatch):
    """Products of other heights may round otherwise, so that a code or two may be others."""
    _, folder = made
    monkeypatch.setattr("suture.planning.layout.BLOCK_VALUES", 1 << 10)
    monkeypatch.setattr("suture.planning.layout.MIN_BLOCK_ROWS", 12)
    merge(folder / "base", folder / "adapter", tmp_path / "out", options=SAME)
    one, other = tensors(folder / "out")[0], tensors(tmp_path / "out")[0]
    for name in one:
        assert (one[name] != other[name]).float().mean() < 1e-3 or torch.allclose(one[name], other[name], rtol=1e-5)


def test_an_update_that_would_be_erased_is_refused(made, tmp_path):
    kind, folder = made
    small = adapter(load(folder / "base"), tmp_path / "adapter", 0.002 if kind == "int8" else 0.01)
    with pytest.raises(Findings, match="N512"):
        merge(folder / "base", small, tmp_path / "out", options=SAME)
    assert not (tmp_path / "out").exists()
    merge(folder / "base", small, tmp_path / "dense")
    options = Options(output="same", ignore=("N512",))
    receipt = merge(folder / "base", small, tmp_path / "out", options=options)
    assert any("what quantisation leaves of the update" in note for note in receipt.notes)
    assert verify(folder / "base", small, tmp_path / "out", options=options, full=True).ok


def test_a_weight_that_was_trained_in_full_is_measured_too(made, tmp_path):
    """By a thousandth of the weights: no code follows that."""
    _, folder = made
    model = load(folder / "plain")
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["down_proj"]))
    dequantize(folder / "base", tmp_path / "dense", dtype="F32")
    whole = load_file(tmp_path / "dense" / "model.safetensors")
    for name, parameter in tuned.named_parameters():
        if "down_proj.modules_to_save" in name:
            value = whole[f"{name.removeprefix('base_model.model.').split('.modules_to_save')[0]}.weight"]
            parameter.data = value + torch.randn(value.shape) * 1e-3 * value.std()
    tuned.save_pretrained(tmp_path / "adapter")
    with pytest.raises(Findings, match="N512"):
        merge(folder / "base", tmp_path / "adapter", tmp_path / "out", options=SAME)
    found = [f for f in check(folder / "base", tmp_path / "adapter", deep=True, options=SAME) if f.code == "N512"]
    assert "2 weights that are quantised again" in found[0].where


def test_the_table_is_that_of_the_files(made, tmp_path):
    """What was measured on sampled rows, against the merged and the dense model."""
    _, folder = made
    line = ["check", str(folder / "base"), str(folder / "adapter"), "--deep", "--output", "same", "--json"]
    layers = {layer["tensor"]: layer for layer in json.loads(CliRunner().invoke(app, line).stdout)["layers"]}
    assert layers.keys() == set(CHANGED)
    dequantize(folder / "base", tmp_path / "base", dtype="F32")
    dequantize(folder / "out", tmp_path / "out", dtype="F32")
    merge(folder / "base", folder / "adapter", tmp_path / "dense", options=Options(dtype="F32"))
    before, after, wanted = (tensors(tmp_path / name)[0] for name in ("base", "out", "dense"))
    for name, layer in layers.items():
        update, applied = (x[name].double() - before[name].double() for x in (wanted, after))
        assert layer["update"] == pytest.approx(update.norm().item(), rel=1e-4)
        cosine = ((update * applied).sum() / update.norm() / applied.norm()).item()
        assert layer["cosine"] == pytest.approx(cosine, abs=5e-3)
        assert layer["error"] == pytest.approx(((applied - update).norm() / update.norm()).item(), rel=2e-2)


def test_what_makes_no_sense_is_refused(made, tmp_path):
    _, folder = made
    plain = make_base(tmp_path / "plain")
    with pytest.raises(UsageError, match="not quantised"):
        merge(plain, folder / "adapter", tmp_path / "out", options=SAME)
    with pytest.raises(UsageError, match="the type of the weights"):
        merge(folder / "base", folder / "adapter", tmp_path / "out", options=Options(output="same", dtype="F32"))
    assert not (tmp_path / "out").exists()


def test_a_scheme_that_nobody_can_write_is_named(made, tmp_path, monkeypatch):
    kind, folder = made
    monkeypatch.setattr("suture.planning.requantize.quantizer_of", lambda packed: None)
    with pytest.raises(UsageError, match="cannot be quantised again") as caught:
        merge(folder / "base", folder / "adapter", tmp_path / "out", options=SAME)
    assert ("bitsandbytes8" if kind == "int8" else "bitsandbytes4") in caught.value.where
    assert "--output dense" in caught.value.do


def test_layers_of_the_default_are_none(made):
    _, folder = made
    found = check(folder / "base", folder / "adapter", deep=True)
    assert "N512" not in {f.code for f in found}
