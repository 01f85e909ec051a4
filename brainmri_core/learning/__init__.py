"""Learning: models, batches, augmentation, the training loop, checkpoints and inference."""
