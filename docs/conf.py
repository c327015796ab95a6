"""Settings of the documentation site; `make docs` writes it to docs/_build/html."""

import sys
from pathlib import Path

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
autodoc_default_options = {'members': True, 'no-value': True}
autodoc_member_order = 'bysource'
autodoc_typehints_format = 'short'
python_use_unqualified_type_names = True
maximum_signature_line_length = 88
toc_object_entries_show_parents = 'hide'
