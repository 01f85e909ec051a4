"""The commands: runs in this process, backfills, and the use of a trained model."""
