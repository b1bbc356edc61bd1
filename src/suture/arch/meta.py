"""A model on the meta device: the class that a config names, built without weights, and what can be read from it.

This is the only module that knows the insides of Transformers.
"""

from __future__ import annotations

import contextlib
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from suture.arch.names import Route, Step
from suture.arch.sealed import refuse_absurd, refused, sealed
from suture.errors import FormatError, MissingExtra
from suture.values import Json, Kind, Param

# Where a config does not name its class, the first of these mappings that knows the model type decides. Those for
# encoder-decoders come first, because such models stand under CAUSAL_LM with their decoder alone.
_AUTO = ("SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ", "CAUSAL_LM", "IMAGE_TEXT_TO_TEXT")

# Keys that choose kernels, code or downloads; none of them changes a name or a shape.
NEUTRAL = (
    "auto_map",
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_internal",
    "experts_implementation",
    "_experts_implementation",
    "_experts_implementation_internal",
    "use_pretrained_backbone",
)

# A hostile config must not decide how long we build: the largest published models stay far below it.
_MAX_MODULES = 100_000


@dataclass(frozen=True, slots=True)
class Built:
    """A model on the meta device, and the whole config it was built from (`model.config` may be a part of it)."""

    model: Any
    config: Any


def version() -> str:
    """Of Transformers."""
    import transformers

    return str(transformers.__version__)


def find_class(config: Json) -> Any | None:
    """The model class of Transformers that a config means, or None when Transformers has none (or only remote code).

    Raises:
        MissingExtra: the class needs a package that is not installed.
    """
    names = config.get("architectures")
    if isinstance(names, (list, tuple)) and names and (found := _class_named(names[0])):
        return found
    model_type = config.get("model_type")
    if "auto_map" in config or not isinstance(model_type, str):
        return None
    return _class_of_type(model_type)


def _class_of_type(model_type: str) -> Any | None:
    """The class that the Auto mappings give: one for the whole config before one for its text part only."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto import modeling_auto

    if model_type not in CONFIG_MAPPING:
        return None
    mappings = [getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES", {}) for task in _AUTO]
    for mapping in (*mappings, modeling_auto.MODEL_MAPPING_NAMES):
        name = mapping.get(model_type)
        found = _class_named(name[0] if isinstance(name, (list, tuple)) else name)
        if found is not None and issubclass(CONFIG_MAPPING[model_type], found.config_class):
            return found
    return None


def _class_named(name: object) -> Any | None:
    import transformers

    found = getattr(transformers, name, None) if isinstance(name, str) and name.isidentifier() else None
    return found if _is_model(found) else None


def _is_model(found: Any) -> bool:
    from transformers import PreTrainedModel

    if not isinstance(found, type):
        return False
    packages = ", ".join(getattr(found, "_backends", ()))
    if packages and not issubclass(found, PreTrainedModel):
        raise MissingExtra(f"{found.__name__} needs {packages}", do=f"Install {packages}.")
    return issubclass(found, PreTrainedModel) and getattr(found, "config_class", None) is not None


def build(model_class: Any, config: Json) -> Built:
    """The model of a config, on the meta device and tied as its config says. The config is not changed.

    Raises:
        FormatError: Transformers rejects the config.
        MissingExtra: the class needs a package that is not installed.
    """
    import torch
    from transformers import CONFIG_MAPPING, initialization

    refuse_absurd(config)
    plain = _neutral(config)
    model_type = plain.get("model_type")
    known = isinstance(model_type, str) and model_type in CONFIG_MAPPING
    config_class = CONFIG_MAPPING[model_type] if known else model_class.config_class
    with (
        accepted(model_class.__name__),
        quiet(),
        _limited(),
        sealed(),
        torch.device("meta"),
        initialization.meta_device_safe_creation_ops(),
    ):
        whole = config_class.from_dict(plain)
        is_text = whole.sub_configs.get("text_config") == model_class.config_class
        used = whole.get_text_config() if is_text else whole
        return Built(model_class._from_config(used, dtype=torch.float32), whole)


@contextlib.contextmanager
def accepted(name: str) -> Iterator[None]:
    """Whatever Transformers raises over a config, as an error that says so.

    Raises:
        FormatError: Transformers rejects the config.
        MissingExtra: the class needs a package that is not installed.
    """
    from huggingface_hub.errors import OfflineModeIsEnabled, StrictDataclassError

    try:
        yield
    except OfflineModeIsEnabled as error:
        raise refused("the Hub") from error
    except ImportError as error:
        raise MissingExtra(
            f"{name} cannot be built: {_line(error)}",
            where="config.json",
            do="Install the package that is named; no weight is read without knowing the model.",
        ) from error
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        OSError,
        RuntimeError,
        StrictDataclassError,
        TypeError,
        ValueError,
    ) as error:
        raise FormatError(
            f"Transformers does not accept this config for {name}: {_line(error)}",
            where="config.json",
            expected=f"a config that {name} can be built from",
            do="Fix the config, or install the version of Transformers that the model was saved with.",
        ) from error


def _line(error: Exception) -> str:
    """An error as one short line that is safe to print."""
    text = "".join(c if c.isprintable() else "?" for c in " ".join(str(error).split()))
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def _neutral(value: Any) -> Any:
    """A copy of JSON data as plain dicts and lists, without the keys that choose kernels, code or downloads.

    Numbers that JSON has no word for are spelled {"__float__": "Infinity"} in saved configs.
    """
    if isinstance(value, Mapping):
        if set(value) == {"__float__"} and value["__float__"] in ("Infinity", "-Infinity", "NaN"):
            return float(value["__float__"])
        return {k: _neutral(v) for k, v in value.items() if k not in NEUTRAL}
    if isinstance(value, (list, tuple)):
        return [_neutral(v) for v in value]
    return value


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """Stop a build that makes more modules than any real model has."""
    from torch.nn.modules.module import register_module_module_registration_hook

    left = _MAX_MODULES

    def count(*_: object) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise ValueError(f"more than {_MAX_MODULES} modules")

    handle = register_module_module_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what Transformers logs and warns of; its level is as before afterwards."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)


# ------------------------------------------------------------------------------------------------ what a model holds


def params(model: Any) -> dict[str, Param]:
    """Every parameter and saved buffer by each of its names, in order of declaration (PEFT nests wrappers in it)."""
    own = dict(model.named_parameters(remove_duplicate=False))
    saved = {k: v for k, v in model.state_dict().items() if hasattr(v, "shape")}
    found: dict[str, Param] = {}
    for name, tensor in {**own, **saved}.items():
        owner, shape = model.get_submodule(name.rpartition(".")[0]), tuple(tensor.shape)
        kind = _kind(owner, shape) if name in own else "Other"
        found[name] = Param(name, shape, kind, kind == "Experts" and bool(getattr(owner, "is_transposed", False)))
    return found


def _kind(module: Any, shape: tuple[int, ...]) -> Kind:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    classes: tuple[tuple[type, Kind], ...] = (
        (nn.Linear, "Linear"),
        (Conv1D, "Conv1D"),
        (nn.Embedding, "Embedding"),
        (nn.Conv1d, "Conv1d"),
        (nn.Conv2d, "Conv2d"),
        (nn.Conv3d, "Conv3d"),
    )
    for cls, kind in classes:
        if isinstance(module, cls):
            return kind
    is_experts = hasattr(module, "is_transposed") or "Expert" in type(module).__name__
    return "Experts" if is_experts and len(shape) == 3 else "Other"


def embeddings(model: Any) -> tuple[str | None, str | None]:
    """Module paths of the input and the output embedding, where the model has one of its own."""
    paths = {id(module): path for path, module in model.named_modules()}

    def path_of(getter: str) -> str | None:
        try:
            module = getattr(model, getter)()
        except (AttributeError, NotImplementedError, TypeError):
            return None
        return paths.get(id(module)) if getattr(module, "weight", None) is not None else None

    return path_of("get_input_embeddings"), path_of("get_output_embeddings")


def tied_groups(model: Any) -> tuple[tuple[str, ...], ...]:
    """Names that are one tensor, by declaration or by identity; the first of each group is the one others follow."""
    saved = model.state_dict().keys()
    tensors = dict(model.named_parameters(remove_duplicate=False))
    tensors |= {n: b for n, b in model.named_buffers(remove_duplicate=False) if n in saved}
    declared = model.get_expanded_tied_weights_keys(all_submodels=True)
    root = {name: name for name in tensors}

    def find(name: str) -> str:
        while root[name] != name:
            name = root[name]
        return name

    for target, source in sorted(declared.items()):
        if target in root and source in root:
            root[find(target)] = find(source)
    first: dict[int, str] = {}
    for name in sorted(tensors):
        leader = first.setdefault(id(tensors[name]), name)
        root[find(name)] = find(leader)
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sorted(tensors):
        groups[find(name)].append(name)
    return tuple((head, *(n for n in names if n != head)) for head, names in sorted(groups.items()) if len(names) > 1)


def differences(one: Any, other: Any) -> set[str]:
    """Attributes in which two config objects differ, those of their nested configs included."""
    found: set[str] = set()
    a, b = vars(one), vars(other)
    for key in a.keys() | b.keys():
        x, y = a.get(key), b.get(key)
        if hasattr(x, "to_dict") and hasattr(y, "to_dict"):
            found |= differences(x, y)
        elif x != y:
            found.add(key)
    return found


def nested_configs(config: Any) -> dict[str, Any]:
    """The config objects inside a config object, by key."""
    return {k: v for k, v in sorted(vars(config).items()) if hasattr(v, "to_dict") and hasattr(v, "model_type")}


# ------------------------------------------------------------------------------------------------ the loader's names


def routes(model: Any, tensors: Sequence[str]) -> tuple[tuple[Route, ...], dict[str, str], tuple[str, ...]]:
    """What the loader does with these names of a checkpoint, as `from_pretrained` would.

    Returns:
        the routes to parameters, the tensors that are left out because another one already fills their parameter
        (with that reason), and the tensors that the model class does not have.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    with accepted(type(model).__name__), quiet():
        transforms = get_model_conversion_mapping(model)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    by_pattern = {p: c for c in converters for p in c.source_patterns}
    known, prefix = model.state_dict(), model.base_model_prefix
    arrived: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    unknown: list[str] = []
    for name in sorted(tensors, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, known)
        if target not in known and name in known:
            target, pattern = rename_source_key(name, [], [], prefix, known)
        if target in known:
            arrived[target][pattern or ""].append(name)
        else:
            unknown.append(name)
    found: list[Route] = []
    left_out: dict[str, str] = {}
    for target, sources in arrived.items():
        route, rest = _route(model, target, sources, by_pattern)
        left_out |= rest
        found += [route] if route else []
    return tuple(found), left_out, tuple(sorted(unknown))


def _route(
    model: Any, target: str, sources: Mapping[str, list[str]], by_pattern: Mapping[str, Any]
) -> tuple[Route | None, dict[str, str]]:
    """The route to one parameter; plain names and a converter, or two converters, cannot fill the same one."""
    plain = sources.get("", [])
    converters = {id(by_pattern[p]): by_pattern[p] for p in sources if p}
    if len(converters) + bool(plain) > 1:
        return None, {n: f"several kinds of tensors fill {target}" for names in sources.values() for n in names}
    if plain:
        rest = dict.fromkeys(plain[1:], f"a second tensor for {target}, after {plain[0]}")
        return Route({plain[0]: (plain[0],)}, (plain[0],), (), (target,)), rest
    (converter,) = converters.values()
    steps = tuple(_step(op) for op in converter.operations)
    by_source = {p: tuple(names) for p, names in sources.items()}
    return Route(by_source, tuple(converter.source_patterns), steps, _targets(model, converter, target)), {}


def _targets(model: Any, converter: Any, first: str) -> tuple[str, ...]:
    """Full names of a converter's results: its target patterns, in the place where the first one stands."""
    patterns = list(converter.target_patterns)
    if any(getattr(op, "num_shards_attribute", None) for op in converter.operations) and "*" in patterns[0]:
        patterns = converter.operations[0].get_target_patterns(patterns, config=model.config)
    head = next((p for p in patterns if p in first), None)
    if head is None:
        return (first,)
    before, _, after = first.partition(head)
    return tuple(before + p + after for p in patterns)


def _step(op: Any) -> Step:
    names = {"MergeModulelist": "stack", "Concatenate": "concatenate", "Chunk": "chunk", "Split": "split"}
    kind = type(op).__name__
    if kind == "Transpose":
        return Step("transpose", (op.dim0, op.dim1), f"{kind}({op.dim0}, {op.dim1})", op.check_dims)
    if kind in names:
        return Step(names[kind], (op.dim,), repr(op))  # type: ignore[arg-type]
    return Step("other", (), repr(op))
