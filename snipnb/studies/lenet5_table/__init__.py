"""The study of notebook 03."""
