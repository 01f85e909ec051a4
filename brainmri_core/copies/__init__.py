"""One image appearing twice: fingerprints, the search for copies, and what training has seen of the test split."""
