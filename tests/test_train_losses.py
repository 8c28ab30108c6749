import math

import pytest
import torch

from neuropeft.errors import UserError
from neuropeft.train.losses import auc, balanced_accuracy, objective, outputs_of, scores

BINARY = {"name": "dementia", "kind": "binary", "classes": 2}
THREE = {"name": "groups", "kind": "multiclass", "classes": 3}
AGE = {"name": "age", "kind": "regression", "classes": 0}


def test_width_of_the_head() -> None:
    assert [outputs_of(task) for task in (BINARY, AGE, THREE)] == [1, 1, 3]


def test_binary_classes_weigh_the_same_and_zero_is_the_best_constant() -> None:
    targets = [0.0] * 9 + [1.0] * 3
    goal = objective(BINARY, targets, "cell")
    bias = torch.zeros(12, 1, requires_grad=True)
    goal.loss(bias, torch.tensor(targets)).backward()
    gradient = bias.grad
    assert gradient is not None
    assert float(gradient.sum()) == pytest.approx(0, abs=1e-7)
    assert float(gradient[:9].sum()) == pytest.approx(0.5 * 9 / 12)
    assert goal.offset == pytest.approx([math.log(3 / 9)]), "reported at the frequencies of the training set"


def test_multiclass_classes_weigh_the_same() -> None:
    targets = [0] * 6 + [1] * 2 + [2] * 1
    goal = objective(THREE, targets, "cell")
    assert goal.offset == pytest.approx([math.log(n / 9) for n in (6, 2, 1)]), "as for two classes"
    logits = torch.zeros(9, 3, requires_grad=True)
    loss = goal.loss(logits, torch.tensor(targets, dtype=torch.float32))
    assert loss.item() == pytest.approx(math.log(3))
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.sum(dim=0).tolist() == pytest.approx([0, 0, 0], abs=1e-6)


def test_regression_is_l1_on_the_standardised_target() -> None:
    goal = objective(AGE, [50.0, 60.0, 70.0, 80.0], "cell")
    sd = math.sqrt(125)
    assert goal.offset == (65,)
    assert goal.scale == pytest.approx(sd)
    outputs, targets = torch.tensor([[0.0], [1.0]]), torch.tensor([70.0, 65.0])
    assert float(goal.loss(outputs, targets)) == pytest.approx((5 / sd + 1) / 2)
    assert goal.metric(outputs, targets) == pytest.approx((5 + sd) / 2)


def test_scores_are_probabilities_or_values() -> None:
    assert scores(BINARY, torch.tensor([[0.0]]), (math.log(3),), 1).tolist() == [[pytest.approx(0.75)]]
    assert scores(AGE, torch.tensor([[-2.0]]), (65,), 10).tolist() == [[45]]
    three = scores(THREE, torch.tensor([[0.0, 0.0, math.log(2)]]), (0, 0, 0), 1)
    assert three[0].tolist() == pytest.approx([0.25, 0.25, 0.5])


def test_absent_class_and_constant_target_are_refused() -> None:
    with pytest.raises(UserError, match=r"a/b: no training scan has class 1 of task 'dementia'"):
        objective(BINARY, [0, 0, 0], "a/b")
    with pytest.raises(UserError, match=r"class 0 of task 'groups'"):
        objective(THREE, [1, 2], "a/b")
    with pytest.raises(UserError, match=r"a/b: all training targets are 60"):
        objective(AGE, [60.0, 60.0], "a/b")


def test_auc_counts_ties_half_and_needs_both_classes() -> None:
    outputs, targets = torch.tensor([0.1, 0.4, 0.4, 0.8]), torch.tensor([0.0, 0.0, 1.0, 1.0])
    assert auc(outputs, targets) == pytest.approx(3.5 / 4)
    assert auc(-outputs, targets) == pytest.approx(0.5 / 4)
    assert math.isnan(auc(outputs, torch.ones(4)))


def test_balanced_accuracy_averages_over_classes() -> None:
    outputs = torch.tensor([[2.0, 0, 0], [2, 0, 0], [2, 0, 0], [0, 2, 0], [0, 2, 0]])
    targets = torch.tensor([0.0, 0, 0, 1, 2])
    assert balanced_accuracy(outputs, targets) == pytest.approx(2 / 3)
