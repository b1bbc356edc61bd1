"""The audit before the first step: four accounts of what trains must be one and the same.

The adapter's config promises tensors; the model holds tensors; autograd trains those that require a gradient; the
optimiser moves those that it was given. Training silently goes wrong wherever two of them differ. A probe adds a fifth
account: one backward pass shows which tensors the loss reaches.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from suture import targets
from suture.rewriting import PREFIX
from suture.rules.m309_both_lists import named_twice
from suture.training.compare import grouped
from suture.training.live import DTYPES, Live, look
from suture.training.probe import BY_TEXT, probe
from suture.training.ties import tied_ends
from suture.values import Audit, Difference, GroupRow, TensorRecord


def audit(
    model: Any,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    batch: Mapping[str, Any] | None = None,
    gradients: bool = True,
) -> Audit:
    """What trains in this PeftModel, and every way in which that is not what its adapter's config promises.

    Nothing is changed: weights, gradients, random numbers and modes are as before.

    Args:
        model: a PeftModel, also inside DDP or torch.compile.
        optimizer: the one that will train; its contents and learning rates are audited too.
        batch: keyword arguments of a forward pass that gives a loss. Default: random tokens.
        gradients: run the probe. It is left out where the model lies on the meta device.

    Raises:
        UsageError: the model has no LoRA adapter, or several active ones; or the probe needs a batch.
    """
    return audit_of(look(model), optimizer, batch=batch, gradients=gradients)


def audit_of(
    live: Live,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    batch: Mapping[str, Any] | None = None,
    gradients: bool = True,
) -> Audit:
    """`audit` of a model that was looked at already.

    Raises:
        UsageError: the probe needs a batch, or the model does not take this one.
    """
    at_rest = coded("L912", _at_rest(live))
    differences = [
        *at_rest,
        *(coded("L902", _twice()) if live.is_wrapped_twice else coded("L901", _promised(live))),
        *coded("L903", _scaled(live)),
        *coded("L904", _frozen(live) if not at_rest else ()),
        *coded("L902", _beside(live)),
        *coded("L905", _base_trains(live)),
        *coded("M309", _named_twice(live)),
        *coded("L906", _apart(live)),
        *coded("L910", _misnamed(live)),
        *coded("L907", _optimised(live, optimizer) if optimizer is not None else ()),
    ]
    unfit = at_rest or torch.is_inference_mode_enabled() or any(p.is_meta for p in live.model.parameters())
    probed = gradients and not unfit
    found = probe(live, batch) if probed else {}
    differences += coded("L908", _reached(live, found))
    records = tensor_records(live, optimizer)
    return Audit(
        rows=group_rows(records),
        n_trainable=sum(p.numel() for p in _trainable(live)),
        n_total=_n_total(live),
        targets=_targets(live),
        differences=tuple(differences),
        probed=probed,
        notes=_unfed(live, found),
        ties=tied_ends(live),
    )


def coded(code: str, differences: Iterable[Difference]) -> list[Difference]:
    """The same differences, under the rule that explains them."""
    return [replace(d, code=code) for d in differences]


def tensor_records(live: Live, optimizer: torch.optim.Optimizer | None) -> tuple[TensorRecord, ...]:
    """Every tensor of the adapter that trains, in the order of its keys, each parameter once."""
    rates = peak_rates(optimizer) if optimizer is not None else {}
    return tuple(
        TensorRecord(key, tuple(p.shape), DTYPES.get(p.dtype, str(p.dtype)), live.group(key), rates.get(id(p)))
        for key, p in sorted(live.unique().items())
        if p.requires_grad
    )


def group_rows(records: Iterable[TensorRecord]) -> tuple[GroupRow, ...]:
    """The records, summed by group, in the order in which the groups come."""
    groups: dict[str, list[TensorRecord]] = {}
    for record in records:
        groups.setdefault(record.group, []).append(record)
    return tuple(
        GroupRow(
            group,
            n_tensors=len(members),
            n_params=sum(r.n_values for r in members),
            dtypes=tuple(sorted({r.dtype for r in members})),
            lrs=tuple(sorted({r.lr for r in members if r.lr is not None})),
        )
        for group, members in sorted(groups.items(), key=lambda item: -sum(r.n_values for r in item[1]))
    )


def peak_rates(optimizer: torch.optim.Optimizer) -> dict[int, float]:
    """id of a parameter → its peak learning rate: before a schedule has touched it, where there is one."""
    return {
        id(p): float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups for p in group["params"]
    }


def _trainable(live: Live) -> list[torch.nn.Parameter]:
    return [p for p in live.model.parameters() if p.requires_grad]


def _n_total(live: Live) -> int:
    """Values of the base and those that adapters add. Packed bytes of quantised layers are not what is counted."""
    n_base = live.arch.n_params
    if not n_base:
        return sum(p.numel() for p in live.model.parameters())
    in_base = "biases" if live.config.get("bias", "none") != "none" else ""  # these train where they are
    added = [p for key, p in live.unique().items() if live.group(key) != in_base]
    return n_base + sum(p.numel() for p in {id(p): p for p in (*added, *live.others.values())}.values())


def _targets(live: Live) -> dict[str, int]:
    modules = {key.split(".lora_")[0] for key in live.held if ".lora_" in key}
    return dict(Counter(module.rpartition(".")[2] for module in sorted(modules)).most_common())


def _twice() -> Iterable[Difference]:
    found = "the model is wrapped twice by get_peft_model: the keys of its file would fit no base"
    yield Difference("LoRA", found, "Wrap the base once; go on with what the first call returned.", (), 0)


def _promised(live: Live) -> Iterable[Difference]:
    """config.json and adapter_config.json against the model."""
    if not live.arch.params:
        return
    promised = targets.expected(live.config, live.arch).tensors
    shared = {id(live.held[key]) for key in promised if key in live.held}
    shared |= {id(live.held[key]) for key in _tied_factors(promised, live)}
    missing = {key: math.prod(shape) for key, shape in promised.items() if key not in live.held}
    surplus = [key for key, p in live.held.items() if key not in promised and id(p) not in shared]
    changed = [key for key, shape in promised.items() if key in live.held and tuple(live.held[key].shape) != shape]
    yield from grouped(
        live.arch,
        missing,
        "{what} promised by the adapter's config, but not in the model: {n} that would be missing after a reload",
        "Build the model from the config that is to be saved; change neither afterwards.",
    )
    yield from grouped(
        live.arch,
        {key: live.held[key].numel() for key in surplus},
        "{what} in the model, but not promised by the adapter's config: {n} that no one will look for",
        "Name the modules in target_modules or modules_to_save.",
    )
    yield from grouped(
        live.arch,
        {key: live.held[key].numel() for key in changed},
        "{what} of another shape than the adapter's config and the base give: {n}",
        "Check r, rank_pattern and the vocabulary's size against the config.",
    )


def _tied_factors(promised: Mapping[str, tuple[int, ...]], live: Live) -> set[str]:
    """With ensure_weight_tying PEFT wraps what is tied to a target too; no file's config says so."""
    if not live.config.get("ensure_weight_tying"):
        return set()
    ends = [{f"{PREFIX}{member.rpartition('.')[0]}" for member in tie.members} for tie in live.arch.ties]
    wrapped = {key.split(".lora_")[0] for key in promised if ".lora_" in key}
    followers = {module for modules in ends if modules & wrapped for module in modules}
    return {key for key in live.held if ".lora_" in key and key.split(".lora_")[0] in followers}


def _scaled(live: Live) -> Iterable[Difference]:
    """The factor that each layer scales its update with, against the config's alpha / r."""
    wrong: dict[str, tuple[float, float]] = {}
    for name, module in live.model.base_model.model.named_modules():
        found = getattr(module, "scaling", None)
        if not isinstance(found, Mapping) or live.adapter not in found or live.is_wrapped_twice:
            continue
        parameter = getattr(module, "parameter_name", "")
        target = f"{name.replace('.base_layer', '')}.{parameter}" if parameter else name
        promised = targets.scale(live.config, target)
        if not math.isclose(float(found[live.adapter]), promised, rel_tol=1e-6):
            wrong[name] = (float(found[live.adapter]), promised)
    if wrong:
        pairs = sorted(set(wrong.values()))
        example = ", ".join(f"{now:g} instead of {promised:g}" for now, promised in pairs[:3])
        yield Difference(
            "LoRA",
            f"{len(wrong):,} modules scale their update by another factor than the adapter's config says: {example}",
            "Set lora_alpha, r, alpha_pattern and use_rslora before get_peft_model; change neither afterwards.",
            tuple(wrong),
            0,
        )


def _frozen(live: Live) -> Iterable[Difference]:
    frozen = {key: p.numel() for key, p in live.unique().items() if not p.requires_grad}
    yield from grouped(
        live.arch,
        frozen,
        "{what} frozen: {n} that the adapter holds would not train",
        "Load it with PeftModel.from_pretrained(…, is_trainable=True), and never wrap the result again.",
    )


def _beside(live: Live) -> Iterable[Difference]:
    """Another adapter that trains too."""
    second = {name: p.numel() for name, p in live.strangers.items() if name in live.others}
    if second:
        names = ", ".join(sorted(name for name in live.model.peft_config if name != live.adapter))
        yield Difference(
            "LoRA",
            f"a second adapter ({names}) trains beside {live.adapter!r}: "
            f"{sum(second.values()):,} parameters that count twice",
            "Keep one adapter: do not call get_peft_model or add_adapter on a model that has one.",
            tuple(second),
            sum(second.values()),
        )


def _base_trains(live: Live) -> Iterable[Difference]:
    """Parameters that train and belong to no adapter."""
    once = {id(p): p for name, p in live.strangers.items() if name not in live.others}
    first = {id(p): name for name, p in sorted(live.strangers.items(), reverse=True)}  # tied ones have several names
    base = {first[key]: p.numel() for key, p in once.items()}
    if base:
        yield Difference(
            "base",
            f"{len(base):,} tensors of the base train: "
            f"{sum(base.values()):,} parameters that no adapter file will hold",
            "Name their modules in modules_to_save, or freeze them.",
            tuple(base),
            sum(base.values()),
        )


def _named_twice(live: Live) -> Iterable[Difference]:
    both = sorted(named_twice(live.config, live.arch))
    if both:
        yield Difference(
            "embeddings",
            f"{', '.join(both)}: named in modules_to_save and in target_modules; PEFT trains it in full, without LoRA",
            "Keep one of the two: train the module in full, or with LoRA.",
            tuple(both),
            0,
        )


def _at_rest(live: Live) -> Iterable[Difference]:
    """Layers whose factors a forward pass does not go through, because they were merged or switched off."""
    layers = [module for module in live.model.modules() if isinstance(module, BaseTunerLayer)]
    if any(layer.merged for layer in layers):
        found = "the adapter is merged into the weights in memory: a forward pass goes around its factors"
        yield Difference("LoRA", found, "model.unmerge_adapter() takes it out again.", (), 0)
    elif layers and all(layer.disable_adapters for layer in layers):
        found = "the adapter is switched off: a forward pass goes around its factors"
        yield Difference("LoRA", found, "model.enable_adapter_layers() switches it on again.", (), 0)


def _misnamed(live: Live) -> Iterable[Difference]:
    """Adapters that are called like a part of a module's path, where PEFT looks for adapter names."""
    parts = {part for param in live.arch.params.values() for part in param.module.split(".")}
    if names := sorted(parts & live.model.peft_config.keys()):
        found = f"an adapter is called {' and '.join(names)}, which is a part of the names of modules"
        yield Difference("LoRA", found, "Give it another name, such as default.", tuple(names), 0)


def _apart(live: Live) -> Iterable[Difference]:
    """Ends of the vocabulary that are meant to be one tensor and are not."""
    for tie in live.arch.ties if live.config.get("ensure_weight_tying") else ():
        held = {k: p for member in tie.members for k, p in live.of_module(member.rpartition(".")[0]).items()}
        in_full = {k: p for k, p in held.items() if ".lora_" not in k}
        factors = {k: p for k, p in held.items() if ".lora_" in k}
        stores = {p.untyped_storage()._cdata for p in factors.values()}
        if len({id(p) for p in in_full.values()}) > 1 or (len(factors) > 2 and len(stores) > 2):
            yield Difference(
                "embeddings",
                f"{' and '.join(tie.members)} are meant to train as one tensor (ensure_weight_tying), but are apart",
                "Train them in full (modules_to_save), or load the base in float32.",
                tuple(held),
                sum(p.numel() for p in held.values()),
            )


def _optimised(live: Live, optimizer: torch.optim.Optimizer) -> Iterable[Difference]:
    """The optimiser's contents against the model."""
    counts = Counter(id(p) for group in optimizer.param_groups for p in group["params"])
    rates = peak_rates(optimizer)
    known = {id(p) for p in live.model.parameters()}
    held = {key: p for key, p in live.unique().items() if p.requires_grad}
    do = "Make the optimiser after the model, from the parameters that require a gradient, each once."
    cases: tuple[tuple[str, str, Callable[[torch.nn.Parameter], bool]], ...] = (
        ("{what} not in the optimiser: {n} that would never move", do, lambda p: id(p) not in counts),
        ("{what} more than once in the optimiser: {n} that would move too far", do, lambda p: counts[id(p)] > 1),
        (
            "{what} at a learning rate of zero: {n} that would never move",
            "Give them a learning rate, or leave them out of the adapter.",
            lambda p: rates.get(id(p)) == 0.0,
        ),
    )
    for words, advice, is_wrong in cases:
        yield from grouped(live.arch, {key: p.numel() for key, p in held.items() if is_wrong(p)}, words, advice)
    unknown = [p.numel() for group in optimizer.param_groups for p in group["params"] if id(p) not in known]
    if unknown:
        found = f"the optimiser holds {len(unknown):,} tensors that are not in the model: {sum(unknown):,} parameters"
        yield Difference("optimiser", found, do, (), sum(unknown))


def _unfed(live: Live, gradients: Mapping[str, str]) -> tuple[str, ...]:
    """At most one note: what lies outside of the text model, when nothing but text was fed."""
    keys = [key for key, wrong in gradients.items() if wrong == BY_TEXT]
    if not keys:
        return ()
    where = sorted({key.removeprefix(PREFIX).split(".lora_")[0] for key in keys})
    modules = f"{len(where):,} {'module' if len(where) == 1 else 'modules'} ({where[0]}{', …' if where[1:] else ''})"
    return (
        f"{modules} outside of the text model: not reached by text alone, so their gradients are unknown; "
        "pass batch= with images or sounds, as the data has them",
    )


def _reached(live: Live, gradients: Mapping[str, str]) -> Iterable[Difference]:
    """What the probe found: key → what is wrong with its gradient."""
    sizes = {key: live.held[key].numel() for key in gradients}
    yield from grouped(
        live.arch,
        {key: n for key, n in sizes.items() if gradients[key] == "none"},
        "{what} without a gradient in a backward pass: {n} that would not train",
        "The forward pass goes around these layers (a fused kernel, a tower that the data never uses, checkpointing "
        "without input gradients). Leave them out of target_modules, or repair the forward pass.",
    )
    yield from grouped(
        live.arch,
        {key: n for key, n in sizes.items() if gradients[key] == "not finite"},
        "{what} with a gradient that is not finite: {n}",
        "Train in float32 or bf16; look for NaN in the base's weights.",
    )
