"""A211: an adapter that stands on more than its base."""

from __future__ import annotations

import pytest
from rule_cases import BOTH, adapter, findings, only

AXOLOTL = """---
base_model: org/tiny-llama
---
<details><summary>See axolotl config</summary>

axolotl version: `0.9.2`
```yaml
{}
```

</details>
"""


def tuned(folder, files):
    adapter(folder, BOTH, base_model_name_or_path="org/tiny-llama")
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("file", "text", "severity"),
    [
        ("README.md", "---\nlibrary_name: peft\nbase_model: org/stage-1\n---\n# Card\n", "warning"),
        ("README.md", AXOLOTL.format("base_model: ./out/stage-1 # merged"), "warning"),
        ("README.md", AXOLOTL.format("base_model: org/tiny-llama\nlora_model_dir: ./out/stage-1"), "info"),
        ("training_args.yaml", "adapter_name_or_path: saves/sft,saves/dpo\nstage: dpo\n", "warning"),
        ("train.yml", "adapter_name_or_path: saves/sft\ncreate_new_adapter: true\n", "warning"),
        ("train.yml", "adapter_name_or_path: saves/sft\n", "info"),
        ("train.yml", "adapter_name_or_path: [saves/sft]\n", "info"),
        ("README.md", "---\nbase_model: ['org/stage-1'] # a list\n---\n", "warning"),
    ],
)
def test_a_sign(base, tmp_path, file, text, severity):
    finding = only(base, tuned(tmp_path, {file: text}), "A211")
    assert finding.where.startswith(file)
    assert finding.severity == severity


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("README.md", "---\nbase_model: org/Tiny-Llama\n---\nbase_model: org/other\n"),
        ("README.md", "---\nbase_model: unsloth/tiny-llama-bnb-4bit\ntags: [lora]\n---\n"),
        ("README.md", "---\nbase_model:\n- org/tiny-llama\n---\n"),
        ("README.md", "---\nbase_model: [org/tiny-llama]\n---\n"),
        ("README.md", "---\nbase_model: [org/tiny-llama, org/other]\n---\n"),
        ("README.md", "---\nbase_model: {name: org/other}\n---\n"),
        ("README.md", "---\nbase_model: >-\n  org/tiny-llama\n---\n"),
        ("README.md", "---\nbase_model: null\n---\n"),
        ("README.md", "base_model: org/other\n"),
        ("README.md", AXOLOTL.format("base_model: org/tiny-llama\nlora_model_dir:\nadapter: lora")),
        ("train.yaml", "model_name_or_path: org/tiny-llama\nadapter_name_or_path: null\n"),
        ("train.yaml", "nested:\n  adapter_name_or_path: a,b\n"),
    ],
)
def test_no_sign(base, tmp_path, file, text):
    assert not findings(base, tuned(tmp_path, {file: text}), "A211")


def test_what_peft_writes(base, tmp_path, quiet_torch):
    import tiny
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny.make_base(tmp_path / "tiny-base"))
    tiny.wrapped(model).save_pretrained(tmp_path / "adapter")
    assert "base_model" in (tmp_path / "adapter" / "README.md").read_text()
    assert not findings(tmp_path / "tiny-base", tmp_path / "adapter", "A211")
