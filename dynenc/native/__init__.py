"""The native kernel: C, compiled when dynenc is installed, called through ctypes."""
