"""The command line: ``vitrarium VERB ...``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from vitrarium.configs.errors import Interrupted, UserError, closest

EXAMPLES = """examples:
  vitrarium list presets
  vitrarium train model=cbm data=flowers -o runs/cbm
  vitrarium predict runs/cbm image.jpg --do petal_colour=red
  vitrarium explain runs/cbm image.jpg -o why.html
  vitrarium evaluate runs/cbm
  vitrarium compare runs/cbm runs/blackbox -o report/
  vitrarium experiment quick

exit status: 0 done, 2 something to mend in what was given, 1 a mistake of ours, 130 interrupted (state saved)"""


class Parser(argparse.ArgumentParser):
    """An argument parser that names the closest verb or option."""

    def error(self, message: str) -> NoReturn:
        """One line, then exit status 2."""
        if "invalid choice" in message and self._subparsers is not None:
            given = message.split("'")[1]
            message = f"unknown verb '{given}'; {closest(given, VERBS)}"
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
    p.add_argument("run", help="run or model folder")
    p.add_argument("images", nargs="+", help="image files")
    _do(p)
    p.add_argument("--json", action="store_true", help="print JSON, one line per image")


def _do(p: argparse.ArgumentParser) -> None:
    p.add_argument("--do", action="append", default=[], metavar="name=value", help="correct a unit by name; repeatable")


def _explain(p: argparse.ArgumentParser) -> None:
    p.add_argument("run", help="run or model folder")
    p.add_argument("image", help="image file")
    p.add_argument("-o", "--out", default="why.html", help="PNG, HTML or JSON by its ending (default why.html)")
    p.add_argument("--against", help="the class to explain against (default: the runner-up)")
    _do(p)


def _intervene(p: argparse.ArgumentParser) -> None:
    p.add_argument("run", help="run folder")
    p.add_argument("--policy", action="append", help="random, uncertainty; repeatable (default: both)")
    p.add_argument("--trials", type=int, default=10, help="random orders (default 10)")
    p.add_argument("--split", default="test", choices=["test", "val"])
    p.add_argument("-o", "--out", help="folder for curves.csv and curves.png (default RUN/interventions)")


def _evaluate(p: argparse.ArgumentParser) -> None:
    p.add_argument("runs", nargs="+", help="run folders")
    p.add_argument("--split", default="test", choices=["test", "val"])


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


def _list(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "kind", nargs="?", help="presets, experiments, backbones, data, evidence, readouts, terms, events, ..."
    )
    p.add_argument("pattern", nargs="?", default="*", help="shell pattern")
    p.add_argument("--show", metavar="NAME", help="cuts, channels and strides of a backbone")


VERBS = {
    "train": (_train, "train a model"),
    "predict": (_predict, "classify images, with corrections by name"),
    "explain": (_explain, "say why one image got its class: PNG, HTML or JSON"),
    "intervene": (_intervene, "accuracy as more and more concepts are corrected"),
    "evaluate": (_evaluate, "measure runs on the test split"),
    "compare": (_compare, "put runs on the same axes: tables, plots, one HTML page"),
    "experiment": (_experiment, "train presets x seeds x sweeps and compare them"),
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb.

    Returns:
        0; 2 for something the user can mend (one message on standard error); 130 when interrupted. Anything else is a
        mistake of ours and leaves with its traceback and status 1.
    """
    try:
        parser = build_parser()
        given = parser.parse_args(arguments)
        if given.verb is None:
            parser.print_help()
            return 0
        from vitrarium import verbs

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
