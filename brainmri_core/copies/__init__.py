"""Copies of one image: fingerprints, the search for copies, and leaks between training and test split."""
