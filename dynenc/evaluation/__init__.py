"""Rate and distortion of dynenc and other codecs, and perceptual metrics."""
