"""One command that proves and times the pack on a GPU within a few minutes: see `__main__.py`."""
