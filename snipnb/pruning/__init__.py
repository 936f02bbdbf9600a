"""Which parameters are kept."""
