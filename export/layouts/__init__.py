"""Readers of labelled folders, one layout each: `recognize(root) -> bool` and `read(root) -> Listing`."""
