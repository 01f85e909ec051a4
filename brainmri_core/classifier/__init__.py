"""A checkpoint as a thing to use: what it takes in, what it computes and what it says."""
