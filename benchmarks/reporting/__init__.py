"""What a report of a large sweep costs: the whole of it (`times`), and reading its curves (`reading`)."""
