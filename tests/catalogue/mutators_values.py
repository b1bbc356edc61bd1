"""Defects of shapes, values and bytes: F10, F15, F16, F20, F21, F28, F29, F33, F40, F45, and damaged files."""

from __future__ import annotations

import json
import re

import torch
from mutants import PREFIX, Subject, mutator

A, B = (".lora_A.weight", ".lora_embedding_A"), (".lora_B.weight", ".lora_embedding_B")
SECOND = (".lora_B.weight", ".lora_embedding_A")  # zero before training
TOKENS = ".trainable_tokens_delta"
MAGNITUDE = ".lora_magnitude_vector"


def _matrices(s: Subject) -> list[str]:
    """Whole matrices that take the base's place."""
    keys = [k for k in s.keys(".weight") if "lora_" not in k and "base_layer" not in k and "original_module" not in k]
    return [k for k in keys if s.tensors[k].ndim == 2]


# ---------------------------------------------------------------------------------------------------- ranks and shapes


@mutator("F20", "rank: of one pair smaller")
def smaller_rank(s: Subject) -> bool:
    chosen = s.pick(s.modules)
    s.put([f"{module}.lora_A.weight" for module in chosen], lambda x: x[: x.shape[0] // 2])
    return s.put([f"{module}.lora_B.weight" for module in chosen], lambda x: x[:, : x.shape[1] // 2])


@mutator("F20", "rank: of one pair larger, with zeros")
def larger_rank(s: Subject) -> bool:
    for module in s.pick(s.modules):
        a, b = f"{module}.lora_A.weight", f"{module}.lora_B.weight"
        s.put([a], lambda x: torch.cat([x, torch.zeros_like(x)]))
        return s.put([b], lambda x: torch.cat([x, torch.zeros_like(x)], 1))
    return False


@mutator("F20", "rank: of one A smaller")
def smaller_a(s: Subject) -> bool:
    return s.put(s.pick(s.keys(*A)), lambda x: x[:-1])


@mutator("F20", "rank: of every pair smaller")
def all_smaller(s: Subject) -> bool:
    s.put(s.keys(*A), lambda x: x[: x.shape[0] // 2])
    return s.put(s.keys(*B), lambda x: x[:, : x.shape[1] // 2])


@mutator("F45", "shape: B without its last rows")
def fewer_rows(s: Subject) -> bool:
    return s.put(s.pick(s.keys(*B)), lambda x: x[:-2])


@mutator("F45", "shape: A without its last columns")
def fewer_columns(s: Subject) -> bool:
    return s.put(s.pick(s.keys(*A)), lambda x: x[:, :-2])


@mutator("F46", "shape: one A transposed")
def transposed_a(s: Subject) -> bool:
    return s.put(s.pick(s.keys(*A)), lambda x: x.transpose(0, 1))


@mutator("F46", "shape: every factor transposed")
def transposed_all(s: Subject) -> bool:
    return s.put(s.keys(*A, *B), lambda x: x.transpose(0, 1))


@mutator("F12", "shape: a whole matrix without its last rows")
def fewer_saved_rows(s: Subject) -> bool:
    return s.put(s.pick(_matrices(s)), lambda x: x[:-3])


@mutator("F12", "shape: a whole matrix with more rows")
def more_saved_rows(s: Subject) -> bool:
    return s.put(s.pick(_matrices(s)), lambda x: torch.cat([x, x[:3]]))


@mutator("F45", "shape: a whole matrix transposed")
def saved_transposed(s: Subject) -> bool:
    return s.put(s.pick(_matrices(s)), lambda x: x.T)


@mutator("F28", "shape: one row of tokens less")
def fewer_tokens(s: Subject) -> bool:
    return s.put(s.pick(s.keys(TOKENS)), lambda x: x[:-1])


@mutator("F29", "shape: a magnitude without its last value")
def shorter_magnitude(s: Subject) -> bool:
    return s.put(s.pick(s.keys(MAGNITUDE)), lambda x: x.flatten()[:-1])


@mutator("F29", "shape: a magnitude as a column")
def column_magnitude(s: Subject) -> bool:
    return s.put(s.pick(s.keys(MAGNITUDE)), lambda x: x.reshape(-1, 1))


@mutator("F30", "shape: a bias without its last value")
def shorter_bias(s: Subject) -> bool:
    return s.put(s.pick(s.keys(".bias")), lambda x: x[:-1])


# --------------------------------------------------------------------------------- in the wrong place, the right shape


@mutator("F33", "place: both factors of a pair transposed")
def transposed_pair(s: Subject) -> bool:
    for module in s.pick(s.modules):
        a, b = f"{module}.lora_A.weight", f"{module}.lora_B.weight"
        x, y = s.tensors[a], s.tensors[b]
        if x.ndim == 2 and x.shape[0] == y.shape[1]:
            s.tensors[a], s.tensors[b] = y.T.contiguous(), x.T.contiguous()
            return True
    return False


@mutator("F45", "place: rows of a B interleaved as for rotary positions")
def interleaved(s: Subject) -> bool:
    chosen = s.pick([k for k in s.keys(*B) if s.tensors[k].shape[0] % 2 == 0])
    return s.put(chosen, lambda x: x.unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1))


@mutator("F45", "place: pairs of two layers exchanged")
def exchanged_layers(s: Subject) -> bool:
    for module in s.pick(s.modules, len(s.modules)):
        other = module.replace(".0.", ".1.", 1)
        if other != module and f"{other}.lora_A.weight" in s.tensors:
            return _exchange(s, *((f"{module}{f}", f"{other}{f}") for f in (".lora_A.weight", ".lora_B.weight")))
    return False


@mutator("F45", "place: B of two modules exchanged")
def exchanged_b(s: Subject) -> bool:
    keys = s.keys(".lora_B.weight")
    for key in s.pick(keys, len(keys)):
        others = [k for k in keys if k != key and s.tensors[k].shape == s.tensors[key].shape]
        if others:
            return _exchange(s, (key, s.rng.choice(others)))
    return False


def _exchange(s: Subject, *pairs: tuple[str, str]) -> bool:
    if any(s.tensors[a].shape != s.tensors[b].shape for a, b in pairs):
        return False
    for a, b in pairs:
        s.tensors[a], s.tensors[b] = s.tensors[b], s.tensors[a]
    return True


@mutator("F29", "place: values of a magnitude permuted")
def permuted_magnitude(s: Subject) -> bool:
    return s.put(s.pick(s.keys(MAGNITUDE)), lambda x: x.flatten().flip(0).reshape(x.shape))


@mutator("F28", "place: rows of tokens permuted")
def permuted_tokens(s: Subject) -> bool:
    return s.put(s.pick(s.keys(TOKENS)), lambda x: x.flip(0))


@mutator("F12", "place: rows of a whole matrix permuted")
def permuted_rows(s: Subject) -> bool:
    return s.put(s.pick(_matrices(s)), lambda x: x.flip(0))


@mutator("F15", "place: columns of experts' B packed the other way")
def repacked(s: Subject) -> bool:
    keys = [k for k in s.keys(".lora_B.weight") if ".experts." in k and s.tensors[k].shape[1] % 4 == 0]
    return s.put(keys, lambda x: x.unflatten(1, (-1, 4)).transpose(1, 2).flatten(1))


# -------------------------------------------------------------------------------------------------------------- values


@mutator("F10", "zero: every second factor")
def zero_all(s: Subject) -> bool:
    return s.put(s.keys(*SECOND), torch.zeros_like)


@mutator("F10", "zero: one second factor")
def zero_one(s: Subject) -> bool:
    return s.put(s.pick(s.keys(*SECOND)), torch.zeros_like)


@mutator("F10", "zero: the second factors of one kind")
def zero_kind(s: Subject) -> bool:
    kind = s.rng.choice(s.kinds())
    return s.put([k for k in s.keys(*SECOND) if f".{kind}.lora_" in k], torch.zeros_like)


@mutator("F21", "zero: one A")
def zero_a(s: Subject) -> bool:
    return s.put(s.pick(s.keys(".lora_A.weight")), torch.zeros_like)


@mutator("F12", "zero: a whole matrix")
def zero_saved(s: Subject) -> bool:
    return s.put(s.pick(_matrices(s)), torch.zeros_like)


@mutator("F12", "zero: the new rows")
def zero_rows(s: Subject) -> bool:
    keys = [k for k in s.keys(".weight") if s.tensors[k].shape[:1] == (104,) and "lora_" not in k]
    return s.put(keys, lambda x: torch.cat([x[:96], torch.zeros_like(x[96:])]))


@mutator("F12", "equal: the new rows")
def equal_rows(s: Subject) -> bool:
    keys = [k for k in s.keys(".weight") if s.tensors[k].shape[:1] == (104,) and "lora_" not in k]
    return s.put(keys, lambda x: torch.cat([x[:96], x[:96].mean(0, keepdim=True).expand_as(x[96:])]))


@mutator("F28", "zero: trained tokens")
def zero_tokens(s: Subject) -> bool:
    return s.put(s.keys(TOKENS), torch.zeros_like)


@mutator("F28", "difference: trained tokens")
def tokens_as_difference(s: Subject) -> bool:
    return s.put(s.keys(TOKENS), lambda x: x * 0.02)


@mutator("F29", "scaled: magnitudes")
def scaled_magnitudes(s: Subject) -> bool:
    return s.put(s.keys(MAGNITUDE), lambda x: 3 * x)


@mutator("F11", "unchanged: a whole matrix is the base's")
def saved_is_base(s: Subject) -> bool:
    for key in s.pick(_matrices(s), len(_matrices(s))):
        weight = s.base.get(key.removeprefix(PREFIX))
        if weight is not None and weight.shape == s.tensors[key].shape and not torch.equal(weight, s.tensors[key]):
            s.tensors[key] = weight
            del s.__dict__["base"]
            return True
    return False


@mutator("F40", "NaN: one value")
def one_nan(s: Subject) -> bool:
    return s.put(s.pick(sorted(s.tensors)), lambda x: _with(x, float("nan")))


@mutator("F40", "infinite: one value")
def one_inf(s: Subject) -> bool:
    return s.put(s.pick(sorted(s.tensors)), lambda x: _with(x, float("inf")))


@mutator("F40", "NaN: everything")
def all_nan(s: Subject) -> bool:
    return s.put(sorted(s.tensors), lambda x: torch.full_like(x, float("nan")))


def _with(x: torch.Tensor, value: float) -> torch.Tensor:
    x.view(-1)[x.numel() // 2] = value
    return x


@mutator("F19", "scaled: every second factor, a hundred times")
def scaled_all(s: Subject) -> bool:
    return s.put(s.keys(*SECOND), lambda x: 300 * x)


@mutator("F19", "scaled: one second factor, a thousand times")
def scaled_one(s: Subject) -> bool:
    return s.put(s.pick(s.keys(*SECOND)), lambda x: 1000 * x)


@mutator("F21", "damaged: one exponent bit of one value")
def bit_flip(s: Subject) -> bool:
    def flip(x: torch.Tensor) -> torch.Tensor:
        return _with(x, float(x.view(-1)[x.numel() // 2]) * 2.0**40 if x.dtype != torch.float16 else 6e4)

    return s.put(s.pick(s.keys(*SECOND)), flip)


@mutator("F21", "damaged: one second factor is noise of its norm")
def noise(s: Subject) -> bool:
    rng = torch.Generator().manual_seed(s.rng.randrange(1 << 30))

    def draw(x: torch.Tensor) -> torch.Tensor:
        return (torch.randn(x.shape, generator=rng) * x.float().std()).to(x.dtype)

    return s.put(s.pick(s.keys(*SECOND)), draw)


@mutator("F21", "hollow: one tensor")
def hollow(s: Subject) -> bool:
    return s.put(s.pick(sorted(s.tensors)), lambda x: x.new_empty(0))


@mutator("F21", "hollow: every tensor")
def all_hollow(s: Subject) -> bool:
    return s.put(sorted(s.tensors), lambda x: x.new_empty(0))


@mutator("F17", "type: one tensor of integers")
def integers(s: Subject) -> bool:
    return s.put(s.pick(sorted(s.tensors)), lambda x: (x * 100).to(torch.int8))


@mutator("F17", "type: every tensor of 8-bit floats")
def eight_bits(s: Subject) -> bool:
    return s.put(sorted(s.tensors), lambda x: x.to(torch.float8_e4m3fn))


@mutator("F17", "type: one tensor of truth values")
def truths(s: Subject) -> bool:
    return s.put(s.pick(sorted(s.tensors)), lambda x: x > 0)


# ------------------------------------------------------------------------------------------------------- damaged files

FILES = {
    "cut by four bytes": lambda raw: raw[:-4],
    "cut in half": lambda raw: raw[: len(raw) // 2],
    "cut in its header": lambda raw: raw[:100],
    "empty": lambda raw: b"",
    "four bytes too long": lambda raw: raw + b"\0\0\0\0",
    "header too long": lambda raw: (1 << 40).to_bytes(8, "little") + raw[8:],
    "a Git LFS pointer": lambda raw: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "a web page": lambda raw: b"<!DOCTYPE html><html></html>",
    "offsets exchanged": lambda raw: raw.replace(b'"data_offsets":[', b'"data_offsets":[9', 1),
    "a shape of its header edited": lambda raw: re.sub(rb'"shape":\[\d', b'"shape":[7', raw, count=1),
    "a name twice": lambda raw: _twice_named(raw),
}  # fmt: skip


def _twice_named(raw: bytes) -> bytes:
    n = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + n])
    names = sorted(k for k in header if k != "__metadata__")
    text = raw[8 : 8 + n].replace(json.dumps(names[-1]).encode(), json.dumps(names[0]).encode(), 1)
    return len(text).to_bytes(8, "little") + text + raw[8 + n :]


def _damage(how):
    def change(s: Subject) -> bool:
        s.after = how
        return True

    return change


for name, how in FILES.items():
    mutator("F21", f"file: {name}")(_damage(how))
