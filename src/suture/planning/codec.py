"""Plan ↔ JSON, and the id that names a plan by its content."""

from __future__ import annotations

import json

from suture import codec
from suture.errors import FormatError
from suture.values import Plan


def plan_id(plan: Plan) -> str:
    """sha256 of the plan's canonical JSON, hexadecimal. Equal ids mean equal bytes."""
    return codec.digest(plan)


def dumps(plan: Plan) -> str:
    """The plan as JSON text."""
    return codec.canonical(plan).decode()


def loads(text: str) -> Plan:
    """The plan that `dumps` wrote.

    Raises:
        FormatError: the text is not a plan of this version.
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise FormatError(f"not JSON: {error}", do="Make the plan again.") from error
    return codec.from_json(Plan, data)
