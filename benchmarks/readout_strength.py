"""How the regularisation of a fitted readout decides whether it can be corrected.

    python benchmarks/readout_strength.py runs/bloodcells/cbm_sequential-wbcatt-0

Refits the readout of a run for several strengths C of the logistic regression, each time on the training split under
the intervention of its recipe, and prints validation log-loss (what a choice is made by), test accuracy, and test
accuracy with every concept corrected. The backbone and the concepts stay as they are. The test columns are for looking
only: the run itself has chosen by validation.
"""

from __future__ import annotations

import argparse

import torch
from common import report

from vitrarium.eval.collect import collect
from vitrarium.eval.interventions import accuracy_fully_corrected
from vitrarium.runs import Run
from vitrarium.train.events.base import Moment
from vitrarium.train.events.fit_readout import FitReadout
from vitrarium.train.interventions import TrainingDo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run whose recipe has the event fit_readout")
    parser.add_argument("--json", help="write records to this file")
    given = parser.parse_args()
    run = Run(given.run)
    model, data = run.model, run.data(256)
    stage = next(s for s in run.config["recipe"].values() if "fit_readout" in s["events"])
    moment = Moment(model, run.source, data.loader, TrainingDo.of(stage["do"]), seed=0)
    records = []
    for strength in (0.01, 0.1, 1.0, 10.0, 100.0):
        event = FitReadout((strength,))
        event.run(moment)
        collected = collect(model, data.loader("test"))
        plain = float((collected.logits.argmax(1) == collected.labels).float().mean())
        weight = float(torch.linalg.vector_norm(model.readout.linear.weight.detach()))
        records.append(
            {
                "name": f"C={strength:g}",
                "ours": accuracy_fully_corrected(model, collected),
                "theirs": plain,
                "ratio": event.report[f"{strength:g}"]["log_loss"],
                "target": None,
                "difference": weight,
                "note": "ours: every concept corrected; theirs: none; ratio: validation log-loss; difference: |W|",
            }
        )
    report(records, given.json)


if __name__ == "__main__":
    main()
