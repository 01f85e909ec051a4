"""This project's own Dagster definitions."""
