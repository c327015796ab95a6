"""GoogLeNet on ImageNet.

Paper: Szegedy et al. 2014, "Going deeper with convolutions" (arXiv:1409.4842), sections 5 and 6.

    python -m experiments.train --config=configs/imagenet_googlenet.py --workdir=runs/googlenet
    … --config.data.data_dir=DIR     the prepared data set

Result: not run here. Paper's top-5 error: 10.07 % (one crop), 7.89 % (144 crops,
`evals.crops_144`).
Cost: not measured; about 1,239,000 steps of batch 256.
Deviations: 1 % of the training images is held out. The paper does not give these values: learning
rate .01 for batch 256, weight decay 2e-4 (as in Caffe's replica) except for biases, 250 epochs, an
average from epoch 200 on, colour factors within .4.
"""

from ml_collections import ConfigDict

from configs.imagenet import set_data
from vision.core.config import default_config


def get_config() -> ConfigDict:
    """Returns the config of the experiment."""
    config = default_config()
    config.model = ConfigDict({'name': 'googlenet_2014'})
    set_data(config)
    config.preprocess.train = (
        'decode|random_resized_crop(224)|flip_lr|brightness(0.4)|contrast(0.4)|saturation(0.4)'
    )
    config.preprocess.eval = 'decode|resize_small(256)|central_crop(224)'
    config.preprocess.mean = (0.485, 0.456, 0.406)
    config.preprocess.std = (1 / 255,)  # the mean is subtracted in pixels
    config.evals.crops_144 = ConfigDict({'protocol': 'crops_144'})
    config.loss.aux_weight = 0.3
    config.optimizer.lr = 0.01
    config.weight_decay = 2e-4
    config.schedule = ConfigDict(
        {'name': 'exponential', 'warmup': '0 steps', 'every': '8 epochs', 'factor': 0.96}
    )
    config.training.batch_size = 256
    config.training.duration = '250 epochs'
    config.training.log_every = '100 steps'
    config.training.polyak_from = '200 epochs'
    return config
