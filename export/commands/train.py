"""Train on a folder of labelled pictures and write a bundle, the one file that the station judges with.

    station-export train DIR

That is enough to begin with. DIR holds a folder for each kind of part (for example good, scratch, dent); the README
shows the other forms as small trees. What is done:

  1. The pictures are read. Files that cannot be used are listed.
  2. The task is picked by the labels: boxes make `detect`, several classes `classify`, good parts alone `anomaly`.
  3. Most pictures train (train). Some choose the threshold (validation). Some are kept for the figures (test) and are
     never looked at before.
  4. The network is trained within --minutes, turned into whole numbers (int8), and measured as it will be deployed.
     A few minutes come on top of --minutes for that.
  5. The folder OUT receives NAME.bundle, report.html (look at it), metrics.json and split.csv (which picture was used
     for what).

Ctrl-C stops at any time; the same command goes on where it stopped. Look at the data first: station-export data DIR.
On a GPU: KERAS_BACKEND=torch station-export train DIR; the bundle is then made by TensorFlow, on the CPU.
Then try the result: station inspect DIR/... --bundle OUT/NAME.bundle --out marked.

The first group of options is for everybody; those below it may be left alone.
"""

import argparse
import csv
import errno
import importlib
import io
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from export.backend import (
    TENSORFLOW,
    VARIABLE,
    end_with_parent,
    missing_for_conversion,
    refuse_other_backends,
    run_with_tensorflow,
    training_backend,
)
from export.chatter import without_chatter
from export.choice import TASKS, Task, choose
from export.cross_validation import cross_validate, fit_folds, fold_parts
from export.dataset import read_dataset
from export.evaluation import FIGURE_NAMES
from export.folder_lock import alone_in
from export.option_types import count_from, not_negative, positive, share, share_up_to
from export.process_arguments import PROCESS_TASKS, add_training_arguments
from export.progress import ProgressLine
from export.request import Request
from export.rule_options import add_rule_arguments, refuse_rule, rule_of
from export.samples import Dataset, DatasetError, worst_first
from export.summary import counted, describe, describe_problems
from export.synthesis.methods import AUTO, CHOICE, METHODS
from export.teller import Teller
from export.thresholds import Rule
from station.whole_file import write_whole

TRAINERS: dict[Task, str] = {
    "detect": "export.commands.train_detect",
    "classify": "export.commands.train_classify",
    "anomaly": "export.commands.train_anomaly",
}
"""Task → module with `train(request) -> Path`; imported only when it is needed, since TensorFlow takes seconds."""

FITTERS: dict[Task, str] = {
    "detect": "export.fit_detect",
    "classify": "export.fit_classify",
    "anomaly": "export.fit_anomaly",
}
"""Task → module with `fit(request)`, the part of it that runs on each Keras backend."""

TRAINED_ON = "--trained-on"
WITHOUT_BUNDLE = 3
"""Exit code: the training is over, and the bundle is still to be made."""

MINUTES = 30.0
"""Budget where none is given: a coffee's length, and enough for some thousand small pictures on two cores."""

NAMES: dict[Task, str] = {"detect": "detector", "classify": "classifier", "anomaly": "anomaly"}

SPLIT_SEED = 0
"""Of splits that are drawn: always the same, so that each training and each command means the same test pictures."""

SYNTHETIC_EACH = 60
"""Synthetic pictures of each class of defects."""

MOST_PRUNED = 0.7
"""About as many inner channels are left then as come out of a block."""

LOOKS = (1, 2, 4)

LEAST_FREE_BYTES = 300_000_000
"""Checkpoints, bundle and report together stay below this."""

PROBLEMS_SHOWN = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.usage = "%(prog)s DIR [--out DIR] [--minutes M] [option ...]"
    parser.add_argument("folder", type=Path, nargs="?", metavar="DIR", help="the folder of labelled pictures")
    parser.add_argument("--data", type=Path, metavar="DIR", help="the same, given as an option")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="receives the result (default: <name of DIR>-out in the current folder)"
    )
    parser.add_argument(
        "--minutes", type=positive, metavar="M", help=f"time to train, in minutes (default: {MINUTES:g})"
    )
    parser.add_argument(
        "--task", choices=[*TASKS, *PROCESS_TASKS], help="what to train (default: what the labels ask for)"
    )
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help="which network; classify knows lite0 (default, pretrained) and the small plain-a and plain-b",
    )
    parser.add_argument(
        "--size",
        type=count_from(1),
        metavar="PX",
        help="edge of the pictures as the network sees them, in pixels (default: from the pictures' sizes)",
    )
    parser.add_argument("--good", metavar="NAME", help="the class without defects (default: found by its name)")
    parser.add_argument(
        "--folds",
        type=count_from(2),
        metavar="K",
        help="besides, train K times and test each time on another part, to see how much luck is in the figures; "
        "--minutes is shared out to all K + 1 trainings",
    )
    parser.add_argument(
        "--synthesize",
        choices=[AUTO, *METHODS],
        help="besides, train on pictures of defects that are made from the training pictures, see station-export "
        "synthesize --help; auto: compare the quick ways by cross-validation and take the best, or none; "
        "gan: learns for two fifths of the time, 25 minutes at most",
    )
    parser.add_argument(
        "--synthesize-count",
        type=count_from(1),
        metavar="N",
        default=SYNTHETIC_EACH,
        help="pictures of each class of defects (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=count_from(0), metavar="N", default=0, help="of weights and augmentation (default: %(default)s)"
    )
    parser.add_argument(
        "--name", metavar="NAME", help="of the bundle and its file (default: detector, classifier or anomaly)"
    )
    parser.add_argument("--version", metavar="TEXT", default="1", help="of the bundle (default: %(default)s)")
    parser.add_argument(
        "--allow-regression",
        action="store_true",
        help="write the bundle even if its int8 model is worse than the float one by more than 0.005 of a headline "
        "figure or in more than 1 %% of the verdicts",
    )
    parser.add_argument(TRAINED_ON, metavar="BACKEND", help=argparse.SUPPRESS)
    add_rule_arguments(
        parser.add_argument_group(
            "options of the threshold",
            "Which mistakes weigh more, on the pictures that are held out to choose it. Without one of these,\n"
            "rejecting a good part costs as much as missing a bad one; where no bad one is held out, 1 in 100\n"
            "good ones may be rejected; and detect finds as many defects, and as few wrong ones, as it can.\n"
            "station-export threshold chooses anew without training.",
        )
    )
    classify = parser.add_argument_group(
        "options of the tasks classify and anomaly", "for those who know what they want"
    )
    classify.add_argument(
        "--epochs",
        type=count_from(0),
        metavar="N",
        help="length of each stage of fine-tuning, at most; 0: the head alone, on features as they are",
    )
    classify.add_argument("--optimizer", choices=["adam", "sgd"], help="how the weights are moved (default: adam)")
    classify.add_argument(
        "--rate", type=positive, metavar="RATE", help="largest learning rate, of all stages in proportion"
    )
    classify.add_argument("--weight-decay", type=not_negative, metavar="W", help="of the optimizer")
    classify.add_argument("--dropout", type=share, metavar="SHARE", help="share of features left out in training")
    classify.add_argument(
        "--patience", type=count_from(1), metavar="N", help="stop after N epochs without a better validation loss"
    )
    classify.add_argument(
        "--no-plain",
        action="store_true",
        default=None,
        help="do not train the two plain networks that the report of a classifier compares with",
    )
    classify.add_argument("--views", type=count_from(1), metavar="N", help="views of each picture that are kept")
    classify.add_argument(
        "--search",
        action="store_true",
        default=None,
        help="spend a third of the time on looking for a size, a rate and a dropout that suit the pictures",
    )
    classify.add_argument(
        "--looks",
        type=int,
        choices=LOOKS,
        help="how often the finished model looks at each picture, taking the mean: as it is (1), also turned by half "
        "(2), or mirrored both ways (4); more looks are steadier and take as many times as long (default: 4; of the "
        "plain networks 1)",
    )
    classify.add_argument(
        "--prune",
        type=share_up_to(MOST_PRUNED),
        metavar="SHARE",
        help="make the network smaller and faster: take this share of the channels inside of its blocks out, those "
        f"that are used least, and let the whole network teach the small one; {MOST_PRUNED:g} at most (default: none)",
    )
    detect = parser.add_argument_group("options of the task detect", "for those who know what they want")
    detect.add_argument("--steps", type=count_from(1), metavar="N", help="length of the run instead of --minutes")
    detect.add_argument("--batch", type=count_from(1), metavar="N", help="crops a step")
    detect.add_argument(
        "--crop",
        type=count_from(1),
        dest="size",
        metavar="PX",
        help="the same as --size: edge of a crop, multiple of 16",
    )
    detect.add_argument("--peak-rate", type=positive, metavar="RATE", help="largest learning rate")
    detect.add_argument(
        "--photometric", type=float, metavar="SHARE", help="crops that get another exposure, blur and noise; 0: none"
    )
    detect.add_argument("--precision", choices=["float32", "mixed_bfloat16"], help="number format of the training")
    detect.add_argument(
        "--reference",
        action="store_true",
        default=None,
        help="compare each picture with its reference, the same place without defects (a second input of the bundle)",
    )
    detect.add_argument("--colour", action="store_true", default=None, help="train on colour even if all is grey")
    detect.add_argument(
        "--widths",
        type=count_from(1),
        nargs=3,
        metavar=("STEM", "FINE", "COARSE"),
        help="channels at 1/4, 1/8 and 1/16 of the resolution",
    )
    detect.add_argument(
        "--calibration",
        type=Path,
        metavar="DIR",
        help="PNG pictures that set the quantization's ranges (default: a stratified draw from the training split)",
    )
    add_training_arguments(
        parser.add_argument_group("options of the tasks forecast and warn", "early warning: DIR holds sensor logs")
    )


NETWORK_OPTIONS = ("epochs", "optimizer", "rate", "weight_decay", "dropout", "patience", "views", "looks", "colour")

OPTIONS: dict[Task, tuple[str, ...]] = {
    "detect": (
        "steps",
        "batch",
        "peak_rate",
        "photometric",
        "precision",
        "reference",
        "colour",
        "widths",
        "calibration",
    ),
    "classify": (*NETWORK_OPTIONS, "no_plain", "search", "prune"),
    "anomaly": NETWORK_OPTIONS,
}
"""Options that only some tasks know."""


def run(arguments: argparse.Namespace) -> int:
    """Read, choose, train and package."""
    folder = _folder(arguments)
    out = arguments.out or Path(f"{folder.resolve().name}-out")
    rule = rule_of(arguments)
    if arguments.trained_on is not None:
        end_with_parent()
    if arguments.task in PROCESS_TASKS:
        if rule is not None:
            raise DatasetError(
                f"--max-false-reject, --max-miss, --costs: no options of the task {arguments.task}; see --claim-hours"
            )
        with without_chatter():
            refuse_other_backends(f"--task {arguments.task}")
        return int(importlib.import_module("export.process_commands").run_training(arguments, folder, out))
    _refuse_place(folder, out)
    dataset = read_dataset(
        folder, good_label=arguments.good, seed=SPLIT_SEED, progress=ProgressLine("looking at the pictures")
    )
    choice = choose(dataset, arguments.task)
    # The process that has trained has told this already.
    say: Callable[[str], None] = _say if arguments.trained_on is None else _say_nothing
    for line in describe(dataset):
        say(line)
    dataset = replace(dataset, problems=worst_first((*dataset.problems, *choice.problems)))
    if dataset.problems:
        say(f"\n{counted(len(dataset.problems), 'thing')} to know:")
        for line in describe_problems(dataset.problems, PROBLEMS_SHOWN):
            say(line)
    options = _options(arguments, choice.task)
    if arguments.synthesize:
        _refuse_synthesis(arguments, choice.task)
    if rule is not None:
        _refuse_rule(rule, dataset, choice.task, arguments.folds)
    minutes = None if "steps" in options else arguments.minutes or MINUTES
    say(f"\ntask: {choice.task}, since {choice.why}")
    say(f"time: {minutes:g} minutes (--minutes)" if minutes else f"length: {options['steps']} steps")
    say(f"result: {out}")
    if minutes and arguments.folds:
        minutes /= arguments.folds + 1
        say(f"folds: {arguments.folds} trainings and the final one, {minutes:.1f} minutes each")
    tell = Teller(60 * minutes if minutes else None)
    request = Request(
        dataset=dataset,
        out=out,
        name=arguments.name or NAMES[choice.task],
        version=arguments.version,
        minutes=minutes,
        seed=arguments.seed,
        size_px=arguments.size,
        preset=arguments.preset,
        options=options,
        allow_regression=arguments.allow_regression,
        rule=rule,
        synthesis=(arguments.synthesize, arguments.synthesize_count) if arguments.synthesize else None,
        compare=not options.pop("no_plain", False),
        say=tell,
    )
    try:
        # For its child, the process that has trained holds the folder.
        with alone_in(out) if arguments.trained_on is None else nullcontext() as lock:
            _settle_split(out, dataset)
            _refuse_others(arguments, out)
            return _carry_out(request, choice.task, arguments, lock)
    except KeyboardInterrupt:
        tell.close()
        sys.stderr.write("stopped; the same command goes on from here\n")
        raise
    except OSError as exc:
        if exc.errno == errno.ENOSPC:
            raise DatasetError(
                f"{out}: the disk is full; make room and give the same command again: it goes on"
            ) from exc
        raise


def _carry_out(request: Request, task: Task, arguments: argparse.Namespace, lock: int | None) -> int:
    """All of it on TensorFlow; on another backend the first part, and TensorFlow's in a process of its own."""
    with without_chatter():
        backend = training_backend()
    if backend == TENSORFLOW:
        bundle = _train(request, task, arguments.folds)
        _say(f"\ndone: {bundle}\nlook at: {request.out / 'report.html'}")
        _say(f"try it: station inspect PICTURES --bundle {shlex.quote(str(bundle))} --out marked")
        return 0
    _say(f"backend: {backend} trains; {_what_comes_after(request.out)}")
    with without_chatter():
        # Seeding, Keras imports TensorFlow wherever it is installed.
        importlib.import_module("keras").utils.set_random_seed(request.seed)
    _fit(request, task, arguments.folds)
    # What the folds share: the other process needs the memory.
    request.kept.clear()
    if missing_for_conversion():
        _say(f"\ntrained on {backend}; {_what_comes_after(request.out)}")
        return WITHOUT_BUNDLE
    request.say(f"trained on {backend}; going on with TensorFlow")
    return run_with_tensorflow(child_words(arguments.words, backend), _say, () if lock is None else (lock,))


def child_words(words: Sequence[str], backend: str) -> list[str]:
    """The command's words, as its child gets them.

    What the child is told stands before all that the user gave after `train`: behind a `--` it would be a folder.
    """
    after = words.index("train") + 1
    return [*words[:after], TRAINED_ON, backend, *words[after:]]


def _train(request: Request, task: Task, folds: int | None) -> Path:
    """All of it, with TensorFlow; returns the bundle."""
    train: Callable[[Request], Path] = _with_synthesis(request, _imported(TRAINERS, task).train)
    if folds:
        spreads = cross_validate(request, folds, SPLIT_SEED, train)
        _say(f"of {folds} folds, mean ± deviation on the pictures that were not trained on:")
        for name in (name for name in FIGURE_NAMES if name in spreads):
            _say(f"  {FIGURE_NAMES[name]}: {spreads[name]['mean']:.4f} ± {spreads[name]['deviation']:.4f}")
    return train(request)


def _fit(request: Request, task: Task, folds: int | None) -> None:
    """The first part of the same, on any backend."""
    fit: Callable[[Request], object] = _with_synthesis(request, _imported(FITTERS, task).fit)
    if folds:
        fit_folds(request, folds, SPLIT_SEED, fit)
    fit(request)


def _with_synthesis(request: Request, step: Callable[[Request], Any]) -> Callable[[Request], Any]:
    if request.synthesis is None:
        return step
    # Keras takes seconds, and only this needs it before the training begins.
    wrapped: Callable[[Request], Any] = importlib.import_module("export.synthesis.training").synthesizing(step)
    return wrapped


def _what_comes_after(out: Path) -> str:
    """What follows the training on another backend."""
    if missing := missing_for_conversion():
        return (
            f"the bundle needs {' and '.join(missing)}, not installed here; the same command makes it from {out}, "
            f"given where TensorFlow is installed, without {VARIABLE}"
        )
    return "TensorFlow then quantizes, measures and makes the bundle, in a process of its own"


def _refuse_synthesis(arguments: argparse.Namespace, task: Task) -> None:
    if task == "anomaly":
        raise DatasetError("--synthesize: the task anomaly learns from good parts alone, and draws defects of its own")
    if task == "detect" and arguments.synthesize == AUTO:
        raise DatasetError("--synthesize auto: compares ways for the task classify; name one for detect")


def _refuse_rule(rule: Rule, dataset: Dataset, task: Task, count: int | None) -> None:
    """Before the first training, for the last one and those of the folds."""
    refuse_rule(rule, dataset, task)
    if count:
        for fold, part in fold_parts(dataset, count, SPLIT_SEED):
            refuse_rule(rule, part, task, f"fold {fold.number + 1} of {count}: ")


def _refuse_others(arguments: argparse.Namespace, out: Path) -> None:
    if not arguments.synthesize and (out / CHOICE).is_file():
        raise DatasetError(
            f"{out}: holds a training with synthetic pictures; give the same --synthesize, or another folder for --out"
        )


def _folder(arguments: argparse.Namespace) -> Path:
    given = [path for path in (arguments.folder, arguments.data) if path is not None]
    if len(set(given)) != 1:
        raise DatasetError("give one folder of labelled pictures: station-export train DIR")
    return Path(given[0])


def _refuse_place(folder: Path, out: Path) -> None:
    if out.resolve().is_relative_to(folder.resolve()):
        raise DatasetError(
            f"--out {out}: lies inside of {folder}; the result would be read as data; choose another place"
        )
    if out.exists() and not out.is_dir():
        raise DatasetError(f"--out {out}: is not a folder")
    existing = next(place for place in (out.resolve(), *out.resolve().parents) if place.exists())
    free = shutil.disk_usage(existing).free
    if free < LEAST_FREE_BYTES:
        raise DatasetError(
            f"--out {out}: {free // 1_000_000} MB free there; {LEAST_FREE_BYTES // 1_000_000} MB are needed; make "
            "room, or choose another disk"
        )


def _options(arguments: argparse.Namespace, task: Task) -> dict[str, Any]:
    known = OPTIONS.get(task, ())
    given = {
        name: getattr(arguments, name)
        for names in OPTIONS.values()
        for name in names
        if getattr(arguments, name) is not None
    }
    unknown = [f"--{name.replace('_', '-')}" for name in given if name not in known]
    if unknown:
        raise DatasetError(f"{', '.join(unknown)}: no option of the task {task}")
    if "steps" in given and arguments.minutes is not None:
        raise DatasetError("--steps and --minutes: give one of them")
    return given


def _imported(modules: Mapping[Task, str], task: Task) -> Any:
    if task not in modules:
        raise DatasetError(f"--task {task}: can not be trained; {', '.join(modules)} can")
    with without_chatter():
        return importlib.import_module(modules[task])


def _settle_split(out: Path, dataset: Dataset) -> None:
    """Write down what each picture is used for, unless the folder holds a training that used them otherwise.

    Going on with that one would test on pictures that it was trained on.
    """
    path, table = out / "split.csv", _split_table(dataset)
    begun = out.is_dir() and any(other != path for other in out.iterdir())
    if begun and path.is_file() and path.read_bytes() != table:
        raise DatasetError(
            f"{out}: holds a training on other pictures or another split ({path.name} differs); give another folder "
            "for --out, or delete this one"
        )
    write_whole(path, table)


def _split_table(dataset: Dataset) -> bytes:
    """Which picture was used for what; copied into DIR it is obeyed from then on."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "split", "group"])
    writer.writerows(
        (sample.name, split, sample.group) for split, samples in dataset.splits.items() for sample in samples
    )
    return text.getvalue().encode()


def _say(line: str) -> None:
    print(line, flush=True)


def _say_nothing(_: str) -> None:
    pass
