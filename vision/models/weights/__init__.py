"""Weights of others: read checkpoints, match tensor names, convert layouts, fold BatchNorm."""
