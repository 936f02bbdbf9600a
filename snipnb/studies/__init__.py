"""What the notebooks measure and draw, a folder each."""
