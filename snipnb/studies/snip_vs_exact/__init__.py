"""The study of notebook 02."""
