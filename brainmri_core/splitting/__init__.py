"""The split: groups that stay together, their assignment to training, test and folds, and the record of a split."""
