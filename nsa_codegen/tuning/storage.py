"""The URL of the storage that tuners share: whatever shows it to people or keeps it hides the password in it."""

from __future__ import annotations

import re

HIDDEN = "***"
_PASSWORD = re.compile(r"(?<=://)([^:/@\s]*):(\S*)@")  # to the last @, so that an unquoted one in it leaves nothing
_NAMED = re.compile(r"([?&](?:password|sslpassword)=)[^&\s]*", re.IGNORECASE)


def shown_url(url: str) -> str:
    """Return the URL of a storage as it may be shown and kept: without passwords."""
    return _NAMED.sub(rf"\g<1>{HIDDEN}", _PASSWORD.sub(rf"\g<1>:{HIDDEN}@", url))


def without_passwords(text: str, url: str) -> str:
    """Return a text that may have the URL in it, as it is or quoted, with `shown_url` in its place."""
    for written in (url, repr(url)[1:-1]):
        text = text.replace(written, shown_url(written))
    return text
