"""What a project remembers: where things lie, pointers, tables, runs, logs and the catalogue of data sets."""
