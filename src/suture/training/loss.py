"""Cross-entropy of a causal LM, chunk by chunk and only where tokens count: its logits are never held whole.

The logits are made by the model's own forward, so its softcap, its scale and its adapters on the head are its own.
"""

from __future__ import annotations

import functools
import inspect
import re
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import GradientEdge, get_gradient_edge
from transformers.loss.loss_utils import ForCausalLMLoss

from suture.errors import UsageError

CHUNK_BYTES = 128 << 20
_KEY = "_suture_loss"


@dataclass(frozen=True, slots=True)
class _Installed:
    """What `install` has put on a model; lies in the model's `__dict__`, so a deep copy gets its own."""

    forward: Callable[..., Any]  # the one that was there
    own: bool  # it was the instance's, not the class's
    signature: inspect.Signature
    backbone: str
    chunk_bytes: int


def supports(causal_lm: nn.Module) -> str:
    """Say why the loss of a Transformers model cannot be computed in chunks, in words; "" where it can."""
    config: Any = getattr(causal_lm, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder-decoder"
    if "labels" not in inspect.signature(causal_lm.forward).parameters:
        return "its forward takes no labels"
    if getattr(causal_lm, "loss_function", None) is not ForCausalLMLoss:
        return "its loss is not the plain cross-entropy of the next token"
    source = _source(causal_lm)
    if source.count("self.loss_function(") != 1:
        return "its forward computes the loss itself"
    if not _backbone(causal_lm, source):
        return "its forward does not call the backbone as a module"
    return ""


def install(causal_lm: nn.Module, *, chunk_bytes: int = CHUNK_BYTES) -> None:
    """Replace `forward` on this instance; with labels it then returns the same loss, the same gradients, no logits.

    `causal_lm` is the Transformers model itself, for a PEFT model its `get_base_model()`. `chunk_bytes` bounds the
    float32 logits that live at one time, in bytes; one row is the least. Without labels, or where the caller asks for
    `logits_to_keep`, the model's forward is what it was. No counted token gives 0 with zero gradients. Raises
    UsageError where `supports` gives a reason, or where it is installed already.
    """
    name = type(causal_lm).__name__
    if chunk_bytes < 1:
        raise UsageError(f"chunk_bytes is {chunk_bytes}", where=name, expected="at least 1")
    if _KEY in causal_lm.__dict__:
        raise UsageError("the chunked loss is installed already", where=name, do="call uninstall first")
    reason = supports(causal_lm)
    if reason:
        raise UsageError(
            f"the loss cannot be computed in chunks: {reason}",
            where=name,
            expected="a decoder that computes its logits from its backbone's output, and the loss by loss_function",
            do="train with the model's own loss",
        )
    own, original = "forward" in causal_lm.__dict__, causal_lm.forward
    signature = inspect.signature(original)
    backbone = _backbone(causal_lm, _source(causal_lm))
    causal_lm.__dict__[_KEY] = _Installed(original, own, signature, backbone, chunk_bytes)

    @functools.wraps(type(causal_lm).forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return _forward(self, *args, **kwargs)

    # a method and no closure over the model: deep copies and wrappers bind it again
    causal_lm.__dict__["forward"] = types.MethodType(forward, causal_lm)


def uninstall(causal_lm: nn.Module) -> None:
    """Give a model its own forward back; nothing happens where `install` was not called."""
    state: _Installed | None = causal_lm.__dict__.pop(_KEY, None)
    if state is None:
        return
    if state.own:
        causal_lm.__dict__["forward"] = state.forward
    else:
        del causal_lm.__dict__["forward"]


def _source(causal_lm: nn.Module) -> str:
    """The text of the class's forward; "" where there is none."""
    try:
        return inspect.getsource(inspect.unwrap(type(causal_lm).forward))
    except (OSError, TypeError):
        return ""


def _backbone(causal_lm: nn.Module, source: str) -> str:
    """Path of the module that a forward calls for the last hidden state, such as `model` or `model.decoder`."""
    prefix = re.escape(getattr(causal_lm, "base_model_prefix", "") or "model")
    for path in re.findall(rf"self\.((?:{prefix}|model)(?:\.\w+)*)\(", source):
        try:
            causal_lm.get_submodule(path)
        except AttributeError:
            continue
        return str(path)
    return ""


def _forward(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The forward that `install` puts in place."""
    state: _Installed = model.__dict__[_KEY]
    bound = state.signature.bind(*args, **kwargs)
    keep = bound.arguments.get("logits_to_keep", 0)
    if bound.arguments.get("labels") is None or not (isinstance(keep, int) and keep == 0):
        return state.forward(*args, **kwargs)
    given: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        given.update(value if state.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD else {name: value})
    given.pop("logits_to_keep", None)
    as_tuple = given.pop("return_dict", None) is False
    out = _Pass(model, state, given).run()
    return out.to_tuple() if as_tuple else out


class _Stub:
    """Stands in for the backbone and returns given hidden states; everything else about it is the backbone's."""

    def __init__(self, backbone: nn.Module, output: Any) -> None:
        self._backbone = backbone
        self._output = output

    def __call__(self, *_: Any, **__: Any) -> Any:
        return self._output

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backbone, name)


class _Pass:
    """One forward pass with labels: the model's own, whose loss function is exchanged for the chunked one."""

    def __init__(self, model: nn.Module, state: _Installed, given: dict[str, Any]) -> None:
        self.model, self.state, self.given = model, state, given
        parent, _, self.name = state.backbone.rpartition(".")
        self.parent = model.get_submodule(parent)
        self.hidden: list[Tensor] = []  # of each run of the backbone, with its graph
        self.output: Any = None
        self.n_losses = 0

    def run(self) -> Any:
        """The model's output with the loss, and with whatever terms the model adds to it; without logits."""
        backbone = getattr(self.parent, self.name)
        hook = backbone.register_forward_hook(self.keep)
        before = self.model.__dict__.get("_loss_function")
        self.model.__dict__["_loss_function"] = self.loss
        try:
            out = self.state.forward(**self.given, **self.options(use_cache=False))
        finally:
            hook.remove()
            if before is None:
                del self.model.__dict__["_loss_function"]
            else:
                self.model.__dict__["_loss_function"] = before
        if self.n_losses != 1:
            raise self.unlike(f"it computed its loss {self.n_losses} times")
        return type(out)(**{name: value for name, value in out.items() if name != "logits"})

    def keep(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        """Take the hidden states, and let the forward go on with none of them: its logits are empty."""
        self.hidden.append(output.last_hidden_state)
        self.output = type(output)
        return type(output)(**{**output, "last_hidden_state": output.last_hidden_state[:, :0].detach()})

    def options(self, **wanted: Any) -> dict[str, Any]:
        """What is asked of the model's forward beyond the caller's arguments, which come first."""
        names = self.state.signature.parameters
        return {"return_dict": True} | {k: v for k, v in wanted.items() if k in names and k not in self.given}

    def unlike(self, found: str) -> UsageError:
        """The error for a model that does not do what its class's forward says."""
        do = "train with the model's own loss"
        return UsageError(f"the loss cannot be computed in chunks: {found}", where=type(self.model).__name__, do=do)

    def loss(self, logits: Tensor, labels: Tensor, *_: Any, **kwargs: Any) -> Tensor:
        """Take the place of ForCausalLMLoss; the logits are empty and tell the size of the vocabulary."""
        self.n_losses += 1
        if len(self.hidden) != 1:
            raise self.unlike(f"it ran its backbone {len(self.hidden)} times")
        hidden = self.hidden[0]
        ignored, shifted = kwargs.get("ignore_index", -100), kwargs.get("shift_labels")
        if shifted is None:
            shifted = nn.functional.pad(labels, (0, 1), value=ignored)[..., 1:]
        if shifted.shape != hidden.shape[:-1]:
            raise self.unlike(f"labels {tuple(shifted.shape)} and hidden states {tuple(hidden.shape)} do not match")
        targets = shifted.reshape(-1).to(hidden.device)
        rows = (targets != ignored).nonzero().squeeze(-1)
        n_items = kwargs.get("num_items_in_batch")
        scale: Tensor | float = 1 / (len(rows) if n_items is None else n_items) if len(rows) else 0.0
        if not len(rows):  # one row that weighs nothing: every parameter gets its gradient, which is zero
            rows, targets = rows.new_zeros(1), targets.new_zeros(1)
        return self.total(hidden.reshape(-1, hidden.shape[-1])[rows], targets[rows], logits.shape[-1], scale)

    def total(self, hidden: Tensor, targets: Tensor, n_vocab: int, scale: Tensor | float) -> Tensor:
        """Scaled sum of the cross-entropies of (n, d) hidden states, with gradients where they are wanted."""
        gradients = _Gradients(hidden, [p for p in self.model.parameters() if p.requires_grad])
        sums: list[Tensor] = []
        begin, n_rows = 0, self.state.chunk_bytes // (4 * n_vocab)
        while begin < len(targets):
            if gradients.by_parameter:  # each chunk then costs passes over the whole head: let it be worth them
                n_rows = max(n_rows, hidden.shape[-1] // 2)
            end = begin + max(n_rows, 1)
            part, goal = hidden[begin:end].detach(), targets[begin:end]
            logits = self.tail(part.requires_grad_() if gradients.wanted else part)
            if logits.shape != (len(goal), n_vocab):
                raise self.unlike(f"{len(goal)} hidden states gave logits of shape {tuple(logits.shape)}")
            # taken before the logits are overwritten: autograd would take a view of them for changed, and copy it
            edge = get_gradient_edge(logits) if gradients.wanted else None
            total, by_logits = cross_entropy(logits, goal.to(logits.device))
            sums.append(total.to(hidden.device))
            if edge is not None:
                gradients.add(edge, part, by_logits)
            del logits, edge, by_logits  # or they would live on beside the next ones
            begin = end
        scale = scale.to(hidden.device) if isinstance(scale, Tensor) else scale
        return gradients.attach(torch.stack(sums).sum() * scale, scale)

    def tail(self, hidden: Tensor) -> Tensor:
        """(n, vocab) logits of (n, d) hidden states, by the model's forward around a backbone that returns them."""
        modules: dict[str, Any] = self.parent._modules
        backbone = modules[self.name]
        given = {**self.given, "labels": None}
        options = self.options(use_cache=False)
        if "output_router_logits" in self.state.signature.parameters:
            given["output_router_logits"] = False
        modules[self.name] = _Stub(backbone, self.output(last_hidden_state=hidden[None]))
        try:
            logits: Tensor = self.state.forward(**given, **options).logits
        finally:
            modules[self.name] = backbone
        return logits.squeeze(0)


def cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the cross-entropies of (n, vocab) logits in float32, and its gradient in the dtype of the logits.

    The logits are overwritten, except where their own graph needs them, so that one more copy at most is made.
    """
    with torch.no_grad():
        scratch = logits.detach()
        if hasattr(logits.grad_fn, "_saved_result"):  # tanh and its like derive from what they returned
            scratch = scratch.clone()
        p = scratch.float()
        top, targets = p.amax(-1, keepdim=True), targets[:, None]
        picked = p.gather(-1, targets)
        sums = p.sub_(top).exp_().sum(-1, keepdim=True)
        total = (sums.log() + top - picked).sum()
        p.div_(sums).scatter_add_(-1, targets, p.new_full((1, 1), -1.0).expand_as(targets))
        return total, p if p.dtype == scratch.dtype else scratch.copy_(p)


class _Gradients:
    """Gradients of a sum over chunks: with respect to all hidden states, and to the parameters behind them."""

    def __init__(self, hidden: Tensor, parameters: Sequence[Tensor]) -> None:
        self.wanted = torch.is_grad_enabled() and (hidden.requires_grad or bool(parameters))
        self.hidden = hidden
        self.parameters = list(parameters)  # at first all that train, after a chunk only those that it reached
        self.by_hidden: list[Tensor] = []
        self.by_parameter: list[Tensor] = []

    def add(self, logits: GradientEdge, hidden: Tensor, by_logits: Tensor) -> None:
        """Go back through the graph of one chunk, and free it."""
        with torch.autocast(by_logits.device.type, enabled=False):
            found = torch.autograd.grad([logits], [hidden, *self.parameters], [by_logits], allow_unused=True)
        self.by_hidden.append(found[0])
        if len(self.by_hidden) == 1:
            reached = [(p, g) for p, g in zip(self.parameters, found[1:], strict=True) if g is not None]
            self.parameters = [p for p, _ in reached]
            # many small terms: a low precision would lose them
            self.by_parameter = [g.float() if g.element_size() < 4 else g for _, g in reached]
        else:
            for kept, new in zip(self.by_parameter, found[1:], strict=True):
                kept.add_(new)

    def attach(self, total: Tensor, scale: Tensor | float) -> Tensor:
        """Give the scaled sum its gradients."""
        if not self.wanted:
            return total
        grads = [torch.cat(self.by_hidden), *self.by_parameter]
        attached: Tensor = _Known.apply(total, scale, grads, self.hidden, *self.parameters)  # type: ignore[no-untyped-call]
        return attached


class _Known(torch.autograd.Function):
    """A value whose gradients are known already; they are used up by the backward pass."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, scale: Tensor | float, grads: list[Tensor], *inputs: Tensor) -> Tensor:
        """Keep the gradients before scaling."""
        ctx.grads, ctx.scale, ctx.dtypes = grads, scale, [x.dtype for x in inputs]
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Scale them in place: at large vocabularies the head's is the largest tensor of all."""
        if ctx.grads is None:
            raise RuntimeError("the chunked loss can go backward once; its gradients were used up")
        grads, ctx.grads = ctx.grads, None
        factor = grad * ctx.scale
        scaled = (g.mul_(factor.to(g.device)).to(t) for g, t in zip(grads, ctx.dtypes, strict=True))
        return (None, None, None, *scaled)
