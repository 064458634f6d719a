"""Text without the passwords that addresses in it carry: for messages, logs and whatever else people pass on."""

from __future__ import annotations

import re

HIDDEN = "***"
_USER = re.compile(r"(://)[^/\s]*@")
"""User and password before a host; greedy, as passwords are written with an @ in them."""
_QUERY = re.compile(r"([?&;][^=&;\s]*(?:passw(?:or)?d|pwd|token|secret|sig|signature|key)=)[^&;\s\"')]*", re.IGNORECASE)
_HEADER = re.compile(r"(authorization\W{1,4}(?:Bearer|Basic)\s+)[^\s'\"]+", re.IGNORECASE)


def redacted(text: str) -> str:
    """The text with `***` for credentials in addresses and authorization headers."""
    without_users = _USER.sub(rf"\1{HIDDEN}@", text)
    return _HEADER.sub(rf"\1{HIDDEN}", _QUERY.sub(rf"\1{HIDDEN}", without_users))
