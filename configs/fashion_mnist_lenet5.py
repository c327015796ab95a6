"""LeNet-5 on Fashion-MNIST: 60,000 pictures of clothes, 28 x 28, 10,000 to report.

Xiao, Rasul and Vollgraf 2017, "Fashion-MNIST: a novel image dataset for benchmarking machine
learning algorithms". The model of LeCun et al. 1998 in today's form, flips and small shifts; 5,000
training images are held out to select on. The data set's own list: two convolutions with pooling
87.6 … 91.6 %, 93.9 % with flips. Test accuracy: 90.91 ± 0.30 % (five seeds, two to four minutes of a CPU core each;
`results/table.md`).

    python -m experiments.train --config=configs/fashion_mnist_lenet5.py --workdir=runs/fashion
    … --config.data.source=idx --config.data.path=FOLDER     the four IDX files, no internet
"""

from ml_collections import ConfigDict

from configs import mnist_lenet5
from vision.core.errors import unknown


def get_config(variant: str = 'full') -> ConfigDict:
    """The experiment; 'quick' is a smoke test of seconds."""
    if variant not in ('full', 'quick'):
        raise unknown('variant of fashion_mnist_lenet5.py', variant, ['full', 'quick'])
    config = mnist_lenet5.get_config(variant)
    config.data.name = 'fashion_mnist'
    config.data.class_names = (
        'T-shirt/top', 'Trouser', 'Pullover', 'Dress', 'Coat',
        'Sandal', 'Shirt', 'Sneaker', 'Bag', 'Ankle boot',
    )  # fmt: skip
    config.preprocess.train = 'pad(2)|flip_lr|translate(2)'
    config.preprocess.mean = (0.22,)  # of the padded images
    config.preprocess.std = (0.33,)
    return config
