"""Intervention curves by rank masks against loops over images and attributes.

    python benchmarks/interventions.py
    python benchmarks/interventions.py --rounds 9 --json interventions.json

One random order, 1,000 images, 112 concepts in 28 groups, 200 classes, all 29 budgets; from cached concept
probabilities, on one thread. The loops are the usual ones, written down here from the formula: for every budget and
every image the groups are shuffled, the attributes of the first k are replaced one by one by
absent + truth (present - absent), and a linear readout gives the class: "per image" asks it image by image, "per
budget" hands it all images of a budget at once. Both sides get the same orders, and the largest difference between the
two curves is reported.

A second case has the size of a blood cell test set: 3,099 images, 11 attributes of 31 values, 12 budgets, 10 orders;
there the loop runs one order and is counted ten times.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from common import interleave, median_spread, peak_memory_mb, report
from torch import Tensor

from vitrarium.data.concepts import ConceptSet
from vitrarium.eval.collect import Collected
from vitrarium.eval.interventions import Context, Policy, intervention_curve
from vitrarium.models import TransparentClassifier, build
from vitrarium.models.types import Evidence

TARGET = 50.0
BLOOD_CELLS = (3, 3, 6, 2, 2, 2, 3, 3, 3, 2, 2)


@dataclass
class Case:
    """Random predictions and truth, and a classifier that is right about the truth.

    Attributes:
        model: a concept bottleneck with a linear readout.
        collected: its cached answers to N images.
        curves: what each contestant found, by name.
    """

    model: TransparentClassifier
    collected: Collected
    curves: dict[str, list[float]] = field(default_factory=dict)


class Replay(Policy):
    """Asks in the orders that the loop drew."""

    def __init__(self, order: Tensor) -> None:
        self.order = order

    def score(self, context: Context) -> Tensor:
        """The sooner, the larger."""
        ranks = torch.arange(self.order.shape[1], 0, -1.0, dtype=torch.float64)
        return torch.zeros(self.order.shape, dtype=torch.float64).scatter(1, self.order, ranks.expand(self.order.shape))

    def rank(self, context: Context) -> Tensor:
        """The orders as they are."""
        return self.order


def make_case(images: int, sizes: tuple[int, ...], classes: int) -> Case:
    concepts = ConceptSet.categorical({f"a{g}": [f"v{v}" for v in range(size)] for g, size in enumerate(sizes)})
    names = [f"class {c}" for c in range(classes)]
    model = build({"backbone": "convnet", "evidence": "concepts", "readout": "linear"}, names, concepts, seed=0)
    generator = torch.Generator().manual_seed(0)
    truth = torch.zeros(images, len(concepts))
    for group in concepts.groups:
        truth[torch.arange(images), torch.randint(*_ends(group.members), (images,), generator=generator)] = 1
    with torch.no_grad():
        scores = 2 * truth + torch.randn(truth.shape, generator=generator)
        probabilities = model.evidence.softmax(scores)
        labels = model.readout.linear(truth).argmax(1)
        logits = model.readout.linear(probabilities)
    evidence = Evidence(probabilities, probabilities, scores=scores, probabilities=probabilities)
    return Case(model.eval(), Collected(evidence, logits, labels, truth, torch.arange(images)))


def _ends(members: tuple[int, ...]) -> tuple[int, int]:
    return members[0], members[-1] + 1


def shuffled(groups: int, image: int, draw: random.Random) -> list[int]:
    """The order in which an image is asked: seeded by the image, so it is the same at every budget."""
    order = list(range(groups))
    draw.seed(image)
    draw.shuffle(order)
    return order


@torch.no_grad()
def loop(case: Case, head_per_image: bool) -> list[float]:
    """The curve, image by image and attribute by attribute."""
    units, draw = case.model.evidence.units, random.Random()
    predicted, truth = case.collected.evidence.activations.tolist(), case.collected.concepts.tolist()
    labels, members = case.collected.labels.tolist(), [group.members for group in units.groups]
    absent, present = units.absent.tolist(), units.present.tolist()
    readout, curve = case.model.readout.linear, []
    for budget in range(len(members) + 1):
        rows, right = [], 0
        for image, label in enumerate(labels):
            order = shuffled(len(members), image, draw)
            row = list(predicted[image])
            for group in order[:budget]:
                for unit in members[group]:
                    row[unit] = absent[unit] + truth[image][unit] * (present[unit] - absent[unit])
            if head_per_image:
                right += int(readout(torch.tensor(row)).argmax()) == label
            else:
                rows.append(row)
        if not head_per_image:
            right = int((readout(torch.tensor(rows)).argmax(1) == case.collected.labels).sum())
        curve.append(right / len(labels))
    return curve


def contestants(case: Case, loops: dict[str, bool], orders: int) -> dict[str, Callable[[], None]]:
    """What is timed; each leaves its curve in ``case.curves``."""
    groups, draw = len(case.model.evidence.units.groups), random.Random()
    same = torch.tensor([shuffled(groups, image, draw) for image in range(len(case.collected))])

    def keep(name: str, run: Callable[[], list[float]]) -> Callable[[], None]:
        return lambda: case.curves.update({name: run()})

    def replay() -> list[float]:
        curves = [intervention_curve(case.model, case.collected, Replay(same), bootstrap=0) for _ in range(orders)]
        return curves[0].accuracy.tolist()

    def whole() -> list[float]:
        return intervention_curve(case.model, case.collected, "random", trials=orders).accuracy.tolist()

    timed = {name: keep(name, lambda each=each: loop(case, each)) for name, each in loops.items()}
    return {"ours": keep("ours", replay), "ours, orders drawn and intervals": keep("whole", whole), **timed}


def race(
    name: str, case: Case, loops: dict[str, bool], orders: int, rounds: int, targets: dict[str, float]
) -> list[dict]:
    times = interleave(contestants(case, loops, orders), rounds, 1)
    whole = median_spread(times["ours, orders drawn and intervals"])[0]
    ours, spread = median_spread(times["ours"])
    records = []
    for other in loops:
        theirs = median_spread(times[other])[0] * orders
        difference = max(abs(a - b) for a, b in zip(case.curves["ours"], case.curves[other], strict=True))
        counted = "" if orders == 1 else f"; loop ran one order, counted {orders} times"
        records.append(
            {
                "name": f"{name}, loop with the readout {other}",
                "ours": ours,
                "theirs": theirs,
                "ratio": theirs / ours,
                "target": targets.get(other),
                "difference": difference,
                "note": f"seconds, 1 thread, our spread {spread:.4f}; {whole:.3f} with drawing orders and 1,000 "
                f"bootstrap resamples; peak memory {peak_memory_mb():.0f} MB{counted}",
            }
        )
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of the first case")
    parser.add_argument("--json", help="write records to this file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    birds = make_case(1000, (4,) * 28, 200)
    cells = make_case(3099, BLOOD_CELLS, 5)
    loops = {"per image": True, "per budget": False}
    records = race("1,000 images, 28 groups", birds, loops, 1, given.rounds, {"per image": TARGET})
    records += race("3,099 images, 11 groups, 10 orders", cells, {"per image": True}, 10, 2, {})
    report(records, given.json)


if __name__ == "__main__":
    main()
