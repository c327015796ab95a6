"""Evaluates a trained run on every example of a split, and writes a report into its workdir.

    python -m experiments.evaluate --workdir=DIR [--split=test] [--eval.KEY=VALUE …]

Examples:
    python -m experiments.evaluate --workdir=runs/digits
    python -m experiments.evaluate --workdir=runs/resnet50 --eval.protocol=ten_crop --format=json
    python -m experiments.evaluate --workdir=runs/resnet50 --evals=all
    python -m experiments.evaluate --workdir=runs/a --workdir=runs/b

--eval.KEY sets a key of the evaluation; the keys are those of an entry of config.evals:
    --eval.protocol=ten_crop             a paper's test protocol: ten_crop, crops_144, dense(…), …
    --eval.data.name=imagenet_v2         another data set
    --eval.weights=raw                   the trained weights, not their moving average
Several workdirs form an ensemble, which averages the runs' probabilities. The report is
DIR/report/index.html; the predictions for each example are in the same folder.
"""

from absl import flags
from ml_collections import ConfigDict, config_flags

from vision.core import cli
from vision.core.config import default_eval
from vision.core.errors import UserError
from vision.core.text import json_text

WORKDIR = flags.DEFINE_multi_string(
    'workdir', None, 'Folder of the run; given several times, an ensemble.'
)
CHECKPOINT = flags.DEFINE_string('checkpoint', 'best', 'best, last or a step.')
cli.heading('What to evaluate')
SPLIT = flags.DEFINE_string(
    'split',
    None,
    "train, validation, test (default), or 'all': every split of a folder or list, together.",
)
EVALS = flags.DEFINE_list('evals', None, "Evaluations that the run's config names, or all.")
cli.accept_none()
EVAL = config_flags.DEFINE_config_dict(
    'eval',
    default_eval(),
    '--eval.KEY=VALUE sets a key of the evaluation; see above.',
    lock_config=False,
    accept_new_attributes=True,
)
SKIP_CORRUPT = flags.DEFINE_bool('skip_corrupt', False, 'Leave out images that cannot be read.')
cli.heading('Output')
REPORT = flags.DEFINE_bool('report', True, 'Write the report and the predictions.')
FORMAT = flags.DEFINE_enum('format', 'table', ['table', 'json'], 'How the figures are printed.')


def main(argv: list[str]) -> None:
    """Evaluates the runs, writes the report and prints the metrics."""
    cli.refuse_arguments(argv)
    cli.require(workdir=WORKDIR.value or None)
    from vision.core.progress import phase, progress_bar

    with phase('starting'):
        from vision.core.workdir import locate, read_config
        from vision.evaluation.evals import evaluate_runs, named_entries
        from vision.evaluation.report import write_report

    # Evaluate, then write the report, then print the metrics.
    config = read_config(locate(WORKDIR.value[0]))
    entries = named_entries(config, EVALS.value, _overrides())
    with progress_bar() as progress:
        runs, evaluations = evaluate_runs(
            WORKDIR.value, entries, CHECKPOINT.value, SKIP_CORRUPT.value, progress
        )
    page = None
    if REPORT.value:
        with phase('writing the report'):
            page = write_report(runs, evaluations)
    if FORMAT.value == 'json':
        named = {e.name: e.figures for e in evaluations}
        print(json_text(named if EVALS.value else evaluations[0].figures))
        return
    from vision.core.text import print_table
    from vision.task.metrics import metrics_table

    figures = {e.saved_as: e.figures for e in evaluations}
    title = f'{", ".join(WORKDIR.value)}, step {runs[0].step}'
    print_table(metrics_table(figures, runs[0].task.metrics, title))
    for name, f in figures.items():
        if f['corrupt']:
            print(f'{name}: {f["corrupt"]} images could not be read and were left out.')
    if page is not None:
        print(f'The report: {page}')


def _overrides() -> ConfigDict:
    """Returns the keys of --eval that were given, and --split."""
    # Values that equal the default count, too: they override those of a named evaluation.
    words = config_flags.get_override_values(flags.FLAGS['eval'])
    given = {k: EVAL.value[k] for k in dict.fromkeys(word.partition('.')[0] for word in words)}
    if SPLIT.value is not None:
        if 'split' in given:
            raise UserError('give either --split or --eval.split')
        given['split'] = SPLIT.value
    return ConfigDict(given)


if __name__ == '__main__':
    cli.run(main)
