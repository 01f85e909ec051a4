"""The graph as data: assets, partitions, resources and their configuration."""
