"""suture inspect"""

from __future__ import annotations


def test_a_base(run, base):
    result = run("inspect", base)
    assert result.exit_code == 0
    assert "LlamaForCausalLM" in result.stdout
    assert "parameters  18,592, tied ones counted once" in result.stdout
    assert "tied        model.embed_tokens.weight = lm_head.weight" in result.stdout
    assert "adapter" not in result.stdout


def test_a_pair(run, base, adapters):
    result = run("inspect", base, adapters / "qv")
    assert "q_proj × 2, v_proj × 2" in result.stdout
    assert "by config   896 trainable of 19,488 (4.60 %)" in result.stdout
    assert "in the file 896 trainable of 19,488 (4.60 %)" in result.stdout


def test_json(document, base, adapters):
    code, found = document("inspect", base, adapters / "qv")
    assert code == 0
    assert found["adapter"]["expected"] == found["adapter"]["in_file"]
    assert found["adapter"]["expected"]["n_trainable"] == 896


def test_an_adapter_in_the_place_of_the_base(run, adapters):
    result = run("inspect", adapters / "qv")
    assert result.exit_code == 11
    assert "Give the base model first" in result.stderr
