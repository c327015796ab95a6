"""Step 3, choose: the architectures, by name, and what reads and reshapes their parameters."""

from vision.models.registry import MODELS, create_model, find_model

__all__ = ['MODELS', 'create_model', 'find_model']
