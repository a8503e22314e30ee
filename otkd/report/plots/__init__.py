"""Figures: one file each, found by name. A figure is a function from the tidy frames to a matplotlib `Figure`."""
