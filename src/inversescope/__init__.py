"""InverseScope: read what a language model's activation encodes by inverting it."""

__version__ = "0.1.0"
