"""The engine: plain PyTorch, usable from a notebook. Neither ray, mlflow nor pandas is needed to train."""

from otkd.train.engine import CohortTrainer, Environment, fit

__all__ = ["CohortTrainer", "Environment", "fit"]
