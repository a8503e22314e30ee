"""otkd: experiment sweeps for model compression by optimal transport."""

__version__ = "0.1.0"
