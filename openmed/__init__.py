"""Chest X-ray classifiers: models, data, training, explanation and metrics as a library."""
