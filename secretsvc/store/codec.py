"""Records to document text and back.

A document is one JSON object: ``{"format": 1, ...fields of the record}``. What is read is checked
strictly: an unknown field, a wrong type, a missing field or a newer format is `RecordDamaged`, which names
the document and says what to do and never repeats a byte of it. The text holds secret values in clear, so
it is a `Secret` itself until a store seals it or hands it to Vault.

Rules for both stores live here too: which kinds are written once, and how large a document may be. This
module does no I/O and knows no store.
"""
# ruff: noqa: ANN401  # a hook sees whatever JSON holds

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NoReturn, cast

from cattrs import Converter
from cattrs.gen import make_dict_structure_fn

from secretsvc.core.access import InstallationKeys
from secretsvc.core.errors import RecordDamaged, StoreConflict, StoreDenied, StoreError
from secretsvc.core.ident import is_document_name
from secretsvc.core.model import (
    FORMAT,
    Candidate,
    Generation,
    InboxItem,
    Secret,
)
from secretsvc.core.ports import R, Record

MAX_DOCUMENT_BYTES = 256 * 1024
"""Above this a write is refused: Vault's own limit is 1 MiB a request, and audit devices copy every one."""

WRITE_ONCE = frozenset({Candidate.KIND, Generation.KIND, InboxItem.KIND, InstallationKeys.KIND})
"""Kinds whose documents are created and removed, never changed; their names are never used twice."""

_RESTORE = "Restore it from a backup or remove it by hand; secretsvc leaves it as it is."
_UPGRADE = "A newer secretsvc wrote it: upgrade this one, or restore the store from before the upgrade."


def check_name(kind: type[Record], name: str) -> None:
    """Refuse a name that could leave its folder. A last line of defence: callers check names first."""
    if not is_document_name(name):
        raise StoreError(f"not a document name for {kind.KIND}: {name[:100]!r}", code="BadDocumentName")


def check_write(name: str, record: Record, expected: int) -> None:
    """Refuse a write that no store may carry out, before anything is sent anywhere."""
    check_name(type(record), name)
    if expected < 0:
        raise StoreConflict(f"{record.KIND}/{name} can not be at version {expected}")
    if expected and record.KIND in WRITE_ONCE:
        raise StoreDenied(f"{record.KIND}/{name} is written once and never changed", code="WrittenOnce")


def encode(name: str, record: Record) -> Secret:
    """Return the document text of ``record``, or raise `StoreError` when it is too large to store."""
    fields = {"format": FORMAT, **_converter.unstructure(record)}
    text = json.dumps(fields, separators=(",", ":"), allow_nan=False)  # ASCII, so bytes are characters
    if len(text) > MAX_DOCUMENT_BYTES:
        raise StoreError(
            f"{record.KIND}/{name} would be {len(text)} bytes; a document has at most {MAX_DOCUMENT_BYTES}",
            hint="Use several smaller records, such as several rules with fewer targets each.",
            code="DocumentTooLarge",
        )
    return Secret(text)


def decode(kind: type[R], name: str, text: Secret) -> R:
    """Return the record in ``text``, or raise `RecordDamaged`."""
    try:
        fields = json.loads(text.reveal(), object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError):  # its text would repeat content, so it is not chained
        raise damaged(kind, name, "is not JSON") from None
    if not isinstance(fields, dict):
        raise damaged(kind, name, "is not a JSON object")
    version = fields.pop("format", None)
    if type(version) is not int or version < 1:
        raise damaged(kind, name, "carries no format version")
    if version > FORMAT:
        raise RecordDamaged(
            f"{kind.KIND}/{name} has format {version}; this secretsvc reads up to {FORMAT}",
            hint=_UPGRADE,
            code="NewerFormat",
        )
    try:
        return _converter.structure(fields, kind)
    except Exception:  # noqa: BLE001  # whatever cattrs raises holds the content
        raise damaged(kind, name, f"does not have the fields of a {kind.__name__}") from None


def damaged(kind: type[Record], name: str, what: str) -> RecordDamaged:
    """Return the error for a document that can not be trusted or understood."""
    return RecordDamaged(f"{kind.KIND}/{name} {what}", hint=_RESTORE)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError
    return fields


def _refuse(_constant: str) -> NoReturn:
    raise ValueError


def _write_time(moment: datetime) -> str:
    if moment.tzinfo is None:
        raise TypeError("a time without a zone can not be stored")
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _read_time(text: Any, _: type) -> datetime:
    moment = datetime.fromisoformat(_exactly(str)(text, str))
    if moment.tzinfo is None:
        raise ValueError
    return moment.astimezone(UTC)


def _exactly(plain: type) -> Callable[[Any, type], Any]:
    """Return a hook that takes a value of type ``plain`` and nothing that merely converts to it."""

    def check(value: Any, _: type) -> Any:
        if type(value) is not plain:
            raise TypeError
        return value

    return check


def _read_text(value: Any, shape: type) -> Any:
    """Take text, or a word of a `StrEnum`: a hook for str is one for its subclasses too."""
    return shape(_exactly(str)(value, str))


def _read_sequence(converter: Converter) -> Callable[[Any, Any], Any]:
    """Return a hook for ``tuple[X, ...]`` that takes a JSON array only: a string is not a sequence here."""

    def structure(value: Any, shape: Any) -> Any:
        if type(value) is not list:
            raise TypeError
        return tuple(converter.structure(item, shape.__args__[0]) for item in value)

    return structure


def _read_mapping(converter: Converter) -> Callable[[Any, Any], Any]:
    def structure(value: Any, shape: Any) -> Any:
        if type(value) is not dict:
            raise TypeError
        return {key: converter.structure(item, shape.__args__[1]) for key, item in value.items()}

    return structure


def _made() -> Converter:
    converter = Converter(forbid_extra_keys=True, detailed_validation=False)
    converter.register_structure_hook(str, _read_text)
    for plain in (int, bool):
        converter.register_structure_hook(plain, _exactly(plain))
    converter.register_structure_hook(Secret, lambda value, _: Secret(_exactly(str)(value, str)))
    converter.register_unstructure_hook(Secret, Secret.reveal)
    converter.register_structure_hook(datetime, _read_time)
    converter.register_unstructure_hook(datetime, _write_time)
    converter.register_structure_hook_func(_is(tuple), _read_sequence(converter))
    converter.register_structure_hook_func(_is(dict), _read_mapping(converter))
    converter.register_structure_hook_factory(_is_record, lambda shape: _read_record(converter, shape))
    return converter


def _is(origin: type) -> Callable[[Any], bool]:
    return lambda shape: getattr(shape, "__origin__", None) is origin


def _is_record(shape: Any) -> bool:
    return hasattr(shape, "__dataclass_fields__")


def _read_record(converter: Converter, shape: Any) -> Callable[[Any, Any], Any]:
    structure = make_dict_structure_fn(shape, converter, _cattrs_forbid_extra_keys=True)

    def check(value: Any, wanted: Any) -> Any:
        if type(value) is not dict:
            raise TypeError
        return cast("Any", structure(value, wanted))

    return check


_converter = _made()
