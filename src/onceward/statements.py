"""Every runtime statement, by name, read from `sql/*.sql` with the schema's name put in; and what text Postgres can hold.

Each block there says its name, why it is as it is, what it locks and which index serves it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Final, LiteralString

from onceward.errors import UsageError

SCHEMA_DEFAULT: Final = "onceward"
_NAME: Final = re.compile(r"^-- name: (\w+)$", re.MULTILINE)
_SCHEMA: Final = re.compile(r"[a-z_][a-z0-9_]{0,47}")


# Read and parsed once for each schema: every take needs several of them.
@cache
def statements(schema: str = SCHEMA_DEFAULT) -> Mapping[str, LiteralString]:
    """All statements for this schema, name to text. Raises `UsageError` for a name that would need quoting."""
    check_schema_name(schema)
    found: dict[str, LiteralString] = {}
    for file in sorted(files("onceward.sql").iterdir(), key=lambda entry: entry.name):
        if file.name.endswith(".sql"):
            found.update(_parse(file.read_text(encoding="utf-8"), schema))
    return MappingProxyType(found)


def check_schema_name(schema: str) -> str:
    """The name, if it can stand in SQL unquoted; it is the only thing that is ever put into a statement's text."""
    if not _SCHEMA.fullmatch(schema):
        raise UsageError(f"schema name {schema!r}: use lower-case letters, digits and _, at most 48, no digit first")
    return schema


def storable(text: str, chars_max: int = 4000) -> str:
    """The text as Postgres can hold it: no NUL, no lone surrogates, at most `chars_max` characters."""
    return text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode()[:chars_max]


def _parse(text: str, schema: str) -> dict[str, LiteralString]:
    parts = _NAME.split(text)
    names, bodies = parts[1::2], parts[2::2]
    return {name: _body(body, schema) for name, body in zip(names, bodies, strict=True)}


def _body(block: str, schema: str) -> LiteralString:
    lines = [line for line in block.splitlines() if not line.startswith("--")]
    # replace, not format: the statements are full of braces and percent signs of their own.
    return "\n".join(lines).strip().replace("{schema}", schema)
