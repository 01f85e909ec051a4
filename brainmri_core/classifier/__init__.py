"""The classifier: a checkpoint with everything needed to predict images like its evaluation did."""
