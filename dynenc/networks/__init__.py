"""The networks: layers, encoders, decoders, and how their weights are loaded."""
