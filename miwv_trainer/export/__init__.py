"""Selections as files that others load."""
