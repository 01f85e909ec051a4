"""The clock: the current time in UTC, and its one text form."""

from __future__ import annotations

from datetime import UTC, datetime


def utc_now() -> datetime:
    """Return the current time in UTC with microseconds."""
    return datetime.now(UTC)


def timestamp(moment: datetime) -> str:
    """Format a time as ``2026-11-23T20:05:27.123456Z``."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
