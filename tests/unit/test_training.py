"""The training loop: resumed runs end in the same weights, bad losses in one error; schedule, log, prefix counts."""

from __future__ import annotations

import itertools
import math
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from inversescope import training
from inversescope.errors import InputError
from inversescope.generator.loss import prefix_counts
from inversescope.generator.pairs import Batch
from inversescope.progress import Progress
from inversescope.training import Schedule, next_token_loss, train


def make_model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
    model[2].requires_grad_(False)  # a frozen part, as the backbone is
    model[0].register_parameter(
        "seldom", nn.Parameter(torch.ones(2))
    )  # every third step reads it, as it does a site
    return model


def loss_of(model: nn.Module, step: int) -> tuple[Tensor, dict[str, float]]:
    rng = np.random.default_rng([3, step])
    x = torch.from_numpy(rng.standard_normal((16, 4)).astype(np.float32))
    y = x[:, :1] - 0.5 * x[:, 1:2]
    seldom = 0.01 * model[0].seldom.square().sum() if step % 3 == 0 else 0.0  # type: ignore[union-attr]
    return ((model(x) - y) ** 2).mean() + seldom, {
        "twice": 2.0 * step,
        "rare": float(step) if step % 4 == 0 else math.nan,
    }


SCHEDULE = Schedule(30, 0.02, weight_decay=0.1, betas=(0.9, 0.98), warmup=5)


class Killed(Exception):
    """The process was killed."""


def run(
    model: nn.Module, state: Path | None = None, kill_at: int | None = None, **options: object
) -> pd.DataFrame:
    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        if step == kill_at:
            raise Killed
        return loss_of(model, step)

    defaults: dict = {"save_every": 7, "log_every": 5, "echo": lambda line: None}
    return train(
        model, loss, SCHEDULE, name="t", tokens_per_step=100, state_path=state, **{**defaults, **options}
    )


@pytest.mark.parametrize("kills", [[18], [8, 22, 29], [3]])
def test_resumed_run_ends_in_identical_weights(tmp_path: Path, kills: list[int]) -> None:
    whole = make_model()
    log = run(whole)
    lines: list[str] = []
    for kill in kills:
        with pytest.raises(Killed):
            run(make_model(), tmp_path / "state.safetensors", kill)
    resumed = make_model()
    again = run(resumed, tmp_path / "state.safetensors", echo=lines.append)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    saved = kills[-1] // 7 * 7
    if saved:
        assert f"t: resuming at step {saved} of 30" in lines
    else:
        assert not any("resuming" in line for line in lines)
    # The log goes on too: no step is missing, none is there twice.
    assert again["step"].tolist() == log["step"].tolist() == [5, 10, 15, 20, 25, 30]
    assert (np.diff(again["seconds"]) >= 0).all()
    # Means since the last row go on across a kill between two rows.
    measured = ["seconds", "tokens_per_second"]
    pd.testing.assert_frame_equal(again.drop(columns=measured), log.drop(columns=measured), check_exact=True)


def test_state_is_what_makes_it_so(tmp_path: Path) -> None:
    """Without the optimiser's moments the same weights would not come out: the test above can fail."""
    whole = make_model()
    run(whole)
    with pytest.raises(Killed):
        run(make_model(), tmp_path / "state.safetensors", 18)
    from inversescope.store import load_state, save_state

    tensors, meta = load_state(tmp_path / "state.safetensors")
    assert meta["step"] == 14
    kept = {name: value for name, value in tensors.items() if name.startswith("model.")}
    assert len(kept) < len(tensors)
    save_state(tmp_path / "state.safetensors", kept, meta)
    resumed = make_model()
    run(resumed, tmp_path / "state.safetensors")
    assert not torch.equal(resumed[0].weight, whole[0].weight)


def test_a_state_of_another_training_or_a_damaged_one_is_not_used(tmp_path: Path) -> None:
    state = tmp_path / "state.safetensors"
    whole = make_model()
    run(whole, made_from={"seed": 1})
    for damage in (False, True):
        state.unlink(missing_ok=True)
        with pytest.raises(Killed):
            run(make_model(), state, 18, made_from={"seed": 1 if damage else 0})
        if damage:
            data = bytearray(state.read_bytes())
            data[-3] ^= 1
            state.write_bytes(data)
        lines: list[str] = []
        again = make_model()
        run(again, state, made_from={"seed": 1}, echo=lines.append)
        told = "is damaged: its checksum" if damage else "is the state of another training"
        assert told in lines[0] and lines[0].endswith("beginning at step 0")
        assert torch.equal(again[0].weight, whole[0].weight)


def test_parts_of_a_batch_are_all_of_it_once() -> None:
    z = {"a": np.arange(5.0)[:, None], "b": 10 + np.arange(4.0)[:, None], "c": 20 + np.arange(3.0)[:, None]}
    everything = np.concatenate(list(z.values()))[:, 0]
    index = np.arange(12)
    batch = Batch(z, path=index[:, None], lengths=index, weight=everything.copy())
    assert batch.part(0, 1) is batch
    seen = []
    for i in range(5):
        part = batch.part(i, 5)
        rows = np.concatenate(list(part.z.values()))[:, 0]
        np.testing.assert_array_equal(rows, part.weight)  # activations stay beside their examples
        np.testing.assert_array_equal(part.path[:, 0], part.lengths)
        seen += part.lengths.tolist()
    assert sorted(seen) == index.tolist()
    with pytest.raises(InputError, match="13 processes share 12 examples"):
        batch.part(0, 13)


def test_frozen_parameters_keep_their_bits_and_the_rest_learns() -> None:
    before, model = make_model(), make_model()
    log = run(model)
    assert torch.equal(model[2].weight, before[2].weight) and torch.equal(model[2].bias, before[2].bias)
    assert not torch.equal(model[0].weight, before[0].weight)
    assert log["loss"].iloc[-1] < 0.8 * log["loss"].iloc[0]
    assert not model.training


def test_what_a_step_does_not_read_stays_as_it_is() -> None:
    model = make_model()
    seen = [model[0].seldom.clone()]
    run(model, on_step=lambda done: seen.append(model[0].seldom.clone()))
    assert [not torch.equal(a, b) for a, b in itertools.pairwise(seen)] == [s % 3 == 0 for s in range(30)]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_an_input_error(bad: float) -> None:
    model = make_model()

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        value, _ = loss_of(model, step)
        return (value * bad if step == 6 else value), {}

    with pytest.raises(
        InputError, match=r"train_x: the loss is (nan|inf) at step 7\. lower the learning rate"
    ):
        train(model, loss, SCHEDULE, name="train_x", tokens_per_step=1, echo=lambda line: None)


def test_log_holds_means_since_the_last_row(tmp_path: Path) -> None:
    model = make_model()
    losses: list[float] = []

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        value, extra = loss_of(model, step)
        losses.append(float(value.detach()))
        return value, extra

    log = train(
        model,
        loss,
        SCHEDULE,
        name="t",
        tokens_per_step=100,
        log_every=10,
        log_path=tmp_path / "log.csv",
        echo=lambda line: None,
    )
    np.testing.assert_allclose(log["loss"], np.reshape(losses, (3, 10)).mean(1), rtol=1e-6)
    np.testing.assert_allclose(log["twice"], [9, 29, 49])
    np.testing.assert_allclose(log["rare"], [4, 14, 24])  # NaN = not computed at that step
    np.testing.assert_allclose(log["learning_rate"], [SCHEDULE.rate(s) for s in (9, 19, 29)])
    assert (log["tokens_per_second"] > 0).all()
    written = pd.read_csv(tmp_path / "log.csv")
    assert {"step", "seconds", "loss", "learning_rate", "tokens_per_second"} <= set(written)


def test_it_speaks_between_two_rows_of_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "Progress", partial(Progress, every=0.0))
    lines: list[str] = []
    log = run(make_model(), echo=lines.append, log_every=15)
    assert len(lines) == 30 and lines[14].endswith(f"loss {log['loss'].iloc[0]:.3f}")


def test_stop_ends_the_run_and_is_logged() -> None:
    seen: list[int] = []
    log = run(make_model(), stop=lambda done: done == 13, on_step=seen.append, log_every=100)
    assert seen == list(range(1, 14)) and log["step"].tolist() == [13]


@pytest.mark.parametrize("decay_all", [False, True])
def test_weights_decay_and_offsets_only_if_asked(decay_all: bool) -> None:
    model = nn.Linear(2, 2)
    nn.init.ones_(model.weight)
    nn.init.ones_(model.bias)
    schedule = Schedule(1, 0.1, weight_decay=0.5, warmup=0, shape="constant", decay_all=decay_all)
    train(
        model,
        lambda step: (0.0 * (model.weight.sum() + model.bias.sum()), {}),
        schedule,
        name="t",
        tokens_per_step=1,
        echo=lambda line: None,
    )
    torch.testing.assert_close(model.weight, torch.full((2, 2), 0.95))
    torch.testing.assert_close(model.bias, torch.full((2,), 0.95 if decay_all else 1.0))


def test_gradients_are_clipped_by_their_norm() -> None:
    sizes = {}
    for clip in (1.0, None):
        model = nn.Linear(3, 1, bias=False)
        schedule = Schedule(1, 0.1, warmup=0, shape="constant", clip=clip)
        train(
            model,
            lambda step, m=model: (1000.0 * m.weight.sum(), {}),
            schedule,
            name="t",
            tokens_per_step=1,
            echo=lambda line: None,
        )
        assert model.weight.grad is not None
        sizes[clip] = float(model.weight.grad.norm())
    assert sizes[1.0] == pytest.approx(1.0, rel=1e-4) and sizes[None] == pytest.approx(
        1000 * 3**0.5, rel=1e-4
    )


def test_schedule() -> None:
    cosine = Schedule(100, 0.5, warmup=10)
    assert [cosine.rate(0), cosine.rate(4), cosine.rate(9), cosine.rate(10)] == pytest.approx(
        [0.05, 0.25, 0.5, 0.5]
    )
    assert cosine.rate(55) == pytest.approx(0.25) and cosine.rate(100) == pytest.approx(0.0, abs=1e-12)
    constant = Schedule(100, 0.5, warmup=2, shape="constant")
    assert [constant.rate(0), constant.rate(1), constant.rate(99)] == pytest.approx([0.25, 0.5, 0.5])
    assert Schedule(10, 0.5, warmup=0).rate(0) == 0.5


def test_progress_speaks_now_and_then_and_at_the_end() -> None:
    lines: list[str] = []
    progress = Progress("stage", 3, lines.append, every=3600.0)
    for done in (1, 2, 3):
        progress(done, f"note {done}")
    assert len(lines) == 1 and lines[0].startswith("stage: 3/3") and lines[0].endswith("note 3")


# Losses


def test_prefix_counts_equal_brute_force() -> None:
    rng = np.random.default_rng(0)
    B, K, T, V = 6, 20, 5, 3
    sequences = rng.integers(0, V, (B, K, T))
    sequences[:, :, 0] = 0
    path = sequences[:, 0].copy()
    path[5] = [0, 2, 2, 2, 2]
    weight = (rng.random((B, K)) < 0.7).astype(np.float32)
    weight[4] = 0.0
    expected = np.zeros((B, T - 1, V))
    for b in range(B):
        for k in range(K):
            for t in range(T - 1):
                if sequences[b, k, : t + 1].tolist() == path[b, : t + 1].tolist():
                    expected[b, t, sequences[b, k, t + 1]] += weight[b, k]
    found = prefix_counts(torch.from_numpy(path), torch.from_numpy(sequences), torch.from_numpy(weight), V)
    np.testing.assert_array_equal(found.numpy(), expected)
    np.testing.assert_array_equal(found.sum(-1)[:, 0].numpy(), weight.sum(1))
    assert (expected[:, 2:] > 0).any() and (expected[4] == 0).all()


def test_next_token_loss_leaves_padding_out() -> None:
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 4, generator=rng)
    tokens = torch.randint(0, 4, (3, 5), generator=rng)
    lengths = torch.tensor([5, 2, 3])
    logp = torch.log_softmax(logits, -1)
    terms = [-logp[b, t, tokens[b, t + 1]] for b in range(3) for t in range(int(lengths[b]) - 1)]
    torch.testing.assert_close(next_token_loss(logits, tokens, lengths), torch.stack(terms).mean())
    tokens[1, 2:] = 3
    logits[1, 2:] = 100.0
    torch.testing.assert_close(next_token_loss(logits, tokens, lengths), torch.stack(terms).mean())
