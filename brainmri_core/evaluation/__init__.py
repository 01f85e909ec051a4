"""What is measured of a trained model: predictions, metrics, intervals, calibration, explanations and choices."""
