"""Studies of configs and runs.

- `preview`: pictures of a model's input, and a summary of the data;
- `explain`: the keys of a config with their meaning and value;
- `dry_run`: size, cost, memory and time of a run, from three steps;
- `find_lr`: the range test for the learning rate;
- `sweep`: a grid of runs;
- `compare`: the curves and metrics of several runs, and a test of whether they differ;
- `reproduce`: a table of the papers' results and of ours.

Each study is one file; read only the file that you need.
"""

from typing import TYPE_CHECKING

from vision.core.lazy import public_names

if TYPE_CHECKING:
    from vision.studies.comparison import compare, compare_tables, draw_curves
    from vision.studies.config_help import explain, explain_table
    from vision.studies.cost import dry_run, dry_run_text
    from vision.studies.input_preview import draw_inputs, preview
    from vision.studies.inspect import describe
    from vision.studies.lr_range import find_lr
    from vision.studies.reproduction import Row, reproduce
    from vision.studies.sweeps import over_seeds, sweep, sweep_tables
else:
    __all__, __getattr__, __dir__ = public_names(__name__)
