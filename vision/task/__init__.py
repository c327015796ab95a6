"""What a model is trained for and judged by, by `config.task`: one object from a batch to its metrics.

`classification` and `multilabel` are two tasks; a user's own is a subclass of `Task`, named in the config as
'package.module:Class' (docs/extending.md).
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vision.task.base import Metric, Outcome, Settings, Task, make_task

__all__ = ['Metric', 'Outcome', 'Settings', 'Task', 'make_task']


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module('vision.task.base'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
