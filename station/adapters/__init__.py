"""One protocol or device per file; siblings never import each other."""
