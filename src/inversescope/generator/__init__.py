"""Conditional generators: a backbone that knows the prior, and what steers it by an activation."""
