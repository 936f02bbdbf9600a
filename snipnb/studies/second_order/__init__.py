"""The study of notebook 05."""
