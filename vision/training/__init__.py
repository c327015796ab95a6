"""Step 4, train: `train(config, workdir)`, the same from the command line, Python or a notebook."""

from vision.training.loop import train

__all__ = ['train']
