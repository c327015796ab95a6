"""LeNet-5 on MNIST: full (modern, distorted), plain, 1998, 1998-distorted, 1998-cosine, quick.

Paper: LeCun et al. 1998, "Gradient-based learning applied to document recognition", II.B to III.

    python -m experiments.train --config=configs/mnist_lenet5.py:full --workdir=runs/mnist
    … --config.data.source=idx --config.data.path=FOLDER     the four IDX files, no internet

Result: test error 0.50, 0.78, 1.14, 0.90, 0.92 % (5 seeds; paper: 0.95, with distortions 0.8).
Cost: 4, 1, 5, 5 and 6 minutes of one CPU core for each seed; `quick` takes seconds.
Deviations: full and plain use a dense C3, ReLU, max pooling and softmax. All train in batches with
momentum, not on single patterns; 1998-cosine has its own schedule and weight decay. Distortions
include rotations and are new in each pass (the paper: 540,000 fixed images).
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from vision.core.config import default_config
from vision.core.errors import unknown

VARIANTS = ('full', 'plain', '1998', '1998-distorted', '1998-cosine', 'quick')


def get_config(variant: str = 'full') -> ConfigDict:
    """Returns the config of one variant."""
    if variant not in VARIANTS:
        raise unknown('variant of mnist_lenet5.py', variant, VARIANTS)
    config = default_config()
    config.model = ConfigDict({'name': 'lenet5'})
    config.data.source = 'tfds'
    config.data.name = 'mnist'
    config.data.in_memory = True
    config.data.path = placeholder(str)
    config.data.validation = 5000
    config.preprocess.train = 'pad(2)|affine(degrees=10, scale=0.1, shear=0.1, shift=2)'
    config.preprocess.eval = 'pad(2)'
    config.preprocess.mean = (0.1,)  # of the padded images
    config.preprocess.std = (0.28,)
    config.optimizer.lr = 0.05
    config.weight_decay = 5e-4
    config.schedule.warmup = '1 epochs'
    config.training.batch_size = 128
    config.training.duration = '20 epochs'
    config.training.log_every = '100 steps'
    config.evaluation.batch_size = 1000
    if variant == 'quick':
        config.training.duration = '200 steps'
        config.training.eval_every = '100 steps'
        config.training.log_every = '50 steps'
        config.schedule.warmup = '20 steps'
    if variant == 'plain':
        config.training.duration = '10 epochs'
    if variant in ('plain', '1998', '1998-cosine'):
        config.preprocess.train = 'pad(2)'  # no distortions
    if variant.startswith('1998'):
        # Sections II.B, II.C and III.B: the network, its loss and the range of its pixels.
        config.model = ConfigDict({'name': 'lenet5_1998'})
        config.loss.name = 'lenet_discriminative'
        config.preprocess.mean = (0.1 / 1.275,)  # white paper becomes -0.1, black ink 1.175
        config.preprocess.std = (1 / 1.275,)
        config.optimizer.lr = 6e-3
    if variant in ('1998', '1998-distorted'):
        # Section III.B: 5e-4 for 2 passes, 2e-4 for 3, 1e-4 for 3, 5e-5 for 4, then 1e-5.
        config.weight_decay = 0.0
        config.schedule = ConfigDict({'name': 'step', 'warmup': '0 steps'})
        config.schedule.at = ('2 epochs', '5 epochs', '8 epochs', '12 epochs')
        config.schedule.factor = (0.4, 0.5, 0.5, 0.2)
    if variant == '1998-cosine':
        config.data.validation = 0  # chosen with 10,000 held out; trains on all, as the paper did
        config.weight_decay = 0.03
        config.schedule.warmup = '0.5 epochs'
        config.training.duration = '24 epochs'
    return config
