"""A204: the name of the base in the adapter's config."""

from __future__ import annotations

import shutil

import pytest
from rule_cases import BOTH, adapter, findings, llama, only

from suture.pipeline import Reading, load_case
from suture.rules.a204_base_differs import RULE
from suture.values import Options


def test_another_name(base, tmp_path):
    finding = only(base, adapter(tmp_path, BOTH, base_model_name_or_path="org/other-llama"), "A204")
    assert finding.severity == "warning"
    assert "org/other-llama" in finding.found
    assert "tiny-llama" in finding.expected


@pytest.mark.parametrize("name", ["tiny-llama", "org/tiny-llama", "/some/Tiny-Llama/", "C:\\models\\tiny-llama", None])
def test_the_same_name(base, tmp_path, name):
    assert not findings(base, adapter(tmp_path, BOTH, base_model_name_or_path=name), "A204")


@pytest.mark.parametrize("name", ["unsloth/tiny-llama-bnb-4bit", "unsloth/tiny-llama-unsloth-bnb-4bit"])
def test_a_quantised_copy_is_no_other_model(base, tmp_path, name):
    assert not findings(base, adapter(tmp_path, BOTH, base_model_name_or_path=name), "A204")


def test_a_snapshot_in_the_hubs_cache(base, tmp_path):
    snapshot = tmp_path / "models--org--tiny-other" / "snapshots" / "0123abc"
    shutil.copytree(base, snapshot)
    tuned = adapter(tmp_path / "adapter", BOTH, base_model_name_or_path="org/tiny-other")
    assert not findings(snapshot, tuned, "A204")
    assert findings(base, tuned, "A204")


@pytest.mark.parametrize("name", ["tiny-llama", "alias"])
def test_a_link_goes_by_both_names_even_when_it_is_gone(base, tmp_path, name):
    """The rule looks at names that were read before, and at no folder."""
    link = tmp_path / "alias"
    link.symlink_to(base)
    tuned = adapter(tmp_path / "adapter", BOTH, base_model_name_or_path=f"org/{name}")
    case = load_case(link, tuned, Options(), Reading())
    link.unlink()
    assert not list(RULE.pair(case))


def test_the_name_in_the_bases_config(tmp_path):
    renamed = llama(tmp_path / "renamed", _name_or_path="org/tiny-llama")
    tuned = adapter(tmp_path / "adapter", BOTH, base_model_name_or_path="org/tiny-llama")
    assert not findings(renamed, tuned, "A204")
