"""Measures how fast this package is."""
