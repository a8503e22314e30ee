"""Distillation losses: one term per file, and the weighted sum of them."""
