"""Training of many masked networks, and what is kept of it."""
