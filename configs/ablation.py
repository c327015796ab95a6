"""Ablations that teach, small enough for a laptop: behind the colon stands the family that is varied.

Fashion-MNIST at 14 x 14 pixels, 10,000 images to learn from and the other 50,000 to validate on, 20 epochs: not the
papers' setting, but the same questions. He et al. 2015 (arXiv:1512.03385), figures 1 and 6, tables 2 and 3: `resnet`.
Simonyan and Zisserman 2014, section 4.1 (LRN), Ioffe and Szegedy 2015 (BatchNorm): `vgg`.

    python -m experiments.sweep --config=configs/ablation.py:resnet --workdir=runs/plain --grid=GRID
    python -m experiments.compare runs/plain/*/ --output=plain.png
    … --config.data.source=idx --config.data.path=FOLDER     the four IDX files, no internet
    … --config=configs/ablation.py:digits                    resnet on scikit-learn's digits: seconds

What came out, three seeds on a GPU (8 to 19 minutes a trial on a CPU core): docs/results.md, "Ablations".

The grids, each with `;seed=0,1,2` for means and deviations:

    resnet  'model.shortcut=A,none;model.stage_sizes=(1,1,1),(3,3,3),(9,9,9)'   against the plain net, 8, 20, 56 layers
            'model.shortcut=A,B,C'                                              the shortcut's options
            'model.name=resnet20,resnet110_v2;model.stage_sizes=(3,3,3),(18,18,18)'   pre-activation, 20 and 110 layers
            'preprocess.train=resize(14),resize(14)|random_crop(14, padding=2)|flip_lr'   augmentation
    vgg     'model.batch_norm=False,True'                                       BatchNorm
            'model.lrn=False,True'                                              LRN
"""

from ml_collections import ConfigDict

from configs import fashion_mnist_lenet5
from vision.core.config import default_config
from vision.core.errors import unknown

_FAMILIES = ('resnet', 'vgg', 'digits')


def get_config(family: str = 'resnet') -> ConfigDict:
    """What all trials of an ablation share."""
    if family not in _FAMILIES:
        raise unknown('family of ablation.py', family, _FAMILIES)
    digits = family == 'digits'
    config = default_config() if digits else fashion_mnist_lenet5.get_config()
    size = 8 if digits else 14
    config.model = ConfigDict({'name': 'resnet20'})
    config.preprocess.train = f'resize({size})'
    config.preprocess.eval = f'resize({size})'
    config.preprocess.mean, config.preprocess.std = (0.286,), (0.34,)
    config.optimizer.lr = 0.1
    config.weight_decay = 1e-4
    config.schedule.warmup = '1 epochs'
    config.training.batch_size = 128
    config.training.duration = '20 epochs'
    config.training.eval_every = '4 epochs'
    config.training.log_every = '1 epochs'
    if not digits:
        config.data.validation = 50_000
    if family == 'vgg':
        config.model = ConfigDict({'name': 'vgg11', 'stem': 'small'})
        config.optimizer.lr = 0.01
    return config
