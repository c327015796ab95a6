"""LeNet-5 on scikit-learn's bundled digits: the smallest experiment here; it needs no download.

Paper: LeCun et al. 1998, "Gradient-based learning applied to document recognition", section II.B.

    python -m experiments.train --config=configs/digits_lenet5.py --workdir=runs/digits

Result: test error 0.89 ± 0.46 % (5 seeds; results/table.md).
Cost: 24 to 28 seconds of one CPU core for each seed.
Deviations: the network has its modern form (C3 reads all maps of S2; ReLU, max pooling, softmax).
The data are other digits: 1,077 images for training, 360 for validation and 360 for testing. With
few images, the validation results of single checkpoints are noisy, so a moving average of the
parameters is evaluated and selected.
"""

from ml_collections import ConfigDict

from vision.core.config import default_config


def get_config() -> ConfigDict:
    """Returns the config of the experiment."""
    config = default_config()
    config.model = ConfigDict({'name': 'lenet5'})
    config.data.source = 'digits'
    config.preprocess.train = 'resize(32)|affine(degrees=10, scale=0.1, shear=0.1, shift=3)'
    config.preprocess.eval = 'resize(32)'
    config.preprocess.mean = (0.3,)
    config.preprocess.std = (0.35,)
    config.optimizer.lr = 0.05
    config.weight_decay = 5e-4
    config.schedule.warmup = '2 epochs'
    config.training.batch_size = 64
    config.training.duration = '60 epochs'
    config.training.eval_every = '5 epochs'
    config.training.ema_decay = 0.99
    return config
