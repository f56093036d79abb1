"""The command line: ``vitrarium VERB ...``."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from vitrarium.configs.errors import Interrupted, UserError, closest
from vitrarium.configs.registry import PLUGIN_GROUP

EXAMPLES = """examples:
  vitrarium list presets
  vitrarium list zoo
  vitrarium data check flowers
  vitrarium train model=cbm data=flowers -o runs/cbm
  vitrarium predict runs/cbm image.jpg --do petal_colour=red
  vitrarium predict runs/cbm photos/ -o answers.csv
  vitrarium explain runs/cbm image.jpg -o why.html
  vitrarium prototypes runs/protopnet
  vitrarium edit runs/protopnet remove prototype_3
  vitrarium evaluate runs/cbm
  vitrarium compare runs/cbm runs/blackbox -o report/
  vitrarium experiment quick

exit status: 0 done, 2 something to mend in what was given, 3 something was found (data check, prototypes)
or could not be read (predict), 1 a mistake of ours, 130 interrupted (state saved)"""


class Parser(argparse.ArgumentParser):
    """An argument parser that names the closest verb or option."""

    def error(self, message: str) -> NoReturn:
        """One line, then exit status 2."""
        if "invalid choice" in message and self._subparsers is not None:
            given = message.split("'")[1]
            choice = self._subparsers._group_actions[0]
            message = f"unknown {str(choice.metavar).lower()} '{given}'; {closest(given, choice.choices or ())}"
        raise UserError(message, f"see {self.prog} --help")


def _train(p: argparse.ArgumentParser) -> None:
    _composed(p)
    p.add_argument("-o", "--out", help="run folder (default runs/<preset>-<data>-<seed>)")
    p.add_argument(
        "--resume", action="store_true", help="go on with the run in the folder; a finished one is left as it is"
    )
    p.add_argument("--print-config", action="store_true", help="print the composed configuration and stop")
    p.add_argument("--evaluate", action="store_true", help="measure the run on the test split when it is trained")


def _composed(p: argparse.ArgumentParser) -> None:
    p.add_argument("overrides", nargs="*", metavar="key=value", help="model=cbm, data=flowers, train.epochs=5, ...")
    p.add_argument("--config", help="a YAML file with any of the keys")
    p.add_argument("--configs", action="append", default=[], metavar="DIR", help="a folder with configuration groups")


def _predict(p: argparse.ArgumentParser) -> None:
    p.add_argument("run", help="run or model folder, or an animal such as zoo/cbm-flowers")
    p.add_argument(
        "images", nargs="+", metavar="PATH", help="image files and folders of them, or - to read paths from stdin"
    )
    _do(p)
    p.add_argument("-o", "--out", help="write a CSV file, one line per image (with --json: JSON lines)")
    p.add_argument("--json", action="store_true", help="JSON, one line per image")
    p.add_argument(
        "--columns",
        help="label, probability, confidence, abstained, probabilities, units, contributions; separated by commas",
    )
    p.add_argument("--batch-size", type=int, default=32, help="images that go through the model together (default 32)")
    p.add_argument("--workers", type=int, help="threads that decode images (default: one for each core)")
    p.add_argument("--strict", action="store_true", help="stop at the first image that cannot be read")
    p.add_argument("--resume", action="store_true", help="go on with a file that was stopped")


def _do(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--do", action="append", default=[], metavar="name=value",
        help="correct a unit by name; repeatable: granules=yes, prototype_3=silent, prototype_3=score:0.8, "
        "prototype_3=ban:0.1,0.2,0.5,0.6 (left, top, right, bottom in fractions of the image; everywhere=ban:... "
        "is for all units)",
    )  # fmt: skip


def _explain(p: argparse.ArgumentParser) -> None:
    p.add_argument("run", help="run or model folder, or an animal such as zoo/cbm-flowers")
    p.add_argument("image", help="image file")
    p.add_argument("-o", "--out", default="why.html", help="PNG, HTML or JSON by its ending (default why.html)")
    p.add_argument("--against", help="the class to explain against (default: the runner-up)")
    _do(p)


def _intervene(p: argparse.ArgumentParser) -> None:
    p.add_argument("run", help="run folder")
    p.add_argument(
        "--policy", action="append", help="random, uncertainty; repeatable (default: those that the units allow)"
    )
    p.add_argument("--trials", type=int, default=10, help="random orders (default 10)")
    p.add_argument("--split", default="test", choices=["test", "val"])
    _root(p)
    p.add_argument("-o", "--out", help="folder for curves.csv and curves.png (default RUN/interventions)")


def _evaluate(p: argparse.ArgumentParser) -> None:
    p.add_argument("runs", nargs="+", help="run folders")
    p.add_argument("--split", default="test", choices=["test", "val"])
    _root(p)
    p.add_argument(
        "--abstain-risk", type=float, metavar="R", help="first set anew when the model does not answer: largest error R"
    )
    p.add_argument("--abstain-coverage", type=float, metavar="C", help="the same by the least share C that is answered")
    p.add_argument(
        "--abstain-confidence", type=float, metavar="L", help="with --abstain-risk: keep to it with confidence L (0.95)"
    )


def _root(p: argparse.ArgumentParser) -> None:
    p.add_argument("--root", metavar="PATH", help="where the data lie now, if they were moved since training")


def _compare(p: argparse.ArgumentParser) -> None:
    p.add_argument("runs", nargs="+", help="evaluated run folders")
    p.add_argument("-o", "--out", default="report", help="folder of the report (default report/)")
    p.add_argument("--examples", type=int, default=4, help="test images explained side by side (default 4)")
    p.add_argument("--title", help="heading of the report")


def _experiment(p: argparse.ArgumentParser) -> None:
    p.add_argument("name", help="vitrarium list experiments, or a YAML file")
    p.add_argument(
        "overrides", nargs="*", metavar="key=value", help="for all runs; sweep.loss.concepts=.1,1,10; seeds=[0,1]"
    )
    p.add_argument("-o", "--out", help="folder (default runs/<name>)")
    p.add_argument("--configs", action="append", default=[], metavar="DIR", help="a folder with configuration groups")


def _data(p: argparse.ArgumentParser) -> None:
    actions = p.add_subparsers(dest="action", metavar="ACTION", parser_class=Parser, required=True)
    check = actions.add_parser("check", help=DATA_CHECK, description=DATA_CHECK)
    show = actions.add_parser("show", help=DATA_SHOW, description=DATA_SHOW)
    example = actions.add_parser("example", help=DATA_EXAMPLE, description=DATA_EXAMPLE)
    for action in (check, show, example):
        action.add_argument("path", metavar="PATH", help="a folder, or the name of a data set such as flowers")
        action.add_argument("overrides", nargs="*", metavar="key=value", help="options of the data set: size=32, ...")
    check.add_argument("--fast", action="store_true", help="do not decode the images")
    check.add_argument("--json", action="store_true", help="print everything as JSON")
    show.add_argument("-o", "--out", default="sheet.png", help="picture file (default sheet.png)")
    show.add_argument("--split", default="train", choices=["train", "val", "test"])
    show.add_argument("--count", type=int, default=24, help="examples, shared out among the classes (default 24)")
    show.add_argument("--class", dest="only", metavar="NAME", help="examples of this class only")
    show.add_argument("--seed", type=int, default=0, help="of the choice (default 0)")
    example.add_argument("-o", "--out", default="example.png", help="picture file (default example.png)")
    example.add_argument("--index", type=int, default=0, help="position in the split, from 0 (default 0)")
    example.add_argument("--split", default="test", choices=["train", "val", "test"])


DATA_CHECK = "what a data set holds and what is wrong with it; exit status 3 when something is"
DATA_SHOW = "draw a sheet of examples with labels, concepts, maps, parts and keypoints"
DATA_EXAMPLE = "write one picture of a data set to a file, to try a model on"


def _export(p: argparse.ArgumentParser) -> None:
    p.add_argument("run", help="run or model folder, or an animal such as zoo/cbm-flowers")
    p.add_argument("--format", default="onnx", help="onnx or torch (default onnx)")
    p.add_argument("-o", "--out", metavar="FILE_OR_FOLDER", help="where to (default RUN/export)")
    p.add_argument("--no-fold", action="store_true", help="keep batch norms and standardisation as they are")
    p.add_argument("--force", action="store_true", help="replace a file that is there")


def _cache(p: argparse.ArgumentParser) -> None:
    where = "the cache (default $VITRARIUM_CACHE or ~/.cache/vitrarium)"
    p.add_argument("--folder", help=where)
    actions = p.add_subparsers(dest="action", metavar="ACTION", parser_class=Parser)
    clear = actions.add_parser("clear", help=CACHE_CLEAR, description=CACHE_CLEAR)
    clear.add_argument("pattern", nargs="?", default="*", help="shell pattern of names (default: all)")
    clear.add_argument(
        "--older", type=float, default=0.0, metavar="DAYS", help="only those that were not used for so many days"
    )
    # Not given here, it is what was given in front.
    clear.add_argument("--folder", default=argparse.SUPPRESS, help=where)


CACHE_CLEAR = "remove what is kept; it is made again when it is needed"


def _edit(p: argparse.ArgumentParser) -> None:
    p.add_argument("run", help="run folder")
    p.add_argument("action", nargs="?", help="remove, merge, forbid, require, re-home, name, undo, replay or log")
    p.add_argument(
        "units", nargs="*", metavar="UNIT", help=f"names of units; for replay the run with the journal; {EDIT_OPTIONS}"
    )
    p.set_defaults(overrides=[])
    p.add_argument(
        "--name", action="append", default=[], metavar="UNIT=NAME",
        help='name a unit that has no name from the data, on any evidence; repeatable: --name axis_40="dark rim"',
    )  # fmt: skip
    p.add_argument("--no-refit", action="store_true", help="leave the weights of the readout as they are")
    _root(p)


EDIT_OPTIONS = (
    "label=CLASS (forbid, require), least=1 (require), into=UNIT (merge), image=N or rank=N (re-home), to=NAME (name)"
)


def _prototypes(p: argparse.ArgumentParser) -> None:
    p.add_argument("run", help="run folder")
    p.add_argument("-o", "--out", help="folder for gallery.html, gallery.png and health.csv (default RUN/prototypes)")
    p.add_argument("--json", action="store_true", help="print the findings as JSON")
    _root(p)


def _units(p: argparse.ArgumentParser) -> None:
    p.add_argument("run", help="run folder")
    p.add_argument("-o", "--out", help="folder for gallery.html, gallery.png and images.csv (default RUN/units)")
    p.add_argument("--top", type=int, default=8, help="images for each unit (default 8)")
    p.add_argument("--split", default="train", choices=["train", "val"], help="whose images (default train)")
    p.add_argument("--only", nargs="+", default=[], metavar="NAME", help="names of units, or shell patterns of them")
    p.add_argument("--limit", type=int, default=64, help="units at most, those with the largest weights (default 64)")
    p.add_argument("--where", default="contour", choices=["contour", "heat", "box"], help="how a place is shown")
    _root(p)


def _axes(p: argparse.ArgumentParser) -> None:
    p.add_argument("runs", nargs="+", metavar="RUN", help="run folder; several with --trajectory")
    p.add_argument("--against", metavar="RUN", help="the run whose layer gives best filter and linear probe")
    p.add_argument("--cut", help="that layer (default: where the axes are, else the end of the backbone)")
    p.add_argument("--reduction", help="of its maps: mean, max, positive_mean, pool_max (default: that of the axes)")
    p.add_argument("--split", default="test", choices=["test", "val"])
    p.add_argument("--images", type=int, default=8, help="top images of each axis, or paths drawn (default 8)")
    p.add_argument("--resamples", type=int, default=1000, help="of the intervals (default 1000)")
    p.add_argument("--trajectory", metavar="A,B", help="follow images between two concepts over the layers of the runs")
    p.add_argument("-o", "--out", help="folder for axes.html, tables and pictures (default RUN/axes)")
    _root(p)


def _list(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "kind", nargs="?", help="presets, experiments, backbones, data, evidence, readouts, terms, events, ..."
    )
    p.add_argument("pattern", nargs="?", default="*", help="shell pattern")
    p.add_argument("--show", metavar="NAME", help="cuts, channels, strides, maps and parameters of a backbone")
    p.add_argument("--size", type=int, help="with --show: height and width of the images")
    p.add_argument("--weights", metavar="SOURCE", help="with --show: a file of weights, and what of it matches")


VERBS = {
    "train": (_train, "train a model"),
    "predict": (_predict, "classify images, with corrections by name"),
    "explain": (_explain, "say why one image got its class: PNG, HTML or JSON"),
    "intervene": (_intervene, "accuracy as more and more concepts are corrected"),
    "evaluate": (_evaluate, "measure runs on the test split"),
    "compare": (_compare, "put runs on the same axes: tables, plots, one HTML page"),
    "edit": (_edit, "change units of a trained model: recorded, measured, undoable"),
    "experiment": (_experiment, "train presets x seeds x sweeps and compare them"),
    "prototypes": (_prototypes, "gallery and health report of prototypes; exit status 3 when something is found"),
    "units": (_units, "gallery of any units: their most activating images, where, and for which classes"),
    "axes": (_axes, "how well units stand for annotated concepts, beside best filter and linear probe"),
    "data": (_data, "check a data set before training on it; show examples"),
    "export": (_export, "write a model as one file for onnxruntime or torch.export"),
    "cache": (_cache, "show what is kept of decoded images and features, or remove it"),
    "list": (_list, "what there is, by name"),
}


def build_parser() -> argparse.ArgumentParser:
    """All verbs; nothing heavy is imported."""
    from vitrarium import __version__

    parser = Parser(
        prog="vitrarium",
        description="A zoo of image classifiers that are interpretable by design.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"vitrarium {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", parser_class=Parser)
    for name, (add, summary) in VERBS.items():
        add(verbs.add_parser(name, help=summary, description=summary))
    return parser


def _read(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; ``key=value`` may stand anywhere, also behind options, where argparse alone gives up."""
    given, rest = parser.parse_known_args(arguments)
    strange = [word for word in rest if word.startswith("-") or "=" not in word or not hasattr(given, "overrides")]
    if strange:
        parser.error(f"unrecognized arguments: {' '.join(strange)}")
    if rest:
        given.overrides = [*given.overrides, *rest]
    return given


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb.

    Returns:
        0; 2 for something the user can mend (one message on standard error); 130 when interrupted. Anything else is a
        mistake of ours and leaves with its traceback and status 1.
    """
    try:
        parser = build_parser()
        given = _read(parser, arguments)
        if given.verb is None:
            parser.print_help()
            return 0
        from vitrarium import verbs

        if isinstance(sys.stdout, io.TextIOWrapper):
            # Names of files are bytes; those that are no text go out as they came in.
            sys.stdout.reconfigure(errors="surrogateescape")
        with verbs.telling(PLUGIN_GROUP, "vitrarium: %(message)s"):
            return int(getattr(verbs, given.verb if given.verb != "list" else "list_names")(given) or 0)
    except UserError as error:
        sys.stderr.write(f"vitrarium: {error}\n")
        return 2
    except (Interrupted, KeyboardInterrupt) as error:
        said = str(error) or "stopped"
        sys.stderr.write(f"vitrarium: {said}; go on with --resume\n")
        return 130
    except BrokenPipeError:
        # The reader of our output has gone (a pager was closed): that is no mistake.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
