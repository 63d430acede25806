"""A rule of a recipe: gives one spec to the slots that it matches."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qdq.quantization.slot import Slot
    from qdq.quantization.spec import QuantSpec

__all__ = ["Rule"]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Gives a spec to the slots that match.

    Args:
        module: A shell pattern that the name of the module must match.
        slot: The name of the slot (``input``, ``weight`` or ``other``), or ``*`` for all slots of the module.
        spec: The spec; None to stay float.
        kind: The kind of the module (``linear``, ``embedding``, ``matmul`` or ``add``), or several kinds; None for any.
        optional: Whether the rule may match no slot of a model.
    """

    module: str
    slot: str
    spec: QuantSpec | None
    kind: str | tuple[str, ...] | None = None
    optional: bool = False

    def matches(self, slot: Slot) -> bool:
        """Return whether the rule is for ``slot``."""
        kinds = self.kind if isinstance(self.kind, tuple) else (self.kind,)
        return (
            (self.kind is None or slot.kind in kinds)
            and self.slot in ("*", slot.name)
            and fnmatchcase(slot.module, self.module)
        )

    def __str__(self) -> str:
        kinds = f"[{', '.join(self.kind)}]" if isinstance(self.kind, tuple) else self.kind
        kind = "" if self.kind is None else f"kind: {kinds}, "
        return f"{{module: {self.module!r}, {kind}slot: {self.slot!r}, spec: {self.spec or 'off'}}}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, with the whole spec in the rule."""
        # Keys with their defaults are left out, so that older versions can read recipes without them.
        spec = "off" if self.spec is None else self.spec.to_dict()
        kind = {} if self.kind is None else {"kind": list(self.kind) if isinstance(self.kind, tuple) else self.kind}
        optional = {"optional": True} if self.optional else {}
        return {"module": self.module, **kind, "slot": self.slot, "spec": spec, **optional}
