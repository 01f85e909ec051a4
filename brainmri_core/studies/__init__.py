"""Hyperparameter studies: the search space, the journal of the trials, and the outcome."""
