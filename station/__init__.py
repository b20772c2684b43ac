"""The inspection station: what runs on the line."""

__version__ = "0.1.0"
