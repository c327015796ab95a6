"""Step 3, choose: the architectures, by name, and what reads and reshapes their parameters."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vision.models.registry import MODELS, create_model, find_model

__all__ = ['MODELS', 'create_model', 'find_model']


def __getattr__(name: str) -> Any:
    """Imports the registry when one of its names is asked for: `vision.models.cpu.startup` must not import JAX."""
    if name in __all__:
        from vision.models import registry

        return getattr(registry, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
