"""Sweeps: from a YAML file to trials, run locally or on Ray Tune."""
