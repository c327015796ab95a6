"""Ablations that run on a laptop; the family of networks follows the colon: resnet, vgg or digits.

Papers: He et al. 2015 (arXiv:1512.03385), figures 1 and 6, tables 2 and 3; He et al. 2016
(arXiv:1603.05027); Simonyan and Zisserman 2014, section 4.1; Ioffe and Szegedy 2015.

    python -m experiments.sweep --config=configs/ablation.py:resnet --workdir=runs/plain \\
        --grid='model.stage_sizes=(1,1,1),(3,3,3),(9,9,9);model.shortcut=A,none;seed=0,1,2'
    … --config.data.source=idx --config.data.path=FOLDER     the four IDX files, no internet

Results: docs/results.md, "Ablations", with the grid of each ablation (3 seeds on a GPU).
Cost: 8 to 19 minutes of one CPU core per trial; seconds for `digits` (resnet on small digits).
Deviations: Fashion-MNIST at 14 x 14 pixels, 10,000 training images, 20 epochs; 50,000 held out.
"""

from ml_collections import ConfigDict

from configs.fashion_mnist import set_data
from vision.core.config import default_config
from vision.core.errors import unknown

_FAMILIES = ('resnet', 'vgg', 'digits')


def get_config(family: str = 'resnet') -> ConfigDict:
    """Returns the config that all trials of an ablation share."""
    if family not in _FAMILIES:
        raise unknown('family of ablation.py', family, _FAMILIES)
    config = default_config()
    config.model = ConfigDict({'name': 'resnet20'})
    size = 8
    if family != 'digits':
        size = 14
        set_data(config, validation=50_000)
        config.evaluation.batch_size = 1000
    config.preprocess.train = f'resize({size})'
    config.preprocess.eval = f'resize({size})'
    config.preprocess.mean = (0.286,)
    config.preprocess.std = (0.34,)
    config.optimizer.lr = 0.1
    config.weight_decay = 1e-4
    config.schedule.warmup = '1 epochs'
    config.training.batch_size = 128
    config.training.duration = '20 epochs'
    config.training.eval_every = '4 epochs'
    config.training.log_every = '1 epochs'
    if family == 'vgg':
        config.model = ConfigDict({'name': 'vgg11', 'stem': 'small'})
        config.optimizer.lr = 0.01
    return config
