"""Notebook 09: the rules of six claims, on other networks and images."""
