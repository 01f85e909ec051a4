"""Pixels and plots as picture files."""
