"""Where data sets come from: Kaggle, a local archive or folder, or the built-in generator."""
