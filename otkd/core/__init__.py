"""Words that every layer shares: trials, records, names, errors, plug-in loading. Imports pydantic only."""
