"""The study of notebook 04."""
