"""Paths and addresses in settings: expands ``~``, and refuses or removes credentials.

Settings are stored with every run, printed by jobs and shown by job servers; so would be a secret in one of them.
"""

from __future__ import annotations

import os
import re
from typing import Annotated

from pydantic import AfterValidator

_USERINFO = re.compile(r"(?<=://)[^/@\s]+(?=@)")
# Any parameter whose name contains one of these words: X-Amz-Signature, access_token, sig.
_SECRET_PARAMETER = re.compile(
    r"(?i)(?<=[?&;])((?:[\w.-]*[_.-])?(?:passw(?:or)?d|pwd|token|secret|sig|signature|credentials?|"
    r"(?:api|access|account|secret|aws)[_.-]?(?:access[_.-]?)?key(?:[_.-]?id)?)(?:[_.-][\w.-]*)?)=[^&;\s]*"
)


def redact_secrets(text: str) -> str:
    """Remove the user, the password and secret parameters from every address in ``text``.

    >>> redact_secrets("postgresql://ann:pw@db:5432/mlflow?password=pw&a=1")
    'postgresql://***@db:5432/mlflow?password=***&a=1'
    >>> redact_secrets("https://store/a.tar?X-Amz-Expires=60&X-Amz-Signature=ab12")
    'https://store/a.tar?X-Amz-Expires=60&X-Amz-Signature=***'
    """
    return _SECRET_PARAMETER.sub(r"\1=***", _USERINFO.sub("***", text))


def _check_location(value: str) -> str:
    if (shown := redact_secrets(value)) != value:
        raise ValueError(
            f"{shown!r} holds credentials, and settings are stored and shown; leave them out of the address and give "
            "them in the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for S3)"
        )
    return os.path.expanduser(value) if value.startswith("~") else value


Location = Annotated[str, AfterValidator(_check_location)]
"""Type of a setting that is a path or a URI: ``~`` is the home folder (a shell does not expand it after an equals
sign), and an address with a user, a password or a signature is refused."""
