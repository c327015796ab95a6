"""Studies over configs and runs: preview, dry run, learning rate range, sweep, comparison, reproduction."""
