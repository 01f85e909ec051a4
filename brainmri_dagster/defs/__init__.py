"""Dagster definitions: assets, checks, jobs, sensors and the metadata they show."""
