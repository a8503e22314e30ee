"""Optimal-transport numerics on plain tensors: costs, and one solver per file."""
