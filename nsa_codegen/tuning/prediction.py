"""`Prediction`: what the cost model says of one candidate: seconds in all, by resource, and which of them binds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Predicted seconds of one call.

    `parts` are the seconds that each resource alone would take, by name; they overlap, so that `seconds` is at least
    the greatest, and less than their sum. `compute`, `memory` and `latency` are always among them. `facts` are figures
    on the way (blocks of a multiprocessor, registers, bytes). `bound` says what binds, and what stands behind it.
    """

    seconds: float
    parts: Mapping[str, float]
    bound: str
    facts: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, float]:
        """Return `seconds`, the parts and the facts by name, as records keep them."""
        return {"seconds": self.seconds, **self.parts, **self.facts}
