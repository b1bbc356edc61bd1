"""The chunked loss is the plain one: the same value, the same gradients, for every head, without the logits."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
import transformers as tf
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode

from suture.errors import UsageError
from suture.training import loss

VOCAB = 97
ROW = 4 * VOCAB  # bytes of one row of logits
IDS = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LLAMA = {**IDS, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
GEMMA = {**LLAMA, "num_key_value_heads": 2, "head_dim": 8}
MOE = {**GEMMA, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
GPT = {**IDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}

CONFIGS = {
    "llama": lambda: tf.LlamaConfig(**LLAMA, tie_word_embeddings=True),
    "gemma2-softcap": lambda: tf.Gemma2Config(**GEMMA, final_logit_softcapping=2.0),
    "gemma3": lambda: tf.Gemma3TextConfig(**GEMMA),
    "cohere-scale": lambda: tf.CohereConfig(**LLAMA, logit_scale=0.3),
    "granite-scale": lambda: tf.GraniteConfig(**LLAMA, logits_scaling=3.0),
    "gpt2-tied": lambda: tf.GPT2Config(**GPT),
    "qwen3-moe": lambda: tf.Qwen3MoeConfig(**MOE, output_router_logits=False),
    "qwen3-moe-router-loss": lambda: tf.Qwen3MoeConfig(**MOE, output_router_logits=True, router_aux_loss_coef=0.5),
    "neox-untied": lambda: tf.GPTNeoXConfig(**LLAMA, tie_word_embeddings=False),
    "opt-decoder": lambda: tf.OPTConfig(**IDS, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4),
}
LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
ENDS = ["embed_tokens", "lm_head"]
ADAPTERS = {
    "all-linear": dict(LORA),
    "lora-on-both-ends": {**LORA, "target_modules": ["q_proj", "down_proj", *ENDS]},
    "saved-ends": {**LORA, "modules_to_save": ENDS},
    "saved-ends-tied": {**LORA, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "new-rows": {**LORA, "trainable_token_indices": [5, 90, 96]},
}


def build(name="llama", adapter=None, *, dtype=torch.float32):
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(CONFIGS[name]())
    if adapter is not None:
        model = get_peft_model(model, LoraConfig(**ADAPTERS[adapter]))
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.normal_(0, 0.3)
    return model.to(dtype)


def base_of(model):
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def batch(n_rows=3, length=17, seed=0):
    ids = torch.randint(3, VOCAB, (n_rows, length), generator=torch.Generator().manual_seed(seed))
    labels = ids.clone()
    labels[0, :6] = -100
    labels[1] = -100
    labels[2, -3:] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def step(model, **feed):
    """Loss and gradients of one pass."""
    model.zero_grad()
    value = model(**feed).loss
    value.backward()
    return value.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same(ours, plain, rtol=2e-6):
    """Losses, and the gradient of each tensor as one vector."""
    torch.testing.assert_close(ours[0], plain[0], rtol=rtol, atol=0)
    assert set(ours[1]) == set(plain[1])
    scale = max(g.norm() for g in plain[1].values())
    assert scale > 0
    for name, expected in plain[1].items():
        assert ours[1][name].dtype == expected.dtype
        error = (ours[1][name].float() - expected.float()).norm()
        if name.endswith("k_proj.bias"):  # attention does not see it: its true gradient is zero
            assert error < 1e-7 * scale
            continue
        assert error <= rtol * max(expected.float().norm(), 1e-3 * scale), (name, error, expected.norm())


def both(model, *, chunk_bytes=5 * ROW, **feed):
    plain = step(model, **feed)
    loss.install(base_of(model), chunk_bytes=chunk_bytes)
    return step(model, **feed), plain


@pytest.mark.parametrize("name", CONFIGS)
def test_every_family(name):
    model = build(name).eval()
    assert_same(*both(model, **batch()))


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_every_adapter_on_the_head(adapter):
    model = build("llama", adapter).eval()
    assert_same(*both(model, **batch()))
    assert all(p.requires_grad == (p.grad is not None) for p in model.parameters())


@pytest.mark.parametrize("rows", [1, 7, 16, 1000])
def test_every_chunk_size(rows, monkeypatch):
    heights = []
    plain_ce = loss.cross_entropy
    monkeypatch.setattr(loss, "cross_entropy", lambda x, y: (heights.append(len(x)), plain_ce(x, y))[1])
    model = build("neox-untied").eval().requires_grad_(False)
    model.gpt_neox.layers.requires_grad_(True)
    feed = batch()
    assert_same(*both(model, chunk_bytes=rows * ROW, **feed))
    n = int((feed["labels"][:, 1:] != -100).sum())
    assert sum(heights) == n
    assert max(heights) == min(rows, n)


@pytest.mark.parametrize("n_items", [11, torch.tensor(50)])
def test_num_items_in_batch(n_items):
    assert_same(*both(build().eval(), **batch(), num_items_in_batch=n_items))


def test_shift_labels():
    feed = batch()
    shifted = torch.nn.functional.pad(feed["labels"], (0, 1), value=-100)[:, 1:].contiguous()
    assert_same(*both(build().eval(), **feed, shift_labels=shifted))


def test_gradients_add_up_over_micro_batches():
    model = build("llama", "saved-ends").eval()

    def run():
        model.zero_grad()
        total = torch.zeros(())
        for seed in range(3):
            value = model(**batch(seed=seed), num_items_in_batch=60).loss
            value.backward()
            total += value.detach()
        return total, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    plain = run()
    loss.install(model.get_base_model(), chunk_bytes=7 * ROW)
    assert_same(run(), plain)


def test_gradient_checkpointing():
    model = build("llama", "lora-on-both-ends").train()
    base_of(model).activation_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    assert_same(*both(model, **batch()))


@pytest.mark.parametrize("adapter", ["all-linear", "saved-ends"])
def test_bf16(adapter):
    model = build("llama", adapter, dtype=torch.bfloat16).eval()
    ours, plain = both(model, **batch())
    exact = step(build("llama", adapter, dtype=torch.bfloat16).eval().float(), **batch())
    # as near to float32 as the plain loss is, up to a few roundings
    for name, expected in exact[1].items():
        error, plain_error = ((g[name].float() - expected).norm() for g in (ours[1], plain[1]))
        assert error <= 1.5 * plain_error + 2**-8 * expected.norm(), name


@pytest.mark.parametrize("name", ["llama", "gemma2-softcap"])
def test_autocast(name):
    model = build(name).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = model(**batch()).loss
    plain.backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    loss.install(model, chunk_bytes=5 * ROW)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = model(**batch()).loss
    ours.backward()
    assert ours.dtype == plain.dtype == torch.float32
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=0)
    for n, p in model.named_parameters():
        assert p.grad.dtype == torch.float32
        assert (p.grad - expected[n]).norm() <= 0.03 * expected[n].norm() + 1e-6, n


def test_no_counted_token_gives_zero_and_zero_gradients():
    model = build("llama", "saved-ends").eval()
    feed = batch()
    reached = set(step(model, **feed)[1])
    feed["labels"] = torch.full_like(feed["labels"], -100)
    loss.install(model.get_base_model())
    for options in ({}, {"num_items_in_batch": 9}, {"num_items_in_batch": torch.tensor(0)}):
        value, grads = step(model, **feed, **options)
        assert value == 0
        assert set(grads) == reached
        assert not any(g.any() for g in grads.values())


class Largest(TorchDispatchMode):
    """Number of elements in the largest memory that any operation's result lies in."""

    n = 0

    def __init__(self):
        super().__init__()
        self.operations = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.operations.add(func.overloadpacket.__name__)
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, torch.Tensor):
                self.n = max(self.n, x.untyped_storage().nbytes() // x.element_size())
        return out


def test_the_logits_are_never_whole():
    model = build().eval().requires_grad_(False)
    model.model.layers.requires_grad_(True)
    feed = batch(n_rows=4, length=40)
    whole = 4 * 40 * VOCAB
    with Largest() as plain:
        step(model, **feed)
    loss.install(model, chunk_bytes=9 * ROW)
    with Largest() as ours:
        step(model, **feed)
    assert plain.n >= whole
    assert ours.n < whole // 2  # what is left is of the backbone
    assert "as_strided" not in ours.operations  # autograd has not copied a chunk that was overwritten


def test_evaluation_keeps_no_graph():
    model = build("gemma2-softcap").eval()
    feed = batch()
    with torch.no_grad():
        plain = model(**feed).loss
        loss.install(model, chunk_bytes=5 * ROW)
        ours = model(**feed)
    assert not ours.loss.requires_grad
    torch.testing.assert_close(ours.loss, plain, rtol=1e-6, atol=0)


def test_output_is_the_models_own_class_without_logits():
    model = build().eval()
    plain = model(**batch())
    loss.install(model)
    out = model(**batch())
    assert type(out) is type(plain)
    assert out.logits is None
    assert "logits" not in out
    assert out["loss"] is out.loss
    as_tuple = model(**batch(), return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert torch.equal(as_tuple[0], out.loss)


def test_without_labels_the_forward_is_the_original():
    model = build().eval()
    feed = batch()
    labels = feed.pop("labels")
    logits = model(**feed).logits
    signature = inspect.signature(model.forward)
    loss.install(model)
    assert inspect.signature(model.forward) == signature
    assert torch.equal(model(**feed).logits, logits)
    assert torch.equal(model(**feed, logits_to_keep=2).logits, logits[:, -2:])
    # labels by position
    value = model(feed["input_ids"], feed["attention_mask"], None, None, None, labels).loss
    loss.uninstall(model)
    torch.testing.assert_close(value, model(**feed, labels=labels).loss)


def test_uninstall_leaves_nothing():
    model = build().eval()
    before = dict(model.__dict__)
    loss.install(model)
    model(**batch()).loss.backward()
    loss.uninstall(model)
    assert set(model.__dict__) == set(before)
    assert model(**batch()).logits is not None


def test_a_failure_inside_leaves_the_model_whole():
    model = build().eval()
    loss.install(model)
    bad = batch()
    bad["labels"][0, 9] = VOCAB + 5
    names = [n for n, _ in model.named_modules()]
    with pytest.raises((IndexError, RuntimeError)):
        model(**bad)
    assert [n for n, _ in model.named_modules()] == names
    assert not model.model._forward_hooks
    feed = batch()
    assert_same(step(model, **feed), step(build().eval(), **feed))


def test_a_deep_copy_is_its_own_model():
    model = build().eval()
    loss.install(model)
    twin = copy.deepcopy(model)
    step(twin, **batch())
    assert all(p.grad is None for p in model.parameters())
    assert all(p.grad is not None for p in twin.parameters())


def test_backward_twice_is_an_error():
    model = build().eval()
    loss.install(model)
    value = model(**batch()).loss
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        value.backward()


class OwnLoss(tf.LlamaForCausalLM):
    def forward(self, input_ids=None, labels=None, logits_to_keep=0, **kwargs):
        logits = self.lm_head(self.model(input_ids).last_hidden_state)
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


T5 = {"vocab_size": VOCAB, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 2}


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: tf.T5ForConditionalGeneration(tf.T5Config(**T5)), "encoder-decoder"),
        (lambda: OwnLoss(CONFIGS["llama"]()), "computes the loss itself"),
        (lambda: tf.LlamaModel(CONFIGS["llama"]()), "takes no labels"),
    ],
)
def test_refusals(make, reason):
    model = make()
    assert reason in loss.supports(model)
    with pytest.raises(UsageError, match=reason):
        loss.install(model)
    assert "forward" not in model.__dict__


def test_a_loss_of_ones_own_is_refused():
    model = build()
    model.loss_function = lambda *_, **__: torch.zeros(())
    assert "plain cross-entropy" in loss.supports(model)


def test_refuses_twice_and_nonsense():
    model = build()
    with pytest.raises(UsageError, match="chunk_bytes"):
        loss.install(model, chunk_bytes=0)
    loss.install(model)
    with pytest.raises(UsageError, match="already"):
        loss.install(model)


def train(model, folder):
    """Three steps of Transformers' Trainer and an evaluation."""
    rows = [{k: v[i].tolist() for k, v in batch(seed=s).items()} for s in range(4) for i in range(3)]
    fixed = {"output_dir": str(folder), "report_to": "none", "save_strategy": "no", "use_cpu": True, "bf16": False}
    sizes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 3, "learning_rate": 1e-2}
    shown = {"logging_steps": 1, "disable_tqdm": True, "prediction_loss_only": True}
    args = tf.TrainingArguments(**fixed, **sizes, **shown)
    trainer = tf.Trainer(model, args, tf.default_data_collator, rows, rows[:4])
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return [*losses, trainer.evaluate()["eval_loss"]], {n: p.detach().clone() for n, p in model.named_parameters()}


@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")
def test_in_the_trainer(tmp_path):
    plain = train(build("llama", "saved-ends"), tmp_path / "plain")
    model = build("llama", "saved-ends")
    loss.install(model.get_base_model(), chunk_bytes=5 * ROW)
    ours = train(model, tmp_path / "ours")
    assert ours[0] == pytest.approx(plain[0], rel=1e-4)
    for name, expected in plain[1].items():
        # Adam divides by the size of a gradient, so rounding is magnified where it is near zero
        torch.testing.assert_close(ours[1][name], expected, rtol=1e-2, atol=2e-3)


@pytest.mark.parametrize("last", [torch.tanh, torch.sigmoid, lambda x: 3 * torch.tanh(x), torch.Tensor.bfloat16])
def test_cross_entropy_respects_what_the_graph_keeps(last):
    x = torch.randn(5, VOCAB, generator=torch.Generator().manual_seed(0), requires_grad=True)
    targets = torch.tensor([0, 96, 5, 5, 7])
    plain = torch.nn.functional.cross_entropy(last(x).float(), targets, reduction="sum")
    (expected,) = torch.autograd.grad(plain, x)
    logits = last(x)
    edge = torch.autograd.graph.get_gradient_edge(logits)
    total, by_logits = loss.cross_entropy(logits, targets)
    assert by_logits.dtype == logits.dtype
    (found,) = torch.autograd.grad([edge], [x], [by_logits])
    torch.testing.assert_close(total, plain.detach())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
