"""Code that all packages share: configs, workdirs, checkpoints, devices, processes and errors.

`default_config()` has every key of a config with its default; `config_keys.py` declares the keys.
`read_config` and `read_records` read a run's folder, and `Checkpoints` reads its weights. A mistake
of the user raises `UserError`; a command reports it in one line and exits with code 2.

Read first: `config_keys.py`, `workdir.py`, `checkpoints.py`, `mesh.py`.
"""

from typing import TYPE_CHECKING

from vision.core.lazy import public_names

if TYPE_CHECKING:
    from vision.core.checkpoints import Checkpoints
    from vision.core.config import complete_eval, default_config, from_json, to_json
    from vision.core.errors import Stopped, UserError
    from vision.core.mesh import make_mesh
    from vision.core.startup import tune, use_compilation_cache
    from vision.core.state import TrainState
    from vision.core.workdir import read_config, read_json, read_records
else:
    __all__, __getattr__, __dir__ = public_names(__name__)
