"""What make calls; not installed."""
