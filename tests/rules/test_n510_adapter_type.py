"""N510: an adapter that was converted to a type of codes."""

from __future__ import annotations

import pytest
import torch
from rule_cases import BOTH, HEAD, HIDDEN, VOCAB, adapter, embedding_pair, findings, llama, only, pair
from safetensors.torch import load_file, save_file


def converted(folder, dtype):
    tuned = adapter(folder, {**BOTH, **pair(HEAD, HIDDEN, VOCAB), **embedding_pair()})
    file = tuned / "adapter_model.safetensors"
    save_file({name: t.to(dtype) for name, t in load_file(file).items()}, file)
    return tuned


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
@pytest.mark.parametrize("tied", [True, False])
def test_codes(tmp_path, tied, dtype):
    finding = only(llama(tmp_path / "base", tied=tied), converted(tmp_path / "tuned", dtype), "N510")
    assert finding.found.startswith("8 of 8 tensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_floats(base, tmp_path, dtype):
    assert not findings(base, converted(tmp_path, dtype), "N510")
