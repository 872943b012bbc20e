"""Samples through the model, to losses."""
