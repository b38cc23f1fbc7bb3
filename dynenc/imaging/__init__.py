"""Pictures to tensors and back: pixel formats, colour management and metadata."""
