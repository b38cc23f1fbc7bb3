"""The entropy coder and trellis search in numpy and constriction, which the native kernel equals.

Slow and readable; see docs/format.md for the payload.
"""
