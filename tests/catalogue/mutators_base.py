"""Another base than the adapter was trained on, a damaged one, and tokenizers: F01, F06, F12, F14, F17, F24, F47."""

from __future__ import annotations

import json
import re
import shutil

import torch
from mutants import CONFIG, PREFIX, WEIGHTS, Subject, merged, mutator


def _targets(s: Subject) -> list[str]:
    """Matrices of the base that LoRA changes, by their names on disk."""
    return sorted(f"{m.removeprefix(PREFIX)}.weight" for m in s.modules if f"{m.removeprefix(PREFIX)}.weight" in s.base)


def _others(s: Subject) -> list[str]:
    """Tensors of the base that the adapter does not touch."""
    touched = {k.removeprefix(PREFIX) for k in s.tensors} | {*_targets(s)}
    return sorted(k for k, x in s.base.items() if k not in touched and x.ndim > 0 and not k.startswith("lm_head"))


def _levels(config: dict) -> list[dict]:
    return [config, *(v for v in config.values() if isinstance(v, dict))]


@mutator("F06", "base: other values everywhere")
def other_values(s: Subject) -> bool:
    rng = torch.Generator().manual_seed(s.rng.randrange(1 << 30))
    for name, x in s.base.items():
        if x.is_floating_point() and x.ndim > 1:
            s.base[name] = (torch.randn(x.shape, generator=rng) * x.float().std()).to(x.dtype)
    return True


@mutator("F06", "base: fine-tuned further")
def slightly_other_values(s: Subject) -> bool:
    rng = torch.Generator().manual_seed(s.rng.randrange(1 << 30))
    for name, x in s.base.items():
        if x.is_floating_point() and x.ndim > 1:
            s.base[name] = x + (0.05 * torch.randn(x.shape, generator=rng) * x.float().std()).to(x.dtype)
    return True


@mutator("F24", "base: this adapter is merged already")
def merged_already(s: Subject) -> bool:
    folder = s.pair.base.parent.parent / "merged" / s.pair.adapter.name / s.pair.base.name
    if not folder.exists():
        merged(s.pair.base, s.pair.adapter, s.pair, folder)
    s.base_folder = folder
    return True


@mutator("F24", "base: this adapter is merged already, by a tool without a receipt")
def merged_by_others(s: Subject) -> bool:
    merged_already(s)
    assert s.base_folder is not None
    bare = s.base_folder.parent / "bare" / s.base_folder.name
    if not bare.exists():
        shutil.copytree(s.base_folder, bare, ignore=shutil.ignore_patterns("suture*"))
    s.base_folder = bare
    return True


@mutator("F06", "base: one layer less")
def layer_less(s: Subject) -> bool:
    last = [k for k in s.base if re.match(r"[^0-9]*\.1\.", k)]
    fields = [(c, f) for c in _levels(s.base_config) for f in ("num_hidden_layers", "n_layer") if c.get(f) == 2]
    for config, field in fields:
        config[field] = 1
        if "layer_types" in config:
            config["layer_types"] = config["layer_types"][:1]
    for name in last:
        del s.base[name]
    return bool(last and fields)


@mutator("F06", "base: a layer's tensors are missing")
def layer_missing(s: Subject) -> bool:
    last = [k for k in s.base if re.match(r"[^0-9]*\.1\.", k)]
    for name in last:
        del s.base[name]
    return bool(last)


def _with_vocabulary(s: Subject, n: int) -> bool:
    levels = [c for c in _levels(s.base_config) if c.get("vocab_size") == 96]
    for config in levels:
        config["vocab_size"] = n
    for name, x in s.base.items():
        if (
            x.ndim
            and x.shape[0] == 96
            and re.search(r"embed|wte|word|shared|lm_head|embed_out|decoder\.(w|b)|predictions.bias|final_logits", name)
        ):
            s.base[name] = torch.cat([x, x])[:n]
    return bool(levels)


@mutator("F34", "base: fewer tokens")
def fewer_tokens(s: Subject) -> bool:
    return _with_vocabulary(s, 80)


@mutator("F12", "base: more tokens")
def more_tokens(s: Subject) -> bool:
    return _with_vocabulary(s, 112)


@mutator("F01", "base: tie flag flipped")
def flag_flipped(s: Subject) -> bool:
    flags = [c for c in _levels(s.base_config) if "tie_word_embeddings" in c]
    for config in flags:
        config["tie_word_embeddings"] = not config["tie_word_embeddings"]
    return bool(flags)


@mutator("F14", "base: quantization_config, floats")
def says_quantised(s: Subject) -> bool:
    s.base_config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    return True


@mutator("F17", "base: a target is stored in 8 bits")
def stored_in_bytes(s: Subject) -> bool:
    for name in s.pick(_targets(s)):
        x = s.base[name]
        s.base[name], s.base[f"{name}_scale_inv"] = x.to(torch.float8_e4m3fn), torch.ones(1)
        return True
    return False


@mutator("F17", "base: a target is stored in 4 bits")
def stored_in_nibbles(s: Subject) -> bool:
    for name in s.pick(_targets(s)):
        x = s.base[name]
        s.base[name] = torch.zeros((x.numel() + 1) // 2, 1, dtype=torch.uint8)
        s.base[f"{name}.absmax"] = torch.ones(x.numel() // 64 + 1)
        return True
    return False


@mutator("F06", "base: a target is missing")
def target_missing(s: Subject) -> bool:
    chosen = s.pick(_targets(s))
    for name in chosen:
        del s.base[name]
    return bool(chosen)


@mutator("F36", "base: a tensor that the adapter leaves alone is missing")
def other_missing(s: Subject) -> bool:
    chosen = s.pick(_others(s))
    for name in chosen:
        del s.base[name]
    return bool(chosen)


@mutator("F33", "base: a target is stored transposed")
def transposed(s: Subject) -> bool:
    chosen = s.pick([n for n in _targets(s) if s.base[n].ndim == 2 and s.base[n].shape[0] != s.base[n].shape[1]])
    for name in chosen:
        s.base[name] = s.base[name].T.contiguous()
    return bool(chosen)


@mutator("F40", "base: NaN in a target")
def nan_in_target(s: Subject) -> bool:
    return _nan(s, s.pick(_targets(s)))


@mutator("F40", "base: NaN in a tensor that the adapter leaves alone")
def nan_elsewhere(s: Subject) -> bool:
    return _nan(s, s.pick([n for n in _others(s) if s.base[n].is_floating_point()]))


def _nan(s: Subject, names: list[str]) -> bool:
    for name in names:
        x = s.base[name].clone()
        x.view(-1)[x.numel() // 2] = float("nan")
        s.base[name] = x
    return bool(names)


@mutator("F36", "base: tensors that its class does not know")
def unknown_tensors(s: Subject) -> bool:
    s.base["mtp.layers.0.weight"] = torch.ones(4, 4)
    return True


@mutator("F24", "base: an adapter stands beside its weights")
def adapter_beside(s: Subject) -> bool:
    s.base_files |= {name: (s.pair.adapter / name).read_bytes() for name in (CONFIG, WEIGHTS)}
    return True


@mutator("F42", "base: its weights are cut")
def cut_shard(s: Subject) -> bool:
    file = sorted(s.pair.base.glob("*.safetensors"))[-1]
    s.base_files[file.name] = file.read_bytes()[:-8]
    return True


@mutator("F42", "base: one shard is missing")
def shard_missing(s: Subject) -> bool:
    files = sorted(s.pair.base.glob("*.safetensors"))
    s.base_files[files[-1].name] = None
    return len(files) > 1


@mutator("F42", "base: its index names other files")
def bad_index(s: Subject) -> bool:
    for file in s.pair.base.glob("*.index.json"):
        index = json.loads(file.read_text())
        name = min(index["weight_map"])
        index["weight_map"][name] = max(v for v in index["weight_map"].values() if v != index["weight_map"][name])
        s.base_files[file.name] = json.dumps(index).encode()
        return True
    return False


@mutator("F42", "base: no config")
def no_config(s: Subject) -> bool:
    s.base_files["config.json"] = None
    return True


@mutator("F06", "base: another architecture")
def other_architecture(s: Subject) -> bool:
    if s.base_config["model_type"] not in ("llama", "qwen2", "mistral"):
        return False
    s.base_config |= {"model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"]}
    return True


@mutator("F06", "base: a class without its head")
def headless(s: Subject) -> bool:
    if s.base_config["model_type"] != "llama":
        return False
    s.base_config["architectures"] = ["LlamaModel"]
    return True


# ---------------------------------------------------------------------------------------------------------- tokenizers


def _words(s: Subject) -> dict | None:
    file = s.pair.adapter / "tokenizer.json"
    return json.loads(file.read_text()) if file.exists() else None


@mutator("F47", "tokenizer: two ids exchanged")
def exchanged_ids(s: Subject) -> bool:
    content = _words(s)
    if content is None:
        return False
    words = content["model"]["vocab"]
    words["w10"], words["w11"] = words["w11"], words["w10"]
    s.files["tokenizer.json"] = json.dumps(content).encode()
    return True


@mutator("F47", "tokenizer: tokens are missing")
def fewer_words(s: Subject) -> bool:
    content = _words(s)
    if content is None:
        return False
    content["model"]["vocab"] = {w: i for w, i in content["model"]["vocab"].items() if i < 50}
    s.files["tokenizer.json"] = json.dumps(content).encode()
    return True


@mutator("F12", "tokenizer: more tokens than rows")
def more_words(s: Subject) -> bool:
    content = _words(s)
    if content is None:
        return False
    content["model"]["vocab"] |= {f"new{i}": 104 + i for i in range(9)}
    s.files["tokenizer.json"] = json.dumps(content).encode()
    return True


@mutator("F47", "tokenizer: no JSON")
def broken_words(s: Subject) -> bool:
    s.files["tokenizer.json"] = b"{"
    return _words(s) is not None


@mutator("F47", "tokenizer: another end of text")
def other_end(s: Subject) -> bool:
    file = s.pair.adapter / "tokenizer_config.json"
    if not file.exists():
        return False
    s.files[file.name] = json.dumps({**json.loads(file.read_text()), "eos_token": "w40"}).encode()
    return True
