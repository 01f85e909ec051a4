"""The URL of a project's place in an object store."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from brainmri_core.errors import ConfigError

SCHEMES = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
"""By scheme of a supported store, the variables that its own tools read credentials from."""


def is_url(value: str) -> bool:
    """Say whether a configured root is a URL of any kind, not a folder."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", value) is not None


def checked_url(value: str) -> str:
    """Return the URL of a place in an object store in its canonical form.

    Parameters
    ----------
    value : str
        The URL as configured.

    Raises
    ------
    ConfigError
        If its scheme is not supported, it names no bucket, or it holds more than bucket and prefix. The error does not
        quote the URL, which may hold a key.
    """
    parts = urlsplit(value)
    scheme = parts.scheme.lower()
    if scheme not in SCHEMES:
        raise ConfigError(
            f"paths.root begins with {parts.scheme}://; write a folder, or s3://, gs:// or az:// with bucket and prefix."
        )
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigError(
            f"paths.root holds more than bucket and prefix; write {scheme}://bucket/prefix, and leave credentials to the "
            f"environment ({SCHEMES[scheme]})."
        )
    path = [part for part in parts.path.split("/") if part]
    if not parts.netloc or {".", ".."} & set(path):
        raise ConfigError(f"paths.root names no bucket and prefix; write it as {scheme}://bucket/prefix.")
    return "/".join([f"{scheme}://{parts.netloc}", *path])
