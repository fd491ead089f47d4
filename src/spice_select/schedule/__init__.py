"""The proxy as it learns: exact Gram matrices of pools, training on the picks, checkpoints, several processes."""
