"""Makes tiny bases, and adapters on them by the real PEFT with the values of a short training, each once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from zoo import FAMILIES as ZOO
from zoo import VOCAB, Family, build, load

from suture.pipeline import Reading

# Models with the head of another task. PEFT trains that head in full, under whichever of two names it has.
TASKS = {
    "llama-score": ("SEQ_CLS", "LlamaForSequenceClassification", "llama", "score"),
    "bert-sequences": ("SEQ_CLS", "BertForSequenceClassification", "bert", "classifier"),
    "bert-words": ("TOKEN_CLS", "BertForTokenClassification", "bert", "classifier"),
    "bert-answers": ("QUESTION_ANS", "BertForQuestionAnswering", "bert", "qa_outputs"),
}
OF_TASKS = {
    name: Family(name, model, ZOO[like].config, ZOO[like].settings, embeddings=ZOO[like].embeddings, head=head)
    for name, (_, model, like, head) in TASKS.items()
}
FAMILIES: Mapping[str, Family] = {**ZOO, **OF_TASKS}

Settings = Mapping[str, Any]
Recipe = Callable[[Family, Any], Settings]
Saver = Callable[["Workshop", PeftModel, Path], Path]


@dataclass(frozen=True)
class Healthy:
    """An adapter to be made: what its family's model is, what is trained, and how the folder is written."""

    family: str
    what: str
    recipe: Recipe = field(compare=False)
    method: str = "lora"
    dtype: str = "float32"  # of the base on disk, in which it is also trained
    tokenizer: bool = False  # stands beside the base
    resize: int = 0
    factors: str = "float32"
    save: Saver | None = field(default=None, compare=False)
    reading: Reading = field(default_factory=Reading)

    @property
    def id(self) -> str:
        """Unique in the collection."""
        return f"{self.family}: {self.what}"


@dataclass(frozen=True)
class Pair:
    """A base and an adapter on disk, and how the adapter is read."""

    healthy: Healthy
    base: Path
    adapter: Path

    @property
    def reading(self) -> Reading:
        """How to read the adapter."""
        return self.healthy.reading


class Workshop:
    """Makes bases and adapters below one folder, each once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._pairs: dict[str, Pair] = {}

    def base(self, healthy: Healthy) -> Path:
        """The base of an adapter."""
        name = "-".join([healthy.family, healthy.dtype, *(["tokens"] if healthy.tokenizer else [])])
        folder = self.root / "bases" / name
        if not folder.exists():
            build(FAMILIES[healthy.family], folder, dtype=getattr(torch, healthy.dtype))
            if healthy.tokenizer:
                write_tokenizer(folder)
        return folder

    def pair(self, healthy: Healthy) -> Pair:
        """The adapter with its base."""
        if healthy.id not in self._pairs:
            folder = self.root / "adapters" / f"{len(self._pairs)}-{healthy.family}"
            self._pairs[healthy.id] = Pair(healthy, self.base(healthy), self._make(healthy, folder))
        return self._pairs[healthy.id]

    def live(self, healthy: Healthy) -> PeftModel:
        """The trained adapter on its base, in memory."""
        model = load(FAMILIES[healthy.family], self.base(healthy), dtype=getattr(torch, healthy.dtype))
        settings = {"r": 4, "lora_alpha": 8, **healthy.recipe(FAMILIES[healthy.family], model)}
        torch.manual_seed(len(healthy.id))
        if healthy.resize:
            n_tokens = model.get_input_embeddings().weight.shape[0]
            model.resize_token_embeddings(n_tokens + healthy.resize, mean_resizing=False)
        live = get_peft_model(model, LoraConfig(**settings), autocast_adapter_dtype=healthy.factors == "float32")
        train(live.eval(), seed=len(healthy.id))
        return live

    def _make(self, healthy: Healthy, folder: Path) -> Path:
        live = self.live(healthy)
        if healthy.save is not None:
            return healthy.save(self, live, folder)
        live.save_pretrained(folder)
        return folder


# ------------------------------------------------------------------------------------------------ as if it had learned


@torch.no_grad()
def train(live: PeftModel, *, seed: int) -> None:
    """Move all that is trainable by as much as a short training does."""
    rng = torch.Generator().manual_seed(seed)
    for name, p in sorted(live.named_parameters()):
        if p.requires_grad:
            p.add_(_step(name, p) * torch.randn(p.shape, generator=rng).to(p.dtype))
    for _, module in live.named_modules():
        if isinstance(module, LoraLayer):
            for adapter in {*module.lora_A, *module.lora_embedding_A} & {*module.active_adapters}:
                share = 0.005 * 10 ** float(torch.rand((), generator=rng))  # 0.5 to 5 %
                _scale_update(module, adapter, share)


def _step(name: str, p: torch.Tensor) -> float:
    if "lora_magnitude_vector" in name or "modules_to_save" in name or "lora_" not in name:
        return 0.02 * max(float(p.abs().mean()), 0.01)
    first = "lora_embedding_B" if "lora_embedding" in name else "lora_A"
    return 0.1 * float(p.float().std()) if first in name and p.numel() > 1 else 0.01


def _scale_update(module: Any, adapter: str, share: float) -> None:
    """Scale the second factor so that the update has this share of the weight's norm."""
    weight = module.get_param() if hasattr(module, "get_param") else module.get_base_layer().weight
    update = module.get_delta_weight(adapter)
    second = module.lora_B[adapter].weight if adapter in module.lora_B else module.lora_embedding_A[adapter]
    second.mul_(share * float(weight.float().norm()) / float(update.float().norm()))


def write_tokenizer(folder: Path, n_tokens: int = VOCAB, *, template: str | None = None) -> Path:
    """A tokenizer whose words are w0, w1 …, as Transformers saves it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    words = [*special.values(), *(f"w{i}" for i in range(len(special), n_tokens))]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **special)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder
