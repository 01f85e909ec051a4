"""What the commands do: runs in this process, backfills, and the use of a trained model."""
