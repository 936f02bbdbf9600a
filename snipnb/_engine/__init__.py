"""Shared machinery: reading a network, propagating changes, ensembles of networks, compiled kernels."""
