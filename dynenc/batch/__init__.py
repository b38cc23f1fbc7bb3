"""Conversion of many files: planning, worker processes and Ray."""
