"""Tables: one file each, found by name. A table is a function from the tidy frame to `Table`s."""
