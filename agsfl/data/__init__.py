"""Data sets, and which samples are whose."""
