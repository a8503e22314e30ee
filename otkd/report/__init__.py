"""From a tracked sweep to tables, figures and one self-contained page."""
