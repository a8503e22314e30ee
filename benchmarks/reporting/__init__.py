"""What a report of a large sweep costs: the whole (`times`), the live page (`pages`), reading curves (`reading`)."""
