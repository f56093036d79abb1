"""The convex refit against scikit-learn, scipy and the conditions of its optimum."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from vitrarium.configs.errors import UserError
from vitrarium.models.readouts import refit as refit_module
from vitrarium.models.readouts.refit import RefitProblem, curve, refit
from vitrarium.models.readouts.refit_choice import choose_refit, log_losses

N, E, C = 240, 6, 3
INF = float("inf")


def examples(seed=0, count=N, scales=None):
    """Vectors on very different scales, labels that follow them with noise."""
    draw = torch.Generator().manual_seed(seed)
    truth = torch.randn(E, C, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    plain = torch.randn(count, E, generator=draw, dtype=torch.float64)
    labels = (plain @ truth + torch.randn(count, C, generator=draw, dtype=torch.float64)).argmax(1)
    return plain * (torch.logspace(-1, 1, E, dtype=torch.float64) if scales is None else scales), labels


def problem(bias=True, penalised=False, lower=-INF, upper=INF):
    full = torch.full((C, E), float("nan"))
    return RefitProblem(
        torch.zeros(C, E),
        torch.zeros(C) if bias else None,
        penalised if isinstance(penalised, torch.Tensor) else torch.full((C, E), penalised),
        lower if isinstance(lower, torch.Tensor) else full.masked_fill(full.isnan(), lower),
        upper if isinstance(upper, torch.Tensor) else full.masked_fill(full.isnan(), upper),
    )


def gradient(fitted, vectors, labels, l2):
    """Of the smooth part, in plain numpy."""
    x, w = vectors.numpy(), fitted.weight.numpy()
    scores = x @ w.T + (0 if fitted.bias is None else fitted.bias.numpy())
    p = np.exp(scores - scores.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(len(p)), labels.numpy()] -= 1
    return p.T @ x / len(x) + l2 * w


def check_optimal(fitted, given, vectors, labels, l1, l2, tolerance=1e-6):
    """Karush-Kuhn-Tucker: at each weight the slope is balanced by the penalty, or pushes against a bound."""
    slope = gradient(fitted, vectors, labels, l2)
    for c in range(C):
        for e in range(E):
            w, g = float(fitted.weight[c, e]), slope[c, e]
            strength = l1 * float(given.penalised[c, e])
            low, high = float(given.lower[c, e]), float(given.upper[c, e])
            assert low <= w <= high
            # Slopes of the objective to the left and to the right of w.
            left, right = (g - strength, g + strength) if w == 0 else (g + np.sign(w) * strength,) * 2
            assert right >= -tolerance or w == high
            assert left <= tolerance or w == low


@pytest.mark.parametrize("strength", [0.1, 10.0])
def test_ridge_is_that_of_scikit_learn(strength):
    vectors, labels = examples()
    fitted = refit(vectors, labels, problem(), l2=1 / (strength * N), tolerance=1e-10)
    expected = LogisticRegression(C=strength, tol=1e-10, max_iter=10000).fit(vectors.numpy(), labels.numpy())
    assert fitted.converged
    np.testing.assert_allclose(fitted.weight.numpy(), expected.coef_, atol=1e-4)
    # Both leave a common constant of the biases free.
    np.testing.assert_allclose(np.diff(fitted.bias.numpy()), np.diff(expected.intercept_), atol=1e-4)


def test_lasso_reaches_the_objective_of_scipy():
    """W = P - M with P, M >= 0 makes the penalty linear: another solver of the same problem."""
    vectors, labels = examples(scales=torch.ones(E, dtype=torch.float64))
    l1 = 0.02

    def objective(flat):
        plus, minus = flat.reshape(2, C, E)
        scores = vectors.numpy() @ (plus - minus).T
        p = np.exp(scores - scores.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        loss = -np.log(p[np.arange(N), labels.numpy()]).mean() + l1 * flat.sum()
        p[np.arange(N), labels.numpy()] -= 1
        slope = p.T @ vectors.numpy() / N
        return loss, np.concatenate([(slope + l1).ravel(), (l1 - slope).ravel()])

    options = {"maxiter": 5000, "ftol": 1e-15, "gtol": 1e-10}
    found = minimize(objective, np.zeros(2 * C * E), jac=True, bounds=[(0, None)] * (2 * C * E), options=options)
    fitted = refit(vectors, labels, problem(bias=False, penalised=True), l1=l1, tolerance=1e-10)
    assert fitted.loss + l1 * float(fitted.weight.abs().sum()) == pytest.approx(found.fun, abs=1e-9)
    assert int((fitted.weight == 0).sum()) > 0


def test_a_masked_penalty_and_bounds_meet_the_conditions_of_the_optimum():
    vectors, labels = examples()
    own = torch.arange(E).remainder(C) == torch.arange(C)[:, None]
    lower, upper = torch.full((C, E), -INF), torch.full((C, E), INF)
    lower[0, 0], upper[1, 1], lower[2, :], upper[2, 3] = 0.7, -0.2, 0.0, 0.1
    given = problem(bias=False, penalised=~own, lower=lower, upper=upper)
    fitted = refit(vectors, labels, given, l1=0.03, l2=1e-3, tolerance=1e-9)
    assert fitted.converged
    check_optimal(fitted, given, vectors, labels, 0.03, 1e-3)
    assert float(fitted.weight[0, 0]) >= 0.7
    assert (fitted.weight[~own] == 0).any()
    assert (fitted.weight[own] != 0).all() or (fitted.weight[2] >= 0).all()


def test_only_where_it_is_asked_for_weights_are_driven_to_zero():
    vectors, labels = examples()
    own = torch.arange(E).remainder(C) == torch.arange(C)[:, None]
    fitted = refit(vectors, labels, problem(penalised=~own), l1=10.0, l2=1e-3)
    assert (fitted.weight[~own] == 0).all()
    assert (fitted.weight[own] != 0).all()


def test_entries_of_pruned_units_have_no_weight_even_if_a_bound_demands_one():
    vectors, labels = examples()
    vectors[:, 2] = 0
    lower = torch.full((C, E), -INF)
    lower[1, 2] = 3.0
    start = problem(lower=lower)
    start.weight[:, 2] = 5.0
    dead = torch.arange(E) == 2
    fitted = refit(vectors, labels, start.without(dead), l2=1e-3)
    assert (fitted.weight[:, 2] == 0).all()


def test_it_is_deterministic_and_starts_where_it_is_told():
    vectors, labels = examples()
    one, two = (refit(vectors, labels, problem(), l2=1e-2) for _ in range(2))
    assert torch.equal(one.weight, two.weight)
    again = refit(vectors, labels, RefitProblem(one.weight, one.bias, *vars_of(problem())), l2=1e-2)
    assert again.iterations <= 3
    torch.testing.assert_close(again.weight, one.weight, atol=1e-5, rtol=0)


def vars_of(given):
    return given.penalised, given.lower, given.upper


def test_single_precision_for_large_problems_agrees(monkeypatch):
    vectors, labels = examples()
    exact = refit(vectors, labels, problem(), l2=1e-2)
    monkeypatch.setattr(refit_module, "EXACT_UP_TO", 0)
    single = refit(vectors.float(), labels, problem(), l2=1e-2)
    assert single.weight.dtype == torch.float32
    torch.testing.assert_close(single.weight.double(), exact.weight, atol=2e-3, rtol=0)


def test_a_class_that_training_never_shows_is_not_chosen():
    vectors, labels = examples()
    fitted = refit(vectors[labels > 0], labels[labels > 0], problem(), l2=1e-3)
    assert torch.isfinite(fitted.weight).all()
    assert ((vectors @ fitted.weight.T + fitted.bias).argmax(1) != 0).all()


@pytest.mark.parametrize("size", [1e-9, 1e-3, 1.0, 30.0])
def test_the_curve_keeps_its_digits(size):
    draw = torch.Generator().manual_seed(0)
    scores = torch.randn(5, 4, generator=draw, dtype=torch.float64)
    change = size * torch.randn(5, 4, generator=draw, dtype=torch.float64)
    p = scores.softmax(1)
    expected = 0.0
    if size >= 1e-3:
        for row, d in zip(p, change, strict=True):
            expected += float(torch.log((row * d.exp()).sum()) - (row * d).sum()) / 5
    else:
        # Half the variance of the change, all that is left of the series.
        for row, d in zip(p, change, strict=True):
            weights, values = [Fraction(float(v)) for v in row], [Fraction(float(v)) for v in d]
            mean = sum(w * v for w, v in zip(weights, values, strict=True))
            expected += float(sum(w * (v - mean) ** 2 for w, v in zip(weights, values, strict=True))) / 10
    assert float(curve(p, change)) == pytest.approx(expected, rel=1e-6)


def test_strengths_are_chosen_on_validation():
    train, val = examples(0), examples(1, 120)
    given = problem(penalised=True)
    choice = choose_refit(train, val, given, l1=(1e-4, 0.01, 0.3), l2=(1e-4, 1e-2), errors=1.0)
    best = min((loss for (one, _), loss in choice.tried.items() if one == 0.0))
    assert choice.tried[0.0, choice.l2] == best
    alone = refit(*train, given, choice.l1, choice.l2)
    torch.testing.assert_close(choice.fitted.weight, alone.weight, atol=1e-4, rtol=0)
    # It is the strongest within one standard error of the best.
    losses = {one: log_losses(refit(*train, given, one, choice.l2), *val) for one in (0.0, 1e-4, 0.01, 0.3)}
    smallest = min(losses.values(), key=lambda loss: float(loss.mean()))
    limit = float(smallest.mean()) + float(smallest.std()) / 120**0.5
    assert choice.l1 == max(one for one, loss in losses.items() if float(loss.mean()) <= limit)
    assert 0 < choice.l1 < 0.3
    exact = choose_refit(train, val, given, l1=(1e-4, 0.01, 0.3), l2=(1e-4, 1e-2), errors=0.0)
    assert exact.val.log_loss == pytest.approx(min(exact.tried.values()))
    assert choice.zeros >= exact.zeros


def test_refusals():
    vectors, labels = examples()
    with pytest.raises(UserError, match="at least 1 and at most 0"):
        refit(vectors, labels, problem(lower=1.0, upper=0.0))
    with pytest.raises(UserError, match="no images"):
        refit(vectors[:0], labels[:0], problem())
    with pytest.raises(UserError, match="not finite"):
        refit(vectors.masked_fill(vectors > 1, float("nan")), labels, problem())
    with pytest.raises(UserError, match="0 or more"):
        refit(vectors, labels, problem(), l1=-1)
    with pytest.raises(UserError, match="validation"):
        choose_refit((vectors, labels), (vectors[:0], labels[:0]), problem())
    with pytest.raises(UserError, match="l2"):
        choose_refit((vectors, labels), (vectors, labels), problem(), l2=())
