"""Fixtures for all tests: a cache of their own, quiet libraries, and the models, each built once a session."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).parents[1]

# huggingface_hub reads it at import: no test fetches anything from the Hub.
os.environ["HF_HUB_OFFLINE"] = "1"

# How long one example takes says more about the machine than about the code.
settings.register_profile("suture", deadline=None)
settings.load_profile("suture")

EXPECTED_WARNINGS = (
    # PEFT 0.21 asks Transformers 5.23 for a property by its old name
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
    # PEFT says so of patterns that match nothing, and by mistake of patterns that match fused experts
    r"ignore:The following (rank|alpha)_pattern keys did not match:RuntimeWarning",
)


def pytest_configure(config: pytest.Config) -> None:
    """Let the warnings pass that the rivals cause by themselves."""
    for warning in EXPECTED_WARNINGS:
        config.addinivalue_line("filterwarnings", warning)


@pytest.fixture(autouse=True, scope="session")
def user_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str | None]:
    """Point SUTURE_CACHE at a folder of this session; what it was before is the fixture's value."""
    before = os.environ.get("SUTURE_CACHE")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUTURE_CACHE", str(tmp_path_factory.mktemp("suture-cache")))
        yield before


@pytest.fixture(scope="session")
def quiet_torch() -> None:
    """One torch thread, so that sums have one order, and no progress bars or advice from Transformers."""
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="session")
def base_of(tmp_path_factory: pytest.TempPathFactory, quiet_torch: None) -> Callable[[str], Path]:
    """The folder of a family's tiny base model, by the family's name."""
    from zoo import FAMILIES, build

    root = tmp_path_factory.mktemp("zoo")

    def folder_of(name: str) -> Path:
        folder = root / name
        return folder if folder.exists() else build(FAMILIES[name], folder)

    return folder_of


@pytest.fixture(scope="session")
def smollm2_bf16(user_cache: str | None, quiet_torch: None) -> Path:
    """The folder of SmolLM2-135M-Instruct in bf16, from the user's own cache. Only for tests marked slow."""
    spec = importlib.util.spec_from_file_location("demo_model", ROOT / "demo" / "model.py")
    demo_model = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo_model)
    with pytest.MonkeyPatch.context() as patch:
        if user_cache is None:
            patch.delenv("SUTURE_CACHE")
        else:
            patch.setenv("SUTURE_CACHE", user_cache)
        return demo_model.fetch_base()


@pytest.fixture(scope="session")
def smollm2(smollm2_bf16: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of SmolLM2-135M-Instruct, converted to float32. Only for tests marked slow."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    folder = tmp_path_factory.mktemp("smollm2-f32")
    AutoModelForCausalLM.from_pretrained(smollm2_bf16, dtype=torch.float32).save_pretrained(folder)
    AutoTokenizer.from_pretrained(smollm2_bf16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory, quiet_torch: None) -> Path:
    """The folder of a run of Transformers' Trainer with an adapter: three checkpoints, with ledgers."""
    from run_cases import train
    from tiny import make_base

    import suture

    root = tmp_path_factory.mktemp("trained")
    return train(make_base(root / "base"), root / "run", suture.ProofCallback())
