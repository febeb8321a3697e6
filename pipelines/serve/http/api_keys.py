"""Reads the accepted API keys, which are given as hashes in an environment variable."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from pipelines.serve.errors import ServeError

KEY_HASHES_VARIABLE = "VLMODEL_API_KEY_HASHES"
FACT_KEY_HASHES_VARIABLE = "VLMODEL_FACT_KEY_HASHES"
"""Hashes of the keys with which facts can be edited."""

# Without the check, an unset KEY would give the hash of an empty key.
_MAKE_HASH = 'make one with: : "${KEY:?is empty}" && printf %s "$KEY" | sha256sum'
_BLANKS = ("", " ", "\t", "\n", "\r")
_HASHES_OF_NO_KEY = frozenset(hashlib.sha256((a + b).encode()).hexdigest() for a in _BLANKS for b in _BLANKS)


def read_key_hashes(environment: Mapping[str, str], variable: str = KEY_HASHES_VARIABLE) -> tuple[str, ...]:
    """Read the SHA-256 hashes (hex) of the accepted API keys, comma-separated in the environment; () without the
    variable.

    Raises:
        ServeError: the variable or an entry is empty, or an entry is not 64 hexadecimal digits, or is the hash of a
            blank key. All of these come from a command whose own variable was empty, and would open the service.
    """
    if variable not in environment:
        return ()
    hashes = [entry.strip().lower() for entry in environment[variable].split(",")]
    if hashes == [""]:
        raise ServeError(f"{variable} is set and empty; unset it to serve without API keys, or {_MAKE_HASH}")
    for position, entry in enumerate(hashes, start=1):
        # The messages do not quote the entry: it may be a key put there by mistake.
        label = f"entry {position} of {variable}"
        if not entry:
            raise ServeError(f"{label} is empty; remove its comma, or {_MAKE_HASH}")
        if len(entry) != 64 or set(entry) - set("0123456789abcdef"):
            raise ServeError(f"{label} is not a SHA-256 hash (64 hexadecimal digits); {_MAKE_HASH}")
        if entry in _HASHES_OF_NO_KEY:
            raise ServeError(f"{label} is the hash of no key (of nothing, or of blanks alone); {_MAKE_HASH}")
    return tuple(hashes)
