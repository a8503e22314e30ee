"""What a sweep costs beside its training: the driver (`trials`), and its records (`tracking`)."""
