"""One view of the page per file: `show(sweep)` draws it."""
