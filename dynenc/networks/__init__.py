"""The networks: layers, encoders, decoders, and loading of their weights."""
