"""What Dagster loads: the graph of brainmri. Assets of your own are added with `dagster.Definitions.merge`."""

from brainmri_dagster.code_location import defs

__all__ = ["defs"]
