"""Data sets, and which client has which samples."""
