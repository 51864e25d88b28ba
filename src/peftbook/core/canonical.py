"""Frozen, validated models with a canonical text: the JSON of their fields with sorted keys, whose hash is a key."""

from __future__ import annotations

import hashlib
import json
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_serializer

from peftbook.core.errors import InputError


class Spec(BaseModel):
    """Frozen base of all specs: no unknown fields, no infinite numbers (JSON has no word for them).

    `added` names the fields that were added after a spec's first records. The canonical text leaves them out while they
    have their defaults, so older keys do not change.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    added: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _leave_out_added_defaults(self, dump):
        values = dump(self)
        for name in self.added:
            if getattr(self, name) == type(self).model_fields[name].default:
                values.pop(name, None)
        return values


class Keyed(Spec):
    """A spec with a key."""

    def canonical(self) -> str:
        """The JSON text that is hashed: sorted keys, no spaces."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=True)

    @property
    def key(self) -> str:
        """SHA-256 of the canonical spec, 64 hexadecimal digits."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()


S = TypeVar("S", bound=Spec)


def build(cls: type[S], **fields: Any) -> S:
    """Build a spec and turn pydantic's report into one sentence. Raises InputError."""
    try:
        return cls(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or cls.__name__
        raise InputError(f"{cls.__name__}: {where} = {first.get('input')!r} is not valid: {first['msg']}.") from None
