"""LeNet-5 on Fashion-MNIST: 60,000 training and 10,000 test images of clothes, 28 x 28 pixels.

Paper: Xiao, Rasul and Vollgraf 2017, "Fashion-MNIST: a novel image dataset for benchmarking machine
learning algorithms" (arXiv:1708.07747). The authors' list has accuracies of 87.6 to 91.6 % for two
convolutions with pooling, and 93.9 % with flips.

    python -m experiments.train --config=configs/fashion_mnist_lenet5.py --workdir=runs/fashion
    … --config.data.source=idx --config.data.path=FOLDER     the four IDX files, no internet
    …:quick                                                  200 steps: seconds

Result: test error 9.03 ± 0.13 % (5 seeds; results/table.md).
Cost: 4 minutes of one CPU core.
Deviations: LeNet-5 of LeCun et al. 1998 in its modern form; flips and small shifts; 5,000 training
images are held out to select the checkpoint.
"""

from ml_collections import ConfigDict

from configs.fashion_mnist import set_data
from vision.core.config import default_config
from vision.core.errors import unknown


def get_config(variant: str = 'full') -> ConfigDict:
    """Returns the config; 'quick' is a smoke test of seconds."""
    if variant not in ('full', 'quick'):
        raise unknown('variant of fashion_mnist_lenet5.py', variant, ['full', 'quick'])
    config = default_config()
    config.model = ConfigDict({'name': 'lenet5'})
    set_data(config)
    config.preprocess.train = 'pad(2)|flip_lr|translate(2)'
    config.preprocess.eval = 'pad(2)'
    config.preprocess.mean = (0.22,)  # of the padded images
    config.preprocess.std = (0.33,)
    config.optimizer.lr = 0.05
    config.weight_decay = 5e-4
    config.schedule.warmup = '1 epochs'
    config.training.batch_size = 128
    config.training.duration = '20 epochs'
    config.training.log_every = '100 steps'
    config.evaluation.batch_size = 1000
    if variant == 'quick':
        config.schedule.warmup = '20 steps'
        config.training.duration = '200 steps'
        config.training.eval_every = '100 steps'
        config.training.log_every = '50 steps'
    return config
