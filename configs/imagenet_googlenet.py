"""GoogLeNet on ImageNet: Szegedy et al. 2014, "Going deeper with convolutions", arXiv:1409.4842.

Section 6: SGD with momentum .9, the rate down 4 % each 8 epochs, Polyak averaging; crops of 8 to 100 %
of the area and aspect 3/4 to 4/3, photometric distortions; section 5: auxiliary losses times .3, their
dropout .7, the main one .4. The paper's top-5 error: 10.07 % (one crop), 7.89 % (144 crops).

    python -m experiments.train --config=configs/imagenet_googlenet.py --workdir=runs/googlenet --config.data.data_dir=DIR

What the paper does not give is set here: rate .01 for batch 256, weight decay 2e-4 (as Caffe's replica),
250 epochs, the average from epoch 200 on, colours by factors within .4; biases are not decayed; 1 % of the training
images is held out (`imagenet.py`). Not measured here.
"""

from ml_collections import ConfigDict

from configs import imagenet


def get_config() -> ConfigDict:
    """The experiment."""
    config = imagenet.get_config()
    config.model = ConfigDict({'name': 'googlenet_2014'})
    config.preprocess.train = (
        'decode|random_resized_crop(224)|flip_lr|brightness(0.4)|contrast(0.4)|saturation(0.4)'
    )
    config.preprocess.std = (1 / 255,)
    config.evals.crops_144 = ConfigDict({'protocol': 'crops_144'})
    config.loss.aux_weight = 0.3
    config.optimizer.lr = 0.01
    config.weight_decay = 2e-4
    config.schedule = ConfigDict(
        {'name': 'exponential', 'warmup': '0 steps', 'every': '8 epochs', 'factor': 0.96}
    )
    config.training.duration = '250 epochs'
    config.training.polyak_from = '200 epochs'
    return config
