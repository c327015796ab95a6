"""Executes docs/tour.ipynb in a new kernel and an empty folder, and writes its outputs into the file.

python -m tests.tour            writes the outputs (`make tour`)
python -m tests.tour --check    leaves the file as it is; fails where a cell does, or after 180 seconds

Needs the extra `docs`. `tests/test_tour.py` looks at the outputs that are in the file.
"""

import hashlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).parent.parent / 'docs' / 'tour.ipynb'
LIMIT = 180  # seconds on two cores


def digest(notebook: dict[str, Any]) -> str:
    """Identifies the sources of a notebook's cells, without their outputs."""
    sources = [(cell['cell_type'], ''.join(cell['source'])) for cell in notebook['cells']]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()[:16]


def execute(path: Path) -> tuple[Any, float]:
    """Executes the cells of a notebook.

    Returns:
      The notebook with its outputs, and the seconds that it took.

    Raises:
      nbclient.exceptions.CellExecutionError: a cell has failed.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    root = str(path.parent.parent)
    os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, [root, os.environ.get('PYTHONPATH')]))
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        resources = {'metadata': {'path': folder}}
        client = NotebookClient(notebook, timeout=LIMIT, resources=resources, record_timing=False)
        client.execute()
    seconds = time.monotonic() - begin
    for cell in notebook.cells:
        cell.metadata.clear()
        # Messages name files by their absolute paths; the stored ones begin at the notebook's folder.
        for output in cell.get('outputs', []):
            texts = output if 'text' in output else output.get('data', {})
            for kind, text in texts.items():
                if isinstance(text, str) and kind in ('text', 'text/plain'):
                    texts[kind] = text.replace(f'{folder}/', '')
    version = '.'.join(map(str, sys.version_info[:2]))
    kernel = {'display_name': 'Python 3', 'language': 'python', 'name': 'python3'}
    notebook.metadata = {
        'kernelspec': kernel,
        'language_info': {'name': 'python', 'version': version},
        'sources': digest(notebook),
    }
    return notebook, seconds


def main(words: list[str]) -> int:
    """Executes the notebook, and writes it unless it is only checked."""
    notebook, seconds = execute(NOTEBOOK)
    print(f'{NOTEBOOK.name}: {len(notebook.cells)} cells in {seconds:.0f} s')
    if words != ['--check']:
        import nbformat

        nbformat.write(notebook, NOTEBOOK)
    return int(seconds > LIMIT)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
