"""The process per container: its parent, its streams, its socket, its end. Boots with `python -I -S`."""
