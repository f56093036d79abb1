"""The images that quantities are largest on, against sorting everything at the end."""

import pytest
import torch

from vitrarium.models.strongest import NOTHING, Strongest


def found_by_sorting(values, count):
    """For each row the columns by falling value, equal ones by rising column; those of -inf are none."""
    rows = []
    for row in values.tolist():
        order = sorted((c for c in range(len(row)) if row[c] > NOTHING), key=lambda c, row=row: (-row[c], c))[:count]
        rows.append(order + [-1] * (count - len(order)))
    return torch.tensor(rows)


@pytest.mark.parametrize("count", [1, 3, 15])
@pytest.mark.parametrize("step", [1, 4, 40])
def test_the_best_are_those_of_all_whatever_the_batches(count, step):
    draw = torch.Generator().manual_seed(count)
    # Whole numbers, so that many are equal.
    values = torch.randint(0, 5, (6, 40), generator=draw).float()
    values[2] = NOTHING
    values[3, :38] = NOTHING
    labels = torch.randint(0, 3, (40,), generator=draw)
    best = Strongest(6, count, torch.device("cpu"), torch.float32, {"twice": torch.zeros(6, count, 2)})
    for columns in torch.randperm(40, generator=draw).split(step):
        entered = best.take(values[:, columns], columns, labels[columns])
        own = values[entered.which, columns[entered.row]]
        assert torch.equal(entered.which, entered.column)
        best.extra["twice"][entered.which, entered.slot] = torch.stack([own, 2 * own], 1)
    expected = found_by_sorting(values, count)
    assert torch.equal(best.index, expected)
    inside = expected >= 0
    assert torch.equal(best.value[inside], values.gather(1, expected.clamp_min(0))[inside])
    assert torch.equal(best.label, torch.where(inside, labels[expected.clamp_min(0)], -1))
    # What was written for an image when it entered has moved along with it.
    assert torch.equal(best.extra["twice"][inside], torch.stack([best.value, 2 * best.value], 2)[inside])


def test_some_quantities_alone():
    best = Strongest(4, 2, torch.device("cpu"), torch.float32)
    entered = best.take(
        torch.tensor([[1.0, 5.0], [7.0, 2.0]]), torch.tensor([8, 9]), torch.tensor([0, 1]), torch.tensor([3, 1])
    )
    assert best.index.tolist() == [[-1, -1], [8, 9], [-1, -1], [9, 8]]
    assert sorted(zip(entered.which.tolist(), entered.column.tolist(), strict=True)) == [(1, 1), (1, 1), (3, 0), (3, 0)]
