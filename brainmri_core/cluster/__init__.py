"""Distribute work on many images over the workers of a Dask cluster."""
