"""Networks: one architecture family per file."""
