"""Work on many images that the workers of a Dask cluster share."""
