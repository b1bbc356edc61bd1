"""Models to merge, made once a session, and a server of commands."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from crash.commands import HERE, Scene, Server, left_running, sums

TINY = {
    "vocab_size": 256,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
EXPERTS = {
    "head_dim": 8,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "num_hidden_layers": 5,
}


def make_inputs(folder: Path, model: object, shard_size: str) -> Path:
    """A base in shards with a tokenizer's file, and an adapter on all its linear layers, as PEFT saves it."""
    from peft import LoraConfig, get_peft_model
    from zoo_adapters import perturb

    model.save_pretrained(folder / "base", max_shard_size=shard_size)
    (folder / "base" / "tokenizer.json").write_text('{"version": "1.0", "model": {"vocab": {}}}')
    live = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    perturb(live, seed=0, std=0.02)
    live.save_pretrained(folder / "adapter")
    (folder / "adapter" / "README.md").unlink()  # a model card: what it says is a hint, and what cannot be read is none
    return folder


@pytest.fixture(scope="session")
def llama(tmp_path_factory, quiet_torch) -> Path:
    """Inputs: a tiny Llama in four shards."""
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**TINY, tie_word_embeddings=False)).bfloat16()
    return make_inputs(tmp_path_factory.mktemp("llama"), model, "48KB")


@pytest.fixture(scope="session")
def moe(tmp_path_factory, quiet_torch) -> Path:
    """Inputs: a small Qwen3-MoE, every expert stored by itself, in more than a hundred pieces."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    model = Qwen3MoeForCausalLM(
        Qwen3MoeConfig(**{**TINY, **EXPERTS, "num_hidden_layers": 5}, tie_word_embeddings=True)
    ).bfloat16()
    return make_inputs(tmp_path_factory.mktemp("moe"), model, "120KB")


@pytest.fixture(scope="session")
def smollm2_shards(smollm2_bf16, tmp_path_factory, quiet_torch) -> Path:
    """Inputs: SmolLM2-135M-Instruct in bf16 in shards. Only for tests marked slow."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(smollm2_bf16, dtype=torch.bfloat16)
    return make_inputs(tmp_path_factory.mktemp("smollm2"), model, "60MB")


@pytest.fixture(scope="session")
def library(tmp_path_factory) -> Path:
    """The library of faults."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("faults are brought about on Linux, by a library that needs a C compiler")
    path = tmp_path_factory.mktemp("faults") / "faults.so"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", path, HERE / "faults.c", "-ldl"], check=True)
    return path


@pytest.fixture(scope="session")
def server(library, tmp_path_factory, user_cache) -> Iterator[Server]:
    """Runs commands in forks."""
    made = Server(library, tmp_path_factory.mktemp("notes"))
    yield made
    made.stop()


@pytest.fixture
def place() -> Iterator[Path]:
    """An empty folder that any user may look into, gone after the test: some hold gigabytes."""
    with tempfile.TemporaryDirectory(prefix="suture-crash-", dir=os.environ.get("SUTURE_CRASH_DIR")) as name:
        Path(name).chmod(0o755)
        (Path(name) / "made").mkdir()
        yield Path(name)


@pytest.fixture
def scene(place) -> Iterator[Callable[..., Scene]]:
    """A scene on the inputs of that folder. In the end they must be as they were, and nothing may run any more."""
    before: dict[Path, dict[str, str]] = {}

    def of(inputs: Path, *options: str) -> Scene:
        before[inputs] = sums(inputs)
        return Scene(inputs, place, options)

    yield of
    assert {inputs: sums(inputs) for inputs in before} == before
    assert left_running() == []


@pytest.fixture(scope="session")
def whole(server, tmp_path_factory) -> Callable[..., dict[str, str]]:
    """The sha256 of every file of an undisturbed merge of these inputs."""
    known: dict[tuple[Path, tuple[str, ...]], dict[str, str]] = {}

    def of(inputs: Path, *options: str) -> dict[str, str]:
        if (inputs, options) not in known:
            made = Scene(inputs, tmp_path_factory.mktemp("whole"), options)
            (made.folder / "made").mkdir()
            ended = server.run(made.merge)
            assert ended.code == 0, ended.stderr
            known[inputs, options] = sums(made.out)
            shutil.rmtree(made.out)
        return known[inputs, options]

    return of
