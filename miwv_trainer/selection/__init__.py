"""Losses and lengths to the indices that are selected."""
