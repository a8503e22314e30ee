"""Data sets, one per file, and the batch pipeline."""
