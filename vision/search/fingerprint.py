"""Fingerprint of the model, weights, endpoint and preprocessing that computed a set of vectors."""

import json

from vision.core.errors import UserError
from vision.core.text import json_text
from vision.prediction.classifier import Classifier


def made_by(classifier: Classifier, endpoint: str) -> dict[str, str]:
    """Returns everything that determines a classifier's vectors, for `check`."""
    run = classifier.run
    config = run.config
    # Sorted strings, because configs of the same run may order or type their values differently.
    model = {k: str(v) for k, v in sorted(config.model.to_dict().items())}
    preprocess = [
        config.preprocess.eval,
        *map(list, (config.preprocess.mean, config.preprocess.std)),
    ]
    return {
        'model': json_text(model),
        'preprocessing': json_text([*preprocess, run.image_shape, run.input_shape]),
        'endpoint': endpoint,
        'weights': classifier.digest,
    }


def check(
    was: dict[str, str],
    classifier: Classifier,
    endpoint: str | None = None,
    what: str = 'the index',
    way: str = 'build the index again',
) -> None:
    """Raises UserError unless a classifier computes the vectors of an index or of shards.

    Args:
      was: the fingerprint of the stored vectors.
      classifier: the classifier to compare.
      endpoint: the endpoint in use; by default that of the stored vectors.
      what: the name of the index or the folder of shards, for messages.
      way: advice to the user, for messages.
    """
    here = made_by(classifier, endpoint or was['endpoint'])
    for key, value in here.items():
        if was[key] != value:
            in_stored, in_run = _difference(key, was, here)
            raise UserError(
                f'{what} and the run differ in their {key}: {in_stored} in {what}, '
                f'{in_run} in the run; {way}, or use the run that made it'
            )


def _difference(key: str, there: dict[str, str], here: dict[str, str]) -> tuple[str, str]:
    """Describes the difference between two fingerprints at a key: (there, here)."""
    if key == 'weights':
        model = _read_model(here)['name']
        return f'{model} with weights {there[key]}', f'{model} with weights {here[key]}'
    if key == 'preprocessing':
        pairs = zip(*(_parts(made[key]) for made in (there, here)), strict=False)
        return next((pair for pair in pairs if pair[0] != pair[1]), (there[key], here[key]))
    if key != 'model':
        return there[key], here[key]
    first, second = _read_model(there), _read_model(here)
    if first.get('name') != second.get('name'):
        return first.get('name', 'a model'), second.get('name', 'a model')
    # If only the arguments of the model differ, name those that do.
    names = [name for name in first | second if first.get(name) != second.get(name)]
    texts = (
        [f'{name}={model[name]}' if name in model else f'no {name}' for name in names]
        for model in (first, second)
    )
    one, other = (' '.join([first.get('name', 'a model'), *words]) for words in texts)
    return one, other


def _read_model(made_by: dict[str, str]) -> dict[str, str]:
    """Returns the model's name and arguments from a fingerprint; old ones have only the name."""
    try:
        model = json.loads(made_by['model'])
    except ValueError:
        return {'name': made_by['model']}
    return model if isinstance(model, dict) else {'name': str(model)}


def _parts(preprocessing: str) -> list[str]:
    """Splits the preprocessing of a fingerprint into its named parts."""
    try:
        values = json.loads(preprocessing)
    except ValueError:
        return [preprocessing]
    names = ('ops', 'mean', 'std', 'image size', 'input size')
    texts = (', '.join(map(str, v)) if isinstance(v, list) else v for v in values)
    return [f'{name} {text}' for name, text in zip(names, texts, strict=False)]
