"""Lazy imports of the public names of packages (PEP 562).

An `__init__` lists its public names as imports under `if TYPE_CHECKING:`, where editors and mypy
find them. At run time `public_names` reads the same list, and a module is imported when one of its
names is first used.
"""

import ast
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def public_names(package: str) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """Reads the public names of a package from the imports under `if TYPE_CHECKING:`.

    Returns:
      The package's `__all__`, `__getattr__` and `__dir__`.
    """
    module = sys.modules[package]
    tree = ast.parse(Path(str(module.__file__)).read_text('utf-8'))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    # Map each public name to its module and its name there.
    homes = {
        alias.asname or alias.name: (str(node.module), alias.name)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    def __getattr__(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f'module {package!r} has no attribute {name!r}')
        home, attribute = homes[name]
        value = getattr(importlib.import_module(home), attribute)
        setattr(module, name, value)  # later accesses find it without this function
        return value

    return sorted(homes), __getattr__, lambda: sorted({*vars(module), *homes})
