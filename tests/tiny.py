"""A tiny base model with a tokenizer and a chat template, and a data set: what the training tests train."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3MoeConfig,
)

SPECIAL = ("<pad>", "<eos>", "<unk>")
VOCAB = len(SPECIAL) + 95  # and the printable characters of ASCII, one token each
TARGETS = ("q_proj", "v_proj", "down_proj")
TEMPLATE = (
    "{% for message in messages %}{{ '<' + message['role'] + '> ' + message['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)
_TOKENS = {"vocab_size": VOCAB, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
_LLAMA = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
_MOE = {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}


def make_model(*, tie: bool = True, layers: int = 2, kind: str = "llama") -> PreTrainedModel:
    """A "llama", "gpt2" or "moe" (Qwen3-MoE) in float32, drawn from one seed."""
    torch.manual_seed(0)
    config: Any
    if kind == "gpt2":
        config = GPT2Config(n_embd=32, n_layer=layers, n_head=4, n_positions=512, tie_word_embeddings=tie, **_TOKENS)
    elif kind == "moe":
        config = Qwen3MoeConfig(**_TOKENS, **_LLAMA, **_MOE, num_hidden_layers=layers, tie_word_embeddings=tie)
    else:
        config = LlamaConfig(**_TOKENS, **_LLAMA, num_hidden_layers=layers, tie_word_embeddings=tie)
    return AutoModelForCausalLM.from_config(config)


def wrapped(model: PreTrainedModel | None = None, *, adapter_name: str = "default", **settings: Any) -> PeftModel:
    """A model, the tied llama by default, with LoRA of rank 4 and alpha 8 on q_proj, v_proj and down_proj."""
    settings = copy.deepcopy(settings)  # PEFT changes the lists that it is given
    config = {"r": 4, "lora_alpha": 8, "target_modules": list(TARGETS), "task_type": "CAUSAL_LM", **settings}
    return get_peft_model(model or make_model(), LoraConfig(**config), adapter_name=adapter_name)


def trained(model: PeftModel, seed: int = 1) -> PeftModel:
    """The same model, noise added to everything that trains: as after some steps."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each printable character of ASCII, with a chat template."""
    words = {word: i for i, word in enumerate((*SPECIAL, *map(chr, range(32, 127))))}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inner.decoder = decoders.Fuse()
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **names)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_base(folder: Path, *, tie: bool = True, layers: int = 2, kind: str = "llama") -> Path:
    """Write the model and its tokenizer to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    make_tokenizer().save_pretrained(folder)
    make_model(tie=tie, layers=layers, kind=kind).save_pretrained(folder)
    return folder


def write_pairs(path: Path, n: int = 40) -> Path:
    """Write sums as JSON lines with the columns prompt and completion."""
    rows = [{"prompt": f"{i} + {i + 1} =", "completion": f" {2 * i + 1}"} for i in range(n)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
