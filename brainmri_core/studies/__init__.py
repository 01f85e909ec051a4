"""Studies: what may be searched, the journal of the trials, and what came out of them."""
