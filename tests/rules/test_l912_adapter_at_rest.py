"""L912: an adapter that was merged or switched off for a moment, and left so."""

from __future__ import annotations

from live_cases import found
from tiny import trained, wrapped

import suture


def test_merged_in_memory():
    model = trained(wrapped())
    model.merge_adapter()
    (finding,) = found(model, "L912")
    assert "unmerge_adapter" in finding.do
    assert {f.code for f in suture.check(model) if f.severity == "error"} == {"L912"}, "nothing is said of gradients"
    model.unmerge_adapter()
    assert not found(model, "L912")


def test_switched_off():
    model = wrapped()
    model.base_model.disable_adapter_layers()
    (finding,) = found(model, "L912")
    assert "enable_adapter_layers" in finding.do
    assert "L904" not in {f.code for f in suture.check(model)}
    model.base_model.enable_adapter_layers()
    assert not found(model, "L912")
