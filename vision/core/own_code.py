"""A user's own modules that a config names ('package.module:Name'): kept in the workdir, and found there again."""

import importlib.util
import shutil
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

_FOLDER = 'modules'  # in the workdir
_OURS = {'vision', 'experiments', 'benchmarks', 'configs', 'tests', '__main__'}


def keep(workdir: Path, modules: Collection[str]) -> None:
    """Copies modules, and what they import from the same folder, into the workdir.

    Args:
      workdir: of the run.
      modules: their names; ours and those of libraries are left out.
    """
    for name in modules:
        root = _root(name)
        if root in (None, (workdir / _FOLDER).resolve()):
            continue
        for file in _imported_from(root):
            target = workdir / _FOLDER / file.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


def make_importable(workdir: Path) -> None:
    """Lets imports find the kept modules where no other module of their name is found."""
    folder = str(workdir / _FOLDER)
    if folder not in sys.path and (workdir / _FOLDER).is_dir():
        sys.path.append(folder)


def _root(name: str) -> Path | None:
    """The folder that a module is imported from; None for ours and for those that are no files."""
    if name.split('.')[0] in _OURS:
        return None
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return None
    depth = name.count('.') + (Path(spec.origin).name == '__init__.py')
    root = Path(spec.origin).resolve().parents[depth]
    return None if 'site-packages' in root.parts else root


def _imported_from(root: Path) -> Iterator[Path]:
    """The files of all modules that were imported from the folder, ours and libraries aside."""
    for module_name, module in list(sys.modules.items()):
        file = getattr(module, '__file__', None)
        if module_name.split('.')[0] in _OURS or file is None or not file.endswith('.py'):
            continue
        path = Path(file).resolve()
        if path.is_relative_to(root) and not {'site-packages', 'lib'} & set(
            path.relative_to(root).parts
        ):
            yield path
