"""What comes with the package as files: the default configuration, the catalogue of data sets, experiments and patient tables."""
