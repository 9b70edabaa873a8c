"""Slices, tokens, precision."""
