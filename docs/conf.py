"""Settings of the documentation site; `make docs` writes it to docs/_build/html."""

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

project = 'Image classification in JAX'
author = 'The contributors'
html_title = project
html_theme = 'furo'
exclude_patterns = ['_build']

# Pages are Markdown; the notebook is shown with the outputs that it was saved with.
extensions = ['myst_nb', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon']
myst_heading_anchors = 4
nb_execution_mode = 'off'

# The API pages come from Google style docstrings, which have code in single backquotes.
default_role = 'py:obj'
napoleon_numpy_docstring = False
napoleon_use_ivar = True
autodoc_default_options = {'members': True, 'no-value': True}
autodoc_member_order = 'bysource'
autodoc_typehints_format = 'short'
python_use_unqualified_type_names = True
maximum_signature_line_length = 88
toc_object_entries_show_parents = 'hide'

# Files outside docs/, and their names on the site.
NAMES = {'../README.md': 'index.md', '../results/table.md': 'table.md'}


def rename_links(app: Any, page: str, source: list[str]) -> None:
    """Makes links lead to the names that files have on the site."""
    for path, name in NAMES.items():
        source[0] = source[0].replace(f']({path}', f']({name}')


def to_rst(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Changes a docstring, before napoleon reads it, to what napoleon and RST understand.

    Code that is no name gets two backquotes, and what is returned no type, which its text would begin with.
    """

    def code(found: re.Match[str]) -> str:
        quote = '`' if re.fullmatch(r'[\w.]+', found[1]) else '``'
        return f'{quote}{found[1]}{quote}' + ('\\ ' if found[2] else '')

    text = re.sub(r'`([^`]+)`(?=(\w?))', code, '\n'.join(lines))
    lines[:] = re.sub(r'^(Returns|Yields):\n +', r'\1:\n  : ', text, flags=re.M).split('\n')


def skip_fields(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leaves out the fields of named tuples, which the docstrings of their classes describe."""
    return True if (getattr(obj, '__doc__', '') or '').startswith('Alias for field') else None


def setup(app: Any) -> None:
    """Registers the functions above with Sphinx."""
    app.connect('source-read', rename_links)
    app.connect('autodoc-process-docstring', to_rst, priority=400)
    app.connect('autodoc-skip-member', skip_fields)
