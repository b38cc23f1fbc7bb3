"""Listing, reading and writing files: local paths, URLs and tar shards."""
