"""dynenc in C programs, without Python: tables, and an example."""
