"""The stages of the workflow: each reads files and writes files, and has the name of its rule."""
