import math

import pytest
import torch

from neuropeft.errors import UserError
from neuropeft.train.losses import auc, balanced_accuracy, objective, outputs_of, scores

BINARY = {"name": "dementia", "kind": "binary", "classes": 2}
THREE = {"name": "groups", "kind": "multiclass", "classes": 3}
AGE = {"name": "age", "kind": "regression", "classes": 0}


def alike(targets):
    """Weights of scans that count alike."""
    return [1.0] * len(targets)


def test_width_of_the_head() -> None:
    assert [outputs_of(task) for task in (BINARY, AGE, THREE)] == [1, 1, 3]


def test_binary_classes_weigh_the_same_and_zero_is_the_best_constant() -> None:
    targets = [0.0] * 9 + [1.0] * 3
    goal = objective(BINARY, targets, alike(targets), "cell")
    bias = torch.zeros(12, 1, requires_grad=True)
    goal.loss(bias, torch.tensor(targets)).mean().backward()
    gradient = bias.grad
    assert gradient is not None
    assert float(gradient.sum()) == pytest.approx(0, abs=1e-7)
    assert float(gradient[:9].sum()) == pytest.approx(0.5 * 9 / 12)
    assert goal.offset == pytest.approx([math.log(3 / 9)]), "reported at the frequencies of the training set"


def test_multiclass_classes_weigh_the_same() -> None:
    targets = [0] * 6 + [1] * 2 + [2] * 1
    goal = objective(THREE, targets, alike(targets), "cell")
    assert goal.offset == pytest.approx([math.log(n / 9) for n in (6, 2, 1)]), "as for two classes"
    logits = torch.zeros(9, 3, requires_grad=True)
    loss = goal.loss(logits, torch.tensor(targets, dtype=torch.float32)).mean()
    assert loss.item() == pytest.approx(math.log(3))
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.sum(dim=0).tolist() == pytest.approx([0, 0, 0], abs=1e-6)


def test_regression_is_l1_on_the_standardised_target() -> None:
    targets = [50.0, 60.0, 71.0, 80.0, 90.0]
    goal = objective(AGE, targets, alike(targets), "cell")
    sd = math.sqrt(sum((target - 70.2) ** 2 for target in targets) / 5)
    assert goal.offset == (71,), "the median, which is the best constant of this loss"
    assert goal.scale == pytest.approx(sd)
    outputs, targets = torch.tensor([[0.0], [1.0]]), torch.tensor([76.0, 71.0])
    assert goal.loss(outputs, targets).tolist() == pytest.approx([5 / sd, 1])
    assert goal.metric(outputs, targets) == pytest.approx((5 + sd) / 2)


def test_no_constant_beats_the_offset_of_a_skewed_target() -> None:
    targets = [20.0, 21.0, 22.0, 30.0, 90.0]
    weights = [2.0, 0.5, 0.5, 1.0, 1.0]
    goal = objective(AGE, targets, weights, "cell")
    losses = {
        constant: sum(w * abs(y - constant) for w, y in zip(weights, targets, strict=True))
        for constant in range(20, 91)
    }
    assert losses[goal.offset[0]] == min(losses.values())


@pytest.mark.parametrize("task", [BINARY, THREE, AGE], ids=lambda task: task["kind"])
def test_a_scans_loss_does_not_depend_on_its_neighbours(task: dict) -> None:
    targets = [0.0, 1.0, 2.0, 2.0, 1.0, 0.0] if task is THREE else [0.0, 1.0, 0.0, 1.0, 1.0, 1.0]
    goal = objective(task, targets, alike(targets), "cell")
    outputs = torch.randn(6, outputs_of(task), generator=torch.Generator().manual_seed(0))
    whole = goal.loss(outputs, torch.tensor(targets))
    assert whole.shape == (6,)
    alone = [goal.loss(outputs[i : i + 1], torch.tensor(targets[i : i + 1])) for i in range(6)]
    assert whole.tolist() == pytest.approx(torch.cat(alone).tolist())


def test_weights_count_as_if_scans_were_there_so_often() -> None:
    for task, targets in ((BINARY, [0.0, 1.0, 1.0]), (THREE, [0.0, 1, 2]), (AGE, [50.0, 60.0, 75.0])):
        weighted = objective(task, targets, [3.0, 1.0, 1.0], "cell")
        repeated = objective(task, [targets[0]] * 2 + targets, alike([0] * 5), "cell")
        assert weighted.offset == pytest.approx(repeated.offset)
        assert weighted.scale == pytest.approx(repeated.scale)
        outputs, values = torch.ones(3, outputs_of(task)), torch.tensor(targets)
        assert weighted.loss(outputs, values).tolist() == pytest.approx(
            repeated.loss(outputs, values).tolist()
        )


def test_scores_are_probabilities_or_values() -> None:
    assert scores(BINARY, torch.tensor([[0.0]]), (math.log(3),), 1).tolist() == [[pytest.approx(0.75)]]
    assert scores(AGE, torch.tensor([[-2.0]]), (65,), 10).tolist() == [[45]]
    three = scores(THREE, torch.tensor([[0.0, 0.0, math.log(2)]]), (0, 0, 0), 1)
    assert three[0].tolist() == pytest.approx([0.25, 0.25, 0.5])


def test_absent_class_and_constant_target_are_refused() -> None:
    with pytest.raises(UserError, match=r"a/b: no training scan has class 1 of task 'dementia'"):
        objective(BINARY, [0, 0, 0], alike([0, 0, 0]), "a/b")
    with pytest.raises(UserError, match=r"class 0 of task 'groups'"):
        objective(THREE, [1, 2], alike([1, 2]), "a/b")
    with pytest.raises(UserError, match=r"a/b: all training targets are 60"):
        objective(AGE, [60.0, 60.0], alike([60.0, 60.0]), "a/b")


def test_auc_counts_ties_half_and_needs_both_classes() -> None:
    outputs, targets = torch.tensor([0.1, 0.4, 0.4, 0.8]), torch.tensor([0.0, 0.0, 1.0, 1.0])
    assert auc(outputs, targets) == pytest.approx(3.5 / 4)
    assert auc(-outputs, targets) == pytest.approx(0.5 / 4)
    assert math.isnan(auc(outputs, torch.ones(4)))


def test_balanced_accuracy_averages_over_classes() -> None:
    outputs = torch.tensor([[2.0, 0, 0], [2, 0, 0], [2, 0, 0], [0, 2, 0], [0, 2, 0]])
    targets = torch.tensor([0.0, 0, 0, 1, 2])
    assert balanced_accuracy(outputs, targets) == pytest.approx(2 / 3)
