"""The study of notebook 06."""
