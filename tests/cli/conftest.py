"""A tied Llama, adapters for it, and the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from zoo import FAMILIES
from zoo_adapters import load_base, perturb

from suture.cli.app import app

FAMILY = FAMILIES["llama-tied"]
SETTINGS = {
    "qv": {"target_modules": ["q_proj", "v_proj"]},
    "head": {"target_modules": ["lm_head"]},
}


@pytest.fixture(scope="session")
def base(base_of: Callable[[str], Path]) -> Path:
    """A Llama whose embedding and head are one tensor."""
    return base_of(FAMILY.name)


@pytest.fixture(scope="session")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of adapters: qv, head (both sound) and lost (a level of the names is missing)."""
    root = tmp_path_factory.mktemp("adapters")
    for name, settings in SETTINGS.items():
        live = get_peft_model(load_base(FAMILY, base), LoraConfig(r=4, lora_alpha=8, **settings))
        perturb(live, seed=0, std=0.02)
        live.save_pretrained(root / name)
    (root / "lost").mkdir()
    tensors = load_file(root / "qv" / "adapter_model.safetensors")
    lost = {key.replace("model.model.model.", "model.model."): t for key, t in tensors.items()}
    save_file(lost, root / "lost" / "adapter_model.safetensors")
    (root / "lost" / "adapter_config.json").write_text((root / "qv" / "adapter_config.json").read_text())
    return root


@pytest.fixture
def run() -> Callable[..., Result]:
    """Run `suture` with these arguments, in this process."""
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def document(run: Callable[..., Result]) -> Callable[..., tuple[int, dict]]:
    """Run `suture … --json`; its exit code and the one document on stdout."""

    def call(*arguments: object) -> tuple[int, dict]:
        result = run(*arguments, "--json")
        return result.exit_code, json.loads(result.stdout)

    return call
