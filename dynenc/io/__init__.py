"""Where files lie and how they are read and written: local paths, URLs and tar shards."""
