"""Training many masked networks, and keeping the results."""
