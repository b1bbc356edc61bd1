"""Tiny models of real architectures, built offline: what the parity tests merge into.

Every family is two layers deep and drawn from one seed in float32, large enough for logits of order 1 to 10, with no
bias or norm at its neutral value: an error anywhere in the model shows in its logits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
import zoo_feeds as feeds
from torch import nn
from transformers.pytorch_utils import Conv1D
from zoo_feeds import Feed, Inputs

VOCAB = 96


@dataclass(frozen=True)
class Family:
    """One architecture: how its tiny model is made, what it is fed, and where its special parameters are.

    `embeddings` and `head` are the modules at the two ends of the vocabulary; `tied` says that they share one tensor,
    and `separable` that Transformers computes the same function when they no longer do. `experts` are parameters for
    `target_parameters`. `skip` are linear layers that PEFT refuses to wrap. `spread` scales the logits.
    """

    name: str
    model: str
    config: str
    settings: Mapping[str, Any]
    feed: Feed = feeds.text
    embeddings: tuple[str, ...] = ("model.embed_tokens",)
    head: str = "lm_head"
    tied: bool = False
    separable: bool = True
    experts: tuple[str, ...] = ()
    router: str = ""
    skip: tuple[str, ...] = ()
    spread: float = 0.5
    shard_size: str = "1GB"

    @property
    def model_class(self) -> Any:
        """The Transformers class of the model."""
        return getattr(transformers, self.model)

    @property
    def tied_ends(self) -> tuple[str, ...]:
        """The modules that share one tensor; none where nothing is tied."""
        return (*self.embeddings, self.head) if self.tied else ()

    def make_config(self, **changes: Any) -> Any:
        """The Transformers configuration of the tiny model."""
        return getattr(transformers, self.config)(**{**self.settings, **changes})


# ------------------------------------------------------------------------------------------------------- the families

_TOKENS = {"vocab_size": VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_LLAMA = {
    **_TOKENS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
_HEAD_DIM = {"head_dim": 8}
_GEMMA = {**_LLAMA, **_HEAD_DIM, "query_pre_attn_scalar": 8, "sliding_window": 16}
_NEOX = {**_LLAMA, "rotary_pct": 0.5}
_GPT2 = {**_TOKENS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
_BART = {
    **_TOKENS,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "decoder_start_token_id": 2,
}
_VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
_PICTURE = {**_VISION, "image_size": 8, "patch_size": 4, "num_labels": 7}
_MOE = {"num_experts": 4, "num_experts_per_tok": 2}
_EXPERTS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")


def _causal(name: str, prefix: str, settings: Mapping[str, Any], **facts: Any) -> Family:
    """A decoder whose classes are named <prefix>ForCausalLM and <prefix>Config."""
    settings = {**settings, "tie_word_embeddings": facts.get("tied", False)}
    return Family(name, f"{prefix}ForCausalLM", f"{prefix}Config", settings, **facts)


def _moe(name: str, prefix: str, settings: Mapping[str, Any], router: str = "mlp.gate.weight", **facts: Any) -> Family:
    return _causal(name, prefix, settings, experts=_EXPERTS, router=router, **facts)


_DECODERS = (
    _causal("llama", "Llama", _LLAMA, shard_size="20KB"),
    _causal("llama-tied", "Llama", _LLAMA, tied=True),
    _causal("qwen2", "Qwen2", _LLAMA, tied=True, shard_size="20KB"),
    _causal("qwen3", "Qwen3", {**_LLAMA, **_HEAD_DIM}, tied=True),
    _causal("mistral", "Mistral", {**_LLAMA, **_HEAD_DIM}),
    _causal("gemma2", "Gemma2", _GEMMA, tied=True),
    Family("gemma3", "Gemma3ForCausalLM", "Gemma3TextConfig", _GEMMA, tied=True, shard_size="20KB"),
    _causal("phi3", "Phi3", _LLAMA),
    Family("gpt2", "GPT2LMHeadModel", "GPT2Config", _GPT2, embeddings=("transformer.wte",), tied=True),
    _causal("gpt-neox", "GPTNeoX", _NEOX, embeddings=("gpt_neox.embed_in",)),
    _causal("gpt-neox-tied", "GPTNeoX", _NEOX, embeddings=("gpt_neox.embed_in",), tied=True),
    _causal(
        "falcon",
        "Falcon",
        {**_TOKENS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
        embeddings=("transformer.word_embeddings",),
        tied=True,
    ),
    _causal(
        "opt",
        "OPT",
        {**_LLAMA, "ffn_dim": 48, "word_embed_proj_dim": 32},
        embeddings=("model.decoder.embed_tokens",),
        tied=True,
    ),
    _causal(
        "bloom",
        "Bloom",
        {**_TOKENS, "hidden_size": 32, "n_layer": 2, "n_head": 4},
        embeddings=("transformer.word_embeddings",),
        tied=True,
    ),
    _causal(
        "mamba2",
        "Mamba2",
        {
            **_TOKENS,
            "hidden_size": 32,
            "state_size": 8,
            "num_hidden_layers": 2,
            "num_heads": 8,
            "head_dim": 8,
            "n_groups": 1,
            "chunk_size": 16,
        },
        embeddings=("backbone.embeddings",),
        skip=("out_proj",),
    ),
)

_MIXTURES = (
    _moe("mixtral", "Mixtral", {**_LLAMA, "num_local_experts": 4}, shard_size="40KB"),
    _moe("qwen3-moe", "Qwen3Moe", {**_LLAMA, **_HEAD_DIM, **_MOE, "moe_intermediate_size": 24}),
    _moe("olmoe", "Olmoe", {**_LLAMA, **_MOE}),
    _moe(
        "gpt-oss",
        "GptOss",
        {
            **_LLAMA,
            **_HEAD_DIM,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
        router="mlp.router.weight",
    ),
    _moe(
        "deepseek-v3",
        "DeepseekV3",
        {
            **_LLAMA,
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "moe_intermediate_size": 24,
            "first_k_dense_replace": 1,
            "kv_lora_rank": 16,
            "q_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
        },
        # PEFT takes these names for experts and leaves the dense layers of that name alone
        skip=("gate_proj", "up_proj", "down_proj"),
    ),
)

_OTHERS = (
    Family(
        "t5",
        "T5ForConditionalGeneration",
        "T5Config",
        {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": VOCAB},
        feeds.text_to_text,
        embeddings=("encoder.embed_tokens", "decoder.embed_tokens"),
        tied=True,
        separable=False,
        spread=3.0,
    ),
    Family(
        "bart",
        "BartForConditionalGeneration",
        "BartConfig",
        {**_BART, "max_position_embeddings": 128, "forced_eos_token_id": None},
        feeds.text_to_text,
        embeddings=("model.encoder.embed_tokens", "model.decoder.embed_tokens"),
        tied=True,
    ),
    Family(
        "whisper",
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        {**_BART, "num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 128},
        feeds.speech_to_text,
        embeddings=("model.decoder.embed_tokens",),
        head="proj_out",
        tied=True,
    ),
    Family(
        "wav2vec2",
        "Wav2Vec2ForCTC",
        "Wav2Vec2Config",
        {
            **_TOKENS,
            **_VISION,
            "conv_dim": (8, 8),
            "conv_stride": (2, 2),
            "conv_kernel": (4, 3),
            "num_feat_extract_layers": 2,
            "num_conv_pos_embeddings": 4,
            "num_conv_pos_embedding_groups": 2,
        },
        feeds.waveform,
        embeddings=(),
        skip=("lm_head",),  # PEFT saves embeddings beside a trained head, and this model has none
    ),
    Family(
        "bert",
        "BertForMaskedLM",
        "BertConfig",
        {**_VISION, "vocab_size": VOCAB, "max_position_embeddings": 128},
        embeddings=("bert.embeddings.word_embeddings",),
        head="cls.predictions.decoder",
        tied=True,
    ),
    Family("vit", "ViTForImageClassification", "ViTConfig", _PICTURE, feeds.image, (), "classifier"),
    Family(
        "videomae",
        "VideoMAEForVideoClassification",
        "VideoMAEConfig",
        {**_PICTURE, "num_frames": 4, "tubelet_size": 2},
        feeds.video,
        embeddings=(),
        head="classifier",
    ),
    Family(
        "gemma3-image",
        "Gemma3ForConditionalGeneration",
        "Gemma3Config",
        {
            "text_config": _GEMMA,
            "vision_config": {**_VISION, "image_size": 16, "patch_size": 4, "vision_use_head": False},
            "mm_tokens_per_image": 4,
            "image_token_index": feeds.IMAGE,
            "boi_token_index": feeds.IMAGE_START,
            "eoi_token_index": feeds.IMAGE_END,
        },
        feeds.gemma3_image,
        embeddings=("model.language_model.embed_tokens",),
        tied=True,
    ),
    Family(
        "qwen3-vl",
        "Qwen3VLForConditionalGeneration",
        "Qwen3VLConfig",
        {
            "text_config": {
                **_LLAMA,
                **_HEAD_DIM,
                "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0},
            },
            "vision_config": {
                "hidden_size": 32,
                "intermediate_size": 48,
                "depth": 2,
                "num_heads": 4,
                "patch_size": 4,
                "out_hidden_size": 32,
                "num_position_embeddings": 16,
                "deepstack_visual_indexes": [0],
            },
            "tie_word_embeddings": True,
            "image_token_id": feeds.IMAGE,
            "video_token_id": feeds.VIDEO,
            "vision_start_token_id": feeds.IMAGE_START,
            "vision_end_token_id": feeds.IMAGE_END,
        },
        feeds.qwen_image,
        embeddings=("model.language_model.embed_tokens",),
        tied=True,
    ),
)

FAMILIES: Mapping[str, Family] = {f.name: f for f in (*_DECODERS, *_MIXTURES, *_OTHERS)}


# ----------------------------------------------------------------------------------------------------- making, running


def build(family: Family, folder: Path, *, dtype: torch.dtype = torch.float32) -> Path:
    """Write the family's model to `folder`: config, weights, and an index where the weights do not fit one shard."""
    model = family.model_class(family.make_config()).eval()
    draw(model, family, seed=len(family.name))
    model.to(dtype).save_pretrained(folder, max_shard_size=family.shard_size)
    return folder


@torch.no_grad()
def draw(model: nn.Module, family: Family, *, seed: int) -> None:
    """Draw all parameters: matrices that keep the size of what flows through them, vectors near their neutral value."""
    rng = torch.Generator().manual_seed(seed)
    ends = {id(m.weight) for n, m in model.named_modules() if isinstance(m, nn.Embedding) or n == family.head}
    for _, p in model.named_parameters():
        if not p.requires_grad:
            continue
        noise = torch.randn(p.shape, generator=rng)
        if p.ndim < 2:
            p.add_(0.1 * noise)
        else:
            p.copy_(noise * (family.spread if id(p) in ends else 1 / math.sqrt(math.prod(p.shape[1:]))))


def load(family: Family, folder: Path, **kwargs: Any) -> Any:
    """The model from disk, ready for evaluation; in float32 unless told otherwise.

    Missing, unexpected or mismatched keys, and any other complaint of the loader, fail the test.
    """
    kwargs.setdefault("dtype", torch.float32)
    model, info = family.model_class.from_pretrained(folder, output_loading_info=True, **kwargs)
    complaints = {name: found for name, found in dict(info).items() if found}
    assert not complaints, complaints
    return model.eval()


def inputs(family: Family, model: nn.Module, *, seed: int = 0) -> Inputs:
    """Deterministic inputs of the forward pass."""
    return family.feed(model, torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(model: nn.Module, feed: Inputs) -> torch.Tensor:
    """Logits of all positions, as a (positions, classes) matrix."""
    out = model(**feed).logits
    return out.reshape(-1, out.shape[-1]).clone()


def linear_layers(family: Family, model: nn.Module) -> list[str]:
    """Names of all linear layers that PEFT can wrap, the head among them where it is untied."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    return [n for n in names if n not in family.tied_ends and n.rpartition(".")[2] not in family.skip]
