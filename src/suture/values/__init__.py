"""The frozen values that flow along the line: what one stage returns, the next one takes.

    Checkpoint, Adapter → Arch → Resolved → Finding… → Plan → Receipt → Verdict

Shapes are tuples of ints, sizes are in bytes, names are the field's own. No value holds an open file.
"""

from suture.values.disk import NOT_STORED, Adapter, Checkpoint, Json, Packed, Quantization, Shard, TensorInfo
from suture.values.meaning import Finding, Problem, Resolved, Settled, Severity, Term, Untied, Update, View
from suture.values.model import Arch, Kind, Param, Part, Tie
from suture.values.outcome import Check, Kept, KeptUpdates, LogitsReport, Receipt, Staged, TensorVerdict, Verdict
from suture.values.plan import (
    Operation,
    Options,
    Origin,
    OutputFile,
    Plan,
    Rounding,
    SideFile,
    Sides,
    Source,
    TiedPolicy,
    TokenizerPolicy,
    Why,
)
from suture.values.repair import Repair
from suture.values.running import Forecast, Running
from suture.values.training import (
    Ancestor,
    Audit,
    BaseRecord,
    Difference,
    GroupRow,
    Ledger,
    Movement,
    Outcome,
    Stage,
    StageLoss,
    StepMetrics,
    TensorRecord,
)

__all__ = [
    "NOT_STORED",
    "Adapter",
    "Ancestor",
    "Arch",
    "Audit",
    "BaseRecord",
    "Check",
    "Checkpoint",
    "Difference",
    "Finding",
    "Forecast",
    "GroupRow",
    "Json",
    "Kept",
    "KeptUpdates",
    "Kind",
    "Ledger",
    "LogitsReport",
    "Movement",
    "Operation",
    "Options",
    "Origin",
    "Outcome",
    "OutputFile",
    "Packed",
    "Param",
    "Part",
    "Plan",
    "Problem",
    "Quantization",
    "Receipt",
    "Repair",
    "Resolved",
    "Rounding",
    "Running",
    "Settled",
    "Severity",
    "Shard",
    "SideFile",
    "Sides",
    "Source",
    "Stage",
    "StageLoss",
    "Staged",
    "StepMetrics",
    "TensorInfo",
    "TensorRecord",
    "TensorVerdict",
    "Term",
    "Tie",
    "TiedPolicy",
    "TokenizerPolicy",
    "Untied",
    "Update",
    "Verdict",
    "View",
    "Why",
]
