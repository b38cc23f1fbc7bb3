"""Images to arrays and back: file formats, pixels, colour management and metadata."""
