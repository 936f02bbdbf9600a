"""The study of notebook 07."""
