"""Suture joins LoRA adapters to their base model and proves that the join holds.

suture.inspect(base, adapter)      what is in them, and how many values the adapter trains
suture.check(base, adapter)        all that is wrong with merging them
suture.check(folder)               … with a finished model, or a training run
suture.check(model)                … with a PeftModel in memory
suture.fix(base, adapter, out)     the adapter with its names and its config repaired
suture.plan(base, adapter)         what a merge would do
suture.forecast(base, adapter)     … and what it will cost: bytes, disk, memory, time
suture.merge(base, adapter, out)   the merge: streamed, verified, then visible
suture.dequantize(base, out)       a quantised model as the plain one that it stands for
suture.verify(base, adapter, out)  the proof, for merges of any tool
suture.explain(code)               the page of a rule
suture.train(config)               train an adapter, audited and proven
suture.resume(run)                 go on with a run, bit for bit
suture.audit(model, optimizer)     what trains in a PeftModel, and what does not
suture.ProofCallback()             audit, ledger and save check for any Trainer
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers; at run time __getattr__ imports a name when it is first used
    from suture.checking import Selection as Selection
    from suture.checking import check as check
    from suture.dequantizing import dequantize as dequantize
    from suture.errors import SutureError as SutureError
    from suture.inspection import inspect as inspect
    from suture.pages import explain as explain
    from suture.pipeline import Reading as Reading
    from suture.pipeline import forecast as forecast
    from suture.pipeline import merge as merge
    from suture.pipeline import plan as plan
    from suture.pipeline import verify as verify
    from suture.repairing import Fixed as Fixed
    from suture.repairing import fix as fix
    from suture.training.audit import audit as audit
    from suture.training.callback import ProofCallback as ProofCallback
    from suture.training.config import RunConfig as RunConfig
    from suture.training.run import resume as resume
    from suture.training.run import train as train
    from suture.values import Audit as Audit
    from suture.values import Finding as Finding
    from suture.values import Forecast as Forecast
    from suture.values import Ledger as Ledger
    from suture.values import Options as Options
    from suture.values import Outcome as Outcome
    from suture.values import Plan as Plan
    from suture.values import Receipt as Receipt
    from suture.values import Running as Running
    from suture.values import Verdict as Verdict
    from suture.verification.logits import LogitsSettings as LogitsSettings

__version__ = "0.1.0"

_HOMES = {
    "Audit": "values",
    "Finding": "values",
    "Fixed": "repairing",
    "Forecast": "values",
    "Ledger": "values",
    "LogitsSettings": "verification.logits",
    "Options": "values",
    "Outcome": "values",
    "Plan": "values",
    "ProofCallback": "training.callback",
    "Reading": "pipeline",
    "Receipt": "values",
    "RunConfig": "training.config",
    "Running": "values",
    "Selection": "checking",
    "SutureError": "errors",
    "Verdict": "values",
    "audit": "training.audit",
    "check": "checking",
    "dequantize": "dequantizing",
    "explain": "pages",
    "fix": "repairing",
    "forecast": "pipeline",
    "inspect": "inspection",
    "merge": "pipeline",
    "plan": "pipeline",
    "resume": "training.run",
    "train": "training.run",
    "verify": "pipeline",
}

__all__ = [*sorted(_HOMES), "__version__"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: start-up time is part of the interface."""
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module 'suture' has no attribute {name!r}")
    return getattr(importlib.import_module(f"suture.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
