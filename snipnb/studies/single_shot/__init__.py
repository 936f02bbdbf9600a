"""Notebook 08: SNIP beside other criteria for pruning before training."""
