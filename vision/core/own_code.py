"""User-defined modules that a config names as 'package.module:Name'.

They are copied into the workdir, so that the run can be evaluated without the user's folder, and
errors are traced to their lines.
"""

import importlib.util
import shutil
import sys
import sysconfig
import traceback
from collections.abc import Collection, Iterator
from pathlib import Path
from types import FrameType

_FOLDER = 'modules'  # in the workdir
_OURS = {'vision', 'experiments', 'benchmarks', 'configs', 'tests', '__main__'}


def keep(workdir: Path, modules: Collection[str]) -> None:
    """Copies modules, and the modules they import from the same folder, into the workdir.

    Args:
      workdir: the run's folder.
      modules: module names; modules of this project and of libraries are not copied.
    """
    for name in modules:
        root = _root(name)
        # Skip modules that were imported from the copy in this workdir.
        if root in (None, (workdir / _FOLDER).resolve()):
            continue
        # Copy all imported files below the module's root.
        for file in _imported_from(root):
            target = workdir / _FOLDER / file.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


def make_importable(workdir: Path) -> None:
    """Makes the copied modules importable, after all other places where Python looks."""
    folder = str(workdir / _FOLDER)
    if folder not in sys.path and (workdir / _FOLDER).is_dir():
        sys.path.append(folder)


def place_of(error: BaseException) -> str | None:
    """Returns the innermost line of user-defined code in an error's traceback.

    For example 'my_task.py, line 12, in Contrastive.loss'; None if no such code was involved.
    """
    frames = [
        (frame, line) for frame, line in traceback.walk_tb(error.__traceback__) if _is_own(frame)
    ]
    if not frames:
        return None
    frame, line = frames[-1]
    code = frame.f_code
    return f'{Path(code.co_filename).name}, line {line}, in {code.co_qualname}'


def _is_own(frame: FrameType) -> bool:
    """True if a frame's module is neither of this project nor of a library."""
    module, path = frame.f_globals.get('__name__', ''), Path(frame.f_code.co_filename)
    if module.split('.')[0] in _OURS or not path.is_file():  # generated code has no file
        return False
    return not _is_library(path)


def _is_library(path: Path) -> bool:
    """True if a file belongs to the standard library or to an installed package."""
    folders = [sysconfig.get_path(name) for name in ('stdlib', 'platstdlib')]
    installed = {'site-packages', 'dist-packages'} & set(path.parts)
    return bool(installed) or any(path.is_relative_to(Path(f).resolve()) for f in folders)


def _root(name: str) -> Path | None:
    """Returns the folder on the import path that holds a module.

    None for modules of this project, of libraries, and without a file.
    """
    if name.split('.')[0] in _OURS:
        return None
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return None
    # Go up one folder for each package in the name.
    depth = name.count('.') + (Path(spec.origin).name == '__init__.py')
    root = Path(spec.origin).resolve().parents[depth]
    return None if 'site-packages' in root.parts else root


def _imported_from(root: Path) -> Iterator[Path]:
    """Yields the files of all modules imported from a folder, except ours and libraries."""
    for module_name, module in list(sys.modules.items()):
        file = getattr(module, '__file__', None)
        if module_name.split('.')[0] in _OURS or file is None or not file.endswith('.py'):
            continue
        path = Path(file).resolve()
        if path.is_relative_to(root) and not _is_library(path):
            yield path
