"""What holds for every kind of task, and what each kind alone does."""

import json
import math

import numpy as np
import pytest
import torch

import tiny_cells
from neuropeft import layout
from neuropeft.cohorts.splits import make_split, read_split, write_split
from neuropeft.errors import UserError
from neuropeft.evaluate.bootstrap import bootstrap_draws
from neuropeft.evaluate.predictions import RunKey, read_predictions
from neuropeft.files import read_tsv, write_tsv
from neuropeft.subsets import fraction
from neuropeft.tasks import KINDS, of_spec, task_kind
from neuropeft.tasks.base import COLUMNS, Run
from neuropeft.tasks.linear import fit_linear
from neuropeft.tasks.metrics import auc
from neuropeft.train.predict import predict

NUMBER = 60
BINARY, THREE, VALUES = task_kind("binary", 2), task_kind("multiclass", 3), task_kind("regression", 0)
LABELS = task_kind("multilabel", 2)


def made(kind):
    """Return targets of some scans as tables hold them, and features [n, 5] from which they can be told."""
    features = np.random.default_rng(0).normal(size=(NUMBER, 5))
    if kind == "generation":
        return [f"text: {number} is well" for number in range(NUMBER)], features
    if kind in tiny_cells.DENSE:
        return [f"sub-{number:03d}_ses-1" for number in range(NUMBER)], features
    return [tiny_cells.TASKS[kind][1](a, b) for a, b in features[:, :2]], features


@pytest.fixture(params=KINDS)
def name(request):
    return request.param


# What holds of kinds that linear models can predict, from features of whole scans.
linear = pytest.mark.parametrize("name", [name for name in KINDS if name not in tiny_cells.DENSE])


@pytest.fixture
def kind(name):
    return of_spec(tiny_cells.task(name))


@pytest.fixture
def example(name, kind):
    """Targets of a kind, the same as arrays, and their features."""
    targets, features = made(name)
    return targets, kind.array(targets), features


def alike(targets):
    """Weights of scans that count alike."""
    return [1.0] * len(targets)


def tensor(targets):
    return torch.from_numpy(np.asarray(targets, dtype=np.float64)).float()


def test_the_first_metric_is_shown_and_each_has_a_name_and_a_label(kind):
    names = [metric.name for metric in (*kind.metrics, *kind.parts)]
    assert len(set(names)) == len(names) > 0
    assert all(metric.label for metric in kind.metrics)
    assert kind.loss_label


def test_targets_survive_a_split_and_a_prediction_file(kind, example, tmp_path):
    targets, y, _ = example
    rows = [
        {"scan_id": f"s{i:02}", "subject": f"s{i:02}", "session": None, "y": target, "sex": "FM"[i % 2]}
        for i, target in enumerate(targets)
    ]
    split = make_split(rows, 0, 0.2, 0.1, kind, "t")
    write_split(tmp_path / "seed-0.tsv", split)
    read = read_split(tmp_path / "seed-0.tsv")
    np.testing.assert_array_equal(kind.array(row["y"] for row in read), y)

    columns = [*kind.score_columns, *kind.prior_columns]
    table = [
        row | dict.fromkeys(columns, 0.25) | {"subset": "fraction-100", "seed": 0, "fold": 0, "split": "test"}
        for row in rows
    ]
    write_tsv(tmp_path / "p.tsv", table, [*COLUMNS, *columns])
    folder = layout.predicted_files(tmp_path / "p.tsv", "fraction-100", "seed-0")
    folder.mkdir(parents=True)  # where a kind that draws images has their features, here none
    none = np.empty((NUMBER, 0))
    np.savez(
        folder / layout.FEATURES_OF_IMAGES, scan_id=[row["scan_id"] for row in rows], drawn=none, real=none
    )
    run = read_predictions(tmp_path / "p.tsv", kind)[RunKey("", fraction(100), 0, "test")]
    np.testing.assert_array_equal(run.y, kind.truth(targets))
    assert run.score.shape == (
        (NUMBER,) if len(kind.score_columns) == 1 else (NUMBER, len(kind.score_columns))
    )


@linear
def test_a_scans_loss_is_its_own_and_learning_beats_the_best_constant(kind, example):
    _, y, features = example
    goal = kind.objective(y, alike(y), "cell")
    assert json.loads(json.dumps(goal.offset)) == list(goal.offset)
    outputs = torch.randn(NUMBER, kind.outputs, generator=torch.Generator().manual_seed(0))
    whole = goal.loss(outputs, tensor(y))
    assert whole.shape == (NUMBER,)
    alone = torch.cat([goal.loss(outputs[i : i + 1], tensor(y[i : i + 1])) for i in range(NUMBER)])
    torch.testing.assert_close(whole, alone)

    layer = torch.nn.Linear(5, kind.outputs)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    start = goal.loss(layer(tensor(features)), tensor(y)).mean()
    start.backward()
    assert layer.bias.grad.abs().max() < 0.02, "outputs of zero are the best constant"
    optimizer = torch.optim.Adam(layer.parameters(), 0.1)
    for _ in range(100):
        optimizer.zero_grad()
        goal.loss(layer(tensor(features)), tensor(y)).mean().backward()
        optimizer.step()
    score = kind.scores(layer(tensor(features)).detach(), goal.offset, goal.scale).double().numpy()
    assert score.shape == (NUMBER, len(kind.score_columns))
    assert better_than_constant(kind, y, score)


def better_than_constant(kind, y, score):
    """Whether the first metric of scores [n, columns] is far better than that of a constant."""
    run = run_of(kind, y, score)
    constant = run_of(kind, y, np.tile(kind.constant_scores(y), (len(y), 1)))
    value, chance = (
        float(kind.measure(one.y, one.score, kind.rule(one, one))[kind.metrics[0].name])
        for one in (run, constant)
    )
    if kind.chance is not None:
        assert chance == pytest.approx(kind.chance)
    return value > 0.9 if kind.metrics[0].higher_is_better else value < chance / 2


def run_of(kind, y, score):
    score = score if score.shape[1] > 1 else score[:, 0]
    prior = kind.constant_scores(y) if kind.prior_columns else np.array([])
    return Run(tuple(map(str, range(len(y)))), y, score, prior)


@pytest.mark.parametrize("name", [name for name in KINDS if name != "generation"])  # see test_generation
def test_a_cell_is_trained_and_predicted(name, kind, example, tmp_path):
    targets, _, _ = example
    store = tiny_cells.make_store(tmp_path / "store", scans=NUMBER)
    if name in tiny_cells.DENSE:
        tiny_cells.add_label_maps(store)
    split = tiny_cells.make_split(tmp_path / "seed-0.tsv", store)
    rows = [row | {"y": targets[place]} for place, row in enumerate(read_tsv(split))]
    write_tsv(split, rows, list(rows[0]))
    tiny_cells.finetune(
        tiny_cells.cell(name),
        store,
        split,
        None,
        tmp_path / "cell",
        tmp_path / "state",
        checkpoint_seconds=1e9,
    )
    predict([tmp_path / "cell" / "delta.safetensors"], [], store, [split], tmp_path / "p.tsv", "cpu")
    tested = read_predictions(tmp_path / "p.tsv", kind)[RunKey("", fraction(100), 0, "test")]
    assert np.isfinite(tested.score).all()
    history = tiny_cells.read_history(tmp_path / "cell")
    assert {"val_loss", "val_metric"} <= history[0].keys()


@linear
def test_weights_count_as_if_scans_were_there_so_often(kind, example):
    _, y, _ = example
    weights = [3.0 if i < 5 else 1.0 for i in range(NUMBER)]
    weighted = kind.objective(y, weights, "cell")
    repeated = kind.objective(np.concatenate([y[:5], y[:5], y]), alike([0] * 70), "cell")
    assert weighted.offset == pytest.approx(repeated.offset)
    assert weighted.scale == pytest.approx(repeated.scale)
    outputs = torch.ones(NUMBER, kind.outputs)
    torch.testing.assert_close(weighted.loss(outputs, tensor(y)), repeated.loss(outputs, tensor(y)))


@linear
def test_linear_models_learn_and_one_class_needs_none(kind, example):
    _, y, features = example
    subjects = np.array([f"s{i}" for i in range(NUMBER)])
    models = fit_linear(kind, features, y, subjects)
    assert better_than_constant(kind, y, kind.model_scores(models, features))
    if not kind.regresses:
        same = np.repeat(y[:1], NUMBER, axis=0)
        assert kind.nothing_to_learn(same)
        scores = kind.model_scores(fit_linear(kind, features, same, subjects), features)
        np.testing.assert_array_equal(scores, np.tile(kind.constant_scores(same), (NUMBER, 1)))


@linear
def test_draws_are_of_every_metric_and_why_one_is_not_defined_is_told(kind, example):
    _, y, features = example
    subjects = np.array([f"s{i}" for i in range(NUMBER)])
    run = run_of(kind, y, kind.model_scores(fit_linear(kind, features, y, subjects), features))
    rule = kind.rule(run, run)
    assert kind.why_undefined(run.y, run.score) == ""
    drawn = bootstrap_draws(kind, [(run.y, run.score, rule)], draws=50)
    point = kind.measure(run.y, run.score, rule)
    for metric in (*kind.metrics, *kind.parts):
        assert drawn[metric.name].shape == (50,)
        assert np.nanmin(drawn[metric.name]) <= point[metric.name] <= np.nanmax(drawn[metric.name])
    assert kind.why_undefined(run.y, np.full_like(run.score, np.nan)) == "predictions are not finite"
    assert all(math.isnan(value) for value in kind.measure(run.y, run.score * np.nan, rule).values())
    assert kind.why_undefined(np.repeat(run.y[:1], NUMBER, axis=0), run.score)


# -- each alone ------------------------------------------------------------------------------------


def test_classes_weigh_the_same_and_are_reported_at_the_frequencies_of_training() -> None:
    two = BINARY.objective(np.array([0] * 9 + [1] * 3), alike([0] * 12), "cell")
    assert two.offset == pytest.approx([math.log(3 / 9)])
    assert BINARY.scores(torch.tensor([[0.0]]), (math.log(3),), 1).tolist() == [[pytest.approx(0.75)]]

    three = THREE.objective(np.array([0] * 6 + [1] * 2 + [2]), alike([0] * 9), "cell")
    assert three.offset == pytest.approx([math.log(n / 9) for n in (6, 2, 1)])
    scores = THREE.scores(torch.tensor([[0.0, 0.0, math.log(2)]]), (0, 0, 0), 1)
    assert scores[0].tolist() == pytest.approx([0.25, 0.25, 0.5])


def test_regression_is_l1_on_the_standardised_target() -> None:
    targets = np.array([50.0, 60.0, 71.0, 80.0, 90.0])
    goal = VALUES.objective(targets, alike(targets), "cell")
    sd = math.sqrt(sum((target - 70.2) ** 2 for target in targets) / 5)
    assert goal.offset == (71,), "the median, which is the best constant of this loss"
    assert goal.scale == pytest.approx(sd)
    assert goal.loss(torch.tensor([[0.0], [1.0]]), torch.tensor([76.0, 71.0])).tolist() == pytest.approx(
        [5 / sd, 1]
    )
    assert VALUES.scores(torch.tensor([[-2.0]]), (65,), 10).tolist() == [[45]]


def test_no_constant_beats_the_offset_of_a_skewed_target() -> None:
    targets, weights = np.array([20.0, 21.0, 22.0, 30.0, 90.0]), [2.0, 0.5, 0.5, 1.0, 1.0]
    goal = VALUES.objective(targets, weights, "cell")
    losses = {constant: float((weights * np.abs(targets - constant)).sum()) for constant in range(20, 91)}
    assert losses[goal.offset[0]] == min(losses.values())


@pytest.mark.parametrize(
    ("kind", "targets", "said"),
    [
        (BINARY, [0, 0, 0], "a/b: no training scan has class 1 "),
        (THREE, [1, 2], "a/b: no training scan has class 0 "),
        (VALUES, [60.0, 60.0], "a/b: all training targets are 60"),
        (LABELS, ["1|n/a", "1|0"], "a/b: no label is both 1 and 0"),
    ],
)
def test_an_absent_class_and_a_constant_target_are_refused(kind, targets, said) -> None:
    with pytest.raises(UserError, match=said):
        kind.objective(kind.array(targets), alike(targets), "a/b")


def test_unknown_labels_teach_nothing_and_unlearnable_ones_are_left_out() -> None:
    targets = LABELS.array(["1|1", "0|1", "0|n/a", "0|1"])
    goal = LABELS.objective(targets, alike(targets), "cell")
    assert goal.offset[0] == pytest.approx(math.log(1 / 3))
    told = LABELS.scores(torch.zeros(1, 2), goal.offset, goal.scale)[0, 0]
    assert float(told) == pytest.approx(1 / 4), (
        "what a network that tells nothing apart reports: how often it is"
    )
    outputs = torch.zeros(4, 2, requires_grad=True)
    goal.loss(outputs, tensor(targets)).sum().backward()
    assert outputs.grad is not None
    assert outputs.grad[:, 1].abs().max() == 0
    assert outputs.grad[:, 0].sum() == pytest.approx(0, abs=1e-6)


def test_an_uncertain_label_is_learnt_and_not_scored() -> None:
    targets = ["1?|1", "1|0", "0|0?", "0|1", "0?|n/a"]
    np.testing.assert_array_equal(LABELS.array(targets), [[1, 1], [1, 0], [0, 0], [0, 1], [0, np.nan]])
    nan = np.nan
    np.testing.assert_array_equal(LABELS.truth(targets), [[nan, 1], [1, 0], [0, nan], [0, 1], [nan, nan]])


def test_metrics_over_labels_are_the_means_of_each_labels_own() -> None:
    rng = np.random.default_rng(0)
    y, score = rng.integers(0, 2, (40, 2)).astype(float), rng.uniform(size=(40, 2))
    y[:5, 0] = np.nan
    weights = rng.integers(0, 3, (7, 40)).astype(float)
    measured = LABELS.measure(y, score, np.full(40, np.nan), weights)
    for metric in LABELS.metrics:
        np.testing.assert_allclose(measured[metric.name], metric.value(y, score, np.array([]), weights))
    for label in (0, 1):
        known = np.isfinite(y[:, label])
        expected = auc(y[known, label], score[known, label], weights[:, known])
        np.testing.assert_allclose(measured[f"auc_{label}"], expected)
    y[:, 1] = np.nan
    unknown = LABELS.measure(y, score, np.full(40, np.nan), weights)
    assert np.isnan(unknown["ap_1"]).all()
    assert np.isfinite(unknown["ap_0"]).all()


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(UserError, match="did you mean 'binary'"):
        task_kind("binry", 2)
