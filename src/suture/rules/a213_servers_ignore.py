"""# A213 servers-ignore

## What it finds
Parts of the adapter that servers, which apply adapters while they run, refuse or leave out.

## Why it matters
vLLM, SGLang and llama.cpp can load a base once and put adapters on top. They were made for plain LoRA on linear layers.
What else an adapter may hold is refused with an error in the better case, and passed over in silence in the worse one:
the server then answers with half an adapter. A merged model holds everything and is served like any other.

## How it is detected
From config and names, against what the loaders of these servers read:
- vLLM keeps rank, alpha, `use_rslora` and the targets; it refuses DoRA and trained biases, and reads neither
  `alpha_pattern` nor `rank_pattern` nor matrices that were trained in full.
- llama.cpp's converter keeps one alpha for all layers and divides by the rank, so `use_rslora` and both patterns are
  lost; it has no place for DoRA, biases or full matrices.
- SGLang reads LoRA on linear layers, on the embedding and on the head; full matrices are not loaded.

Versions differ; newer ones may do more than is said here.

## How to fix
Merge, and serve the merged model: that is what this tool does. To serve the adapter itself, train it with LoRA on
linear layers only, one rank and one alpha.

## References
- vllm-project/vllm#9280, vllm-project/vllm#11714: modules_to_save
- vllm-project/vllm#6909: use_rslora
- ggml-org/llama.cpp#9948, ggml-org/llama.cpp#11554: what the converter takes
- sgl-project/sglang#14105: layers that a server cannot hold
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.rules.base import Case, Rule
from suture.values import Finding

VLLM, LLAMA_CPP, SGLANG = "vLLM", "llama.cpp", "SGLang"
ALL = (VLLM, LLAMA_CPP, SGLANG)
EMBEDDINGS = (".lora_embedding_A", ".lora_embedding_B")
TOKENS = ".token_adapter.trainable_tokens_delta"


def check(case: Case) -> Iterable[Finding]:
    """At most one finding, with all such parts."""
    parts = [f"{part} ({', '.join(servers)})" for part, servers in _parts(case)]
    if parts:
        yield RULE.finding(
            case.adapter.file,
            f"servers that apply adapters unmerged may refuse or ignore: {'; '.join(parts)}",
            "",
            "Nothing for a merge, which holds all of it. Serve the merged model rather than base and adapter.",
        )


def _parts(case: Case) -> Iterable[tuple[str, tuple[str, ...]]]:
    config, updates = case.adapter.config, case.resolved.updates.values()
    keys = set(case.adapter.tensors)
    biases = [u for u in updates if u.replacement is not None and u.param.endswith(".bias")]
    full = [u for u in updates if u.replacement is not None and u not in biases]
    if full:
        yield f"{len(full)} {_matrices(len(full))} in full", ALL
    if biases or any(key.endswith(".lora_B.bias") for key in keys):
        yield "trained biases", ALL
    if any(key.endswith(TOKENS) for key in keys):
        yield "trained tokens", ALL
    if any(key.endswith(EMBEDDINGS) for key in keys):
        yield "LoRA on the embedding", (VLLM, LLAMA_CPP)
    if any(key.endswith(".lora_magnitude_vector") for key in keys):
        yield "DoRA", ALL
    if any(len(param.shape) == 3 for u in updates if u.terms and (param := case.arch.params.get(u.param))):
        yield "LoRA on fused experts", (VLLM, LLAMA_CPP, SGLANG)
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        yield "ranks or alphas that differ between layers", (VLLM, LLAMA_CPP)
    if config.get("use_rslora"):
        yield "the scale of use_rslora", (LLAMA_CPP,)


def _matrices(n: int) -> str:
    return "matrix that is held" if n == 1 else "matrices that are held"


RULE = Rule("A213", "servers-ignore", "info", check, modes=("F19", "F20", "F55"))
