"""Wide ResNet-28-10 on CIFAR-10 or CIFAR-100; the number of classes follows the colon.

Paper: Zagoruyko and Komodakis 2016, "Wide residual networks" (arXiv:1605.07146), section 3.

    python -m experiments.train --config=configs/cifar_wide_resnet.py:10 --workdir=runs/wide10
    …:100

Result: not run here. Paper's test error (table 5): CIFAR-10 4.00, CIFAR-100 19.25 %.
Cost: not measured; 70,313 steps of batch 128; the data sets must be downloaded (TFDS).
Deviations: 5,000 training images are held out, and the best checkpoint on them is reported; images
are padded with zeros, not by reflection.
"""

from ml_collections import ConfigDict

from vision.core.config import default_config
from vision.core.errors import unknown

CLASSES = ('10', '100')


def get_config(classes: str = '10') -> ConfigDict:
    """Returns the config for CIFAR-10 or CIFAR-100."""
    if classes not in CLASSES:
        raise unknown('number of classes of cifar_wide_resnet.py', classes, CLASSES)
    config = default_config()
    config.model = ConfigDict({'name': 'wide_resnet28_10'})
    config.data.source, config.data.name = 'tfds', f'cifar{classes}'
    config.data.in_memory, config.data.validation = True, 5000
    config.preprocess.train = 'random_crop(32, padding=4)|flip_lr'
    if classes == '10':
        config.preprocess.mean = (0.4914, 0.4822, 0.4465)
        config.preprocess.std = (0.2470, 0.2435, 0.2616)
    else:
        config.preprocess.mean = (0.5071, 0.4865, 0.4409)
        config.preprocess.std = (0.2673, 0.2564, 0.2762)
    config.optimizer.lr = 0.1
    config.optimizer.nesterov = True
    config.weight_decay = 5e-4
    config.weight_decay_pattern = ''  # all parameters: norms and biases, too
    config.schedule = ConfigDict({'name': 'step', 'warmup': '0 steps'})
    config.schedule.at, config.schedule.factor = ('60 epochs', '120 epochs', '160 epochs'), 0.2
    config.training.batch_size = 128
    config.training.duration = '200 epochs'
    config.evaluation.batch_size = 500
    return config
