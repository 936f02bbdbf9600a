"""What engines share: the reading of a network, the propagation of changes, ensembles of networks, compiled kernels."""
