"""The reader: ask about one prompt, at one site, now. It has the workflow's functions, and its files or those of a `Scope`."""
