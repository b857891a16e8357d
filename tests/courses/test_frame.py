"""The frame of the courses: plans, sessions, training that repeats and resumes, results, report, command line."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from dlops import cli, courses
from dlops.bench.stock import stock
from dlops.courses import everything, pictures, results
from dlops.courses.measures import accuracy
from dlops.courses.plan import Plan
from dlops.courses.recipe import Check, Goal, Outcome, Recipe
from dlops.courses.session import Session
from dlops.models.vision.lenet import LeNet5

if courses.missing_packages():
    pytest.skip(f"needs {', '.join(courses.missing_packages())}: pip install 'dlops[courses]'", allow_module_level=True)
training = importlib.import_module("dlops.courses.training")  # imports Lightning

PLAN = Plan(epochs=4, batch=8, lr=1e-2)


@pytest.fixture(autouse=True)
def _one_thread(_threads):
    torch.set_num_threads(1)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 1))


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(30, 3, generator=generator)
    return inputs, inputs.sum(1, keepdim=True)


def loss(network, inputs, targets):
    noise = torch.randn(inputs.shape)  # from the global generator, as augmentation is
    return mse_loss(network(inputs + 0.1 * noise), targets)


def fitted(session: Session, plan: Plan = PLAN, loss=loss):
    return session.fit("line", session.build("line", network), loss, data(), plan)


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


# ---------------------------------------------------------------------------------------------------------- training


def test_the_same_seed_gives_the_same_bits_and_another_does_not():
    first, again, other = fitted(Session("T", 0)), fitted(Session("T", 0)), fitted(Session("T", 1))
    assert first.losses == again.losses != other.losses
    assert same_weights(first.network, again.network) and not same_weights(first.network, other.network)
    assert len(first.losses) == 4 * 4


def test_a_run_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    fitted(Session("T"))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("average", [None, 0.9])
@pytest.mark.parametrize("stop", [1, 9, 13])
def test_an_interrupted_run_resumes_bit_for_bit(tmp_path, monkeypatch, stop, average):
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)
    plan = Plan(epochs=4, batch=8, lr=1e-2, average=average)
    whole = fitted(Session("T", 0), plan)
    calls = []

    def interrupted(network, inputs, targets):
        calls.append(1)
        if len(calls) == stop + 1:
            raise KeyboardInterrupt
        return loss(network, inputs, targets)

    with pytest.raises(KeyboardInterrupt):
        fitted(Session("T", 0, folder=tmp_path), plan, interrupted)
    assert (tmp_path / "line.ckpt").exists() == (stop >= 4)  # four steps an epoch
    resumed = fitted(Session("T", 0, folder=tmp_path), plan, interrupted)
    assert resumed.losses == whole.losses and same_weights(resumed.network, whole.network)
    assert len(calls) == stop + 1 + 16 - stop // 4 * 4  # what the last whole epoch had done was not done again


def test_a_finished_training_is_not_repeated(tmp_path):
    session = Session("T", folder=tmp_path)
    first = fitted(session)
    again = fitted(session, loss=lambda *_: pytest.fail("trained again"))
    assert first.losses == again.losses and same_weights(first.network, again.network)
    assert not list(tmp_path.glob("*.new"))


def test_checkpoints_hold_tensors_and_plain_values_only(tmp_path):
    fitted(Session("T", folder=tmp_path))
    saved = torch.load(tmp_path / "line.ckpt", weights_only=True)
    assert saved["dlops"]["label"] == "T seed 0 dlops cpu: line" and len(saved["dlops"]["losses"]) == 16


def test_a_checkpoint_of_another_row(tmp_path):
    fitted(Session("A1", folder=tmp_path))
    with pytest.raises(ValueError, match=r"line.ckpt: a checkpoint of 'A1 seed 0 dlops cpu: line', expected one of 'B1 seed 0"):
        fitted(Session("B1", folder=tmp_path))
    for content in (b"", b"nothing of the kind", b"\x80\x02}q\x00."):
        (tmp_path / "line.ckpt").write_bytes(content)
        with pytest.raises(ValueError, match="line.ckpt: not a checkpoint of a course recipe"):
            fitted(Session("A1", folder=tmp_path))


def test_bad_data():
    session, (inputs, targets) = Session("T"), data()
    train = lambda *tensors: session.fit("line", session.build("line", network), loss, tensors, PLAN)  # noqa: E731
    with pytest.raises(ValueError, match=r"T line: data\[0\] has NaN or infinity, first in sample 7"):
        train(inputs.index_fill(0, torch.tensor([7, 9]), math.nan), targets)
    with pytest.raises(ValueError, match=r"data\[1\] has 29 samples, data\[0\] has 30"):
        train(inputs, targets[1:])
    with pytest.raises(ValueError, match="data is empty"):
        train(inputs[:0], targets[:0])
    with pytest.raises(ValueError, match="the loss is NaN after epoch 1"):
        fitted(session, loss=lambda network, inputs, targets: network(inputs).sum() * math.nan)


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", torch.optim.RMSprop])
@pytest.mark.parametrize("schedule", ["one_cycle", "cosine", "constant"])
def test_plans(optimizer, schedule):
    run = fitted(Session("T"), Plan(epochs=3, batch=8, lr=1e-3, optimizer=optimizer, schedule=schedule, clip=1.0))
    assert len(run.losses) == 12 and not run.network.training


def test_bad_plans():
    for plan, message in ((Plan(1, optimizer="lion"), "optimizer must be"), (Plan(1, schedule="noam"), "schedule must be")):
        with pytest.raises(ValueError, match=message):
            fitted(Session("T"), plan)


def test_an_average_of_the_weights_is_the_result():
    last, mean = fitted(Session("T")), fitted(Session("T"), Plan(epochs=4, batch=8, lr=1e-2, average=0.5))
    assert last.losses == mean.losses and not same_weights(last.network, mean.network)


def test_every_sample_once_per_epoch():
    batches = training.Batches(10, 4, seed=3)
    epochs = []
    for epoch in (0, 1, 0):
        batches.set_epoch(epoch)
        epochs.append(torch.cat(list(batches)))
        assert epochs[-1].sort().values.tolist() == list(range(10))
    assert len(batches) == 3 and torch.equal(epochs[0], epochs[2]) and not torch.equal(epochs[0], epochs[1])


# ----------------------------------------------------------------------------------------------------------- session


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(backend="jax"), "backend must be one of dlops, torch: got 'jax'"),
        (dict(device="tpu"), "device must be 'cpu' or 'cuda': got 'tpu'"),
        (dict(seed=-1), "seed must be from 0"),
    ],
)
def test_bad_sessions(arguments, message):
    with pytest.raises(ValueError, match=message):
        Session("T", **arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_without_a_gpu():
    with pytest.raises(ValueError, match="torch sees no GPU"):
        Session("T", device="cuda")


def test_both_backends_start_from_the_same_weights():
    ours, theirs = (Session("B1", backend=backend).build("lenet", LeNet5) for backend in ("dlops", "torch"))
    assert same_weights(ours, theirs) and ours.state_dict().keys() == theirs.state_dict().keys()
    assert all(type(module).__module__ != "dlops.nn.conv" for module in theirs.modules())
    assert not same_weights(ours, Session("B1").build("another name", LeNet5))


def test_stock_layers_do_what_ours_do():
    from dlops import nn as ours

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.conv = ours.GroupNorm(2, 4, activation="silu"), ours.Conv2d(4, 4, 3, padding=1, activation="gelu")
            self.up, self.linear = ours.ConvTranspose2d(4, 4, 2, 2, activation="tanh"), ours.Linear(6, 6, activation="relu")
            self.rows, self.attention = ours.LayerNorm(6), ours.MultiheadAttention(6, 2, batch_first=True)

    torch.manual_seed(0)
    block, x = Block(), torch.randn(2, 4, 3, 3)
    plain = stock(block)
    assert not any(type(module).__module__.startswith("dlops.nn") for module in plain.modules())
    one, zero = torch.ones(2, 4, 6, 6), torch.zeros(8, 6, 6)

    def run(net):
        y = net.conv(net.norm(x, scale=x.mean((2, 3)), shift=x.amax((2, 3))), x)
        rows, summed = net.rows(net.linear(net.up(y), one).flatten(0, 1), zero)
        return net.attention(rows, rows, rows, need_weights=False)[0] + summed

    torch.testing.assert_close(run(plain), run(block))
    with pytest.raises(TypeError, match=r"0 is a RotaryPositions, which torch.nn does not have"):
        stock(nn.Sequential(ours.RotaryPositions(8)))


# --------------------------------------------------------------------------------------------------- goals and checks


def test_goals_are_judged_by_the_mean_and_nan_reaches_none():
    goal = Goal("accuracy", ">=", 0.5)
    assert goal.reached([0.4, 0.6]) and not goal.reached([0.4, 0.59]) and not goal.reached([math.nan, 1.0])
    assert Check("gap", 1.0, "<=", 1.0).holds and not Check("gap", math.nan, "<=", 1.0).holds
    with pytest.raises(ValueError, match="relation"):
        Goal("accuracy", ">", 0.5).reached([1])
    with pytest.raises(ValueError, match="at least one invariant"):
        Outcome({}, [], pictures.figure)


def test_listing_the_rows_imports_nothing_heavy():
    heavy = "{'lightning', 'sklearn', 'matplotlib'}"
    code = "import sys; from dlops import courses; [courses.find(row) for row in courses.rows()]"
    code += f"; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_an_unknown_row():
    with pytest.raises(ValueError, match=r"course: no row 'Z9', expected one of A1"):
        courses.find("Z9")


def test_an_unknown_preset():
    with pytest.raises(ValueError, match=r"LeNet5: no preset 'large', expected one of 'original', 'relu'"):
        LeNet5.from_preset("large")


# ------------------------------------------------------------------------------------------------ results and report


class Broken(Recipe):
    """A row whose goal or invariant fails, to see that the report says so."""

    row, title, title_es, syllabi = "A1", "a broken row", "una fila rota", ("S0",)
    source, data = "none", "none"
    goals = (Goal("accuracy", ">=", 0.5),)
    score, gap = 0.0, 0.0

    def run(self, session):
        checks = [Check("gap", self.gap, "<=", 0.1)]
        return Outcome({"accuracy": self.score}, checks, lambda: pictures.curves({"a": [1, 2]}, "x", "y"))


@pytest.fixture
def broken(monkeypatch):
    """`make courses` with this one row, in this process."""
    recipe = Broken()
    monkeypatch.setattr(courses, "find", lambda row: recipe)
    monkeypatch.setattr(results, "find", lambda row: recipe)

    class Pool:
        def __init__(self, *args, **kwargs):
            pass

        __enter__ = lambda self: self  # noqa: E731
        __exit__ = lambda self, *exc: None  # noqa: E731

        def submit(self, function, *arguments):
            future = everything.concurrent.futures.Future()
            try:
                future.set_result(function(*arguments))
            except Exception as error:
                future.set_exception(error)
            return future

    monkeypatch.setattr(everything.concurrent.futures, "ProcessPoolExecutor", Pool)
    return recipe


@pytest.mark.parametrize(
    ("score", "gap", "code", "told"),
    [(0.6, 0.0, 0, "A1  pass"), (0.4, 0.0, 1, "A1  FAIL  accuracy 0.4 (>= 0.5)"), (0.6, 0.2, 1, "BROKEN: gap")],
)
def test_the_report_says_what_failed(tmp_path, capsys, broken, score, gap, code, told):
    broken.score, broken.gap = score, gap
    assert everything.run(["A1"], seeds=2, out=tmp_path, figures=tmp_path / "figures") == code
    assert told in capsys.readouterr().out
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 1 and ('class="fail"' in page) == bool(code)
    assert (tmp_path / "figures" / "A1.png").read_bytes().startswith(b"\x89PNG")


def test_a_row_that_fails_does_not_take_the_others_with_it(tmp_path, capsys, broken, monkeypatch):
    monkeypatch.setattr(Broken, "run", lambda self, session: 1 / 0)
    assert everything.run(["A1"], seeds=1, out=tmp_path) == 1
    assert "ZeroDivisionError" in capsys.readouterr().out and "ZeroDivisionError" in (tmp_path / "report.html").read_text()


def test_finished_runs_are_kept_until_the_recipe_changes(tmp_path, broken, monkeypatch):
    broken.score = 0.6
    runs = []
    plain = Broken.run
    monkeypatch.setattr(Broken, "run", lambda self, session: runs.append(1) or plain(self, session))
    for expected, fresh in ((2, False), (2, False), (4, True)):
        everything.run(["A1"], seeds=2, out=tmp_path, fresh=fresh)
        assert len(runs) == expected
    monkeypatch.setattr(results, "fingerprint", lambda recipe: "edited")
    everything.run(["A1"], seeds=2, out=tmp_path)
    assert len(runs) == 6


def test_seeds_below_one():
    with pytest.raises(ValueError, match="seeds must be at least 1"):
        everything.run(seeds=0)


# ------------------------------------------------------------------------------------------------------ command line


def test_list_and_show(capsys):
    assert cli.main(["course", "list"]) == 0
    listed = capsys.readouterr().out
    assert all(f"  {row:4}" in listed for row in courses.rows())
    assert cli.main(["course", "show", "b1"]) == 0
    shown = capsys.readouterr().out
    assert "dlops/models/vision/lenet.py" in shown and "accuracy >= 0.985" in shown and "UNAM" in shown


def test_run(tmp_path, capsys):
    assert cli.main(["course", "run", "B1", "--quick", "--out", str(tmp_path), "--backend", "torch"]) == 0
    assert "not judged" in capsys.readouterr().out
    folder = tmp_path / "B1" / "torch-cpu-seed0"
    assert json.loads((folder / "result.json").read_text())["quick"] and (folder / "B1.png").exists()


def test_one_clear_line(capsys):
    for arguments, message in (
        (["course", "run", "Z9"], "dlops course: no row 'Z9', expected one of"),
        (["course", "run", "B1", "--seed", "-1"], "dlops course: seed must be from 0 to 2**31 - 1: got -1"),
        (["course", "all", "--rows", "B1,Z9"], "dlops course: no row 'Z9'"),
    ):
        assert cli.main(arguments) == 2
        told = capsys.readouterr().err
        assert told.startswith(message) and told.count("\n") == 1


def test_without_an_extra(capsys, monkeypatch):
    monkeypatch.setattr(courses, "missing_packages", lambda: ["lightning"])
    assert cli.main(["course", "list"]) == 2
    assert capsys.readouterr().err == "dlops course: needs lightning: pip install 'dlops[courses]'\n"


def test_accuracy():
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    assert accuracy(Session("T"), nn.Identity(), logits, torch.tensor([0, 1, 1, 0])) == 0.75
