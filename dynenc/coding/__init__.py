"""Latents to bytes and back: quantisation, entropy coding and the .lat bitstream."""
