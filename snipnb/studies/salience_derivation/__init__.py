"""The study of notebook 01."""
