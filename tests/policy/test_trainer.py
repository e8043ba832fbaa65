"""Training of a steered policy: a step, its gradients, evaluation, faults, refusals."""

from __future__ import annotations

import math
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_policy import (
    PROMPTS,
    SAVING,
    ColourGuide,
    digest,
    history,
    make_arguments,
    make_base,
    make_contexts,
    make_policy,
    make_rows,
    make_tokenizer,
    make_trainer,
    parameters,
)
from torch import Tensor
from torch.nn.utils import parameters_to_vector
from transformers import EarlyStoppingCallback, TrainerCallback

from fssa_bayes.policy import (
    LanguageProbe,
    PreferenceRows,
    ReferenceCache,
    SteerableDPOTrainer,
    SteerablePolicy,
    dpo_loss,
    draw_latents,
    fingerprint,
)

pytestmark = pytest.mark.filterwarnings(
    # peft asks for an attribute that transformers has renamed.
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)


@pytest.mark.parametrize("joint", [False, True])
def test_parts_of_a_step_share_its_draws(tmp_path: Path, joint: bool) -> None:
    trainer = make_trainer(tmp_path, joint=joint)
    pairs = trainer.train_dataset

    def draw(step: int) -> Tensor:
        rows = pairs.row[trainer.sampler.pairs_of_step(step)]
        contexts = trainer.train_pairs.contexts
        return draw_latents(trainer.posterior, contexts, rows, step=step, num_draws=2, seed=5)

    trainer.state.global_step = 6
    whole = trainer.sampler.pairs_of_step(6)
    expected = draw(6)
    for part in (whole[:3], whole[[7, 2]], whole):
        z = trainer.training_latents(part)
        place = [whole.tolist().index(pair) for pair in part]
        assert torch.equal(z, expected[:, place])
        assert z.requires_grad == joint
    trainer.state.global_step = 7
    z = trainer.training_latents(trainer.sampler.pairs_of_step(7))
    assert torch.equal(z, draw(7))


class KeepGradients(TrainerCallback):
    """Keeps the gradients of every step, as they are before clipping."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, args, state, control, model, **given) -> None:
        self.gradients.append(
            {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
        )


@pytest.mark.parametrize("num_draws", [1, 3])
@pytest.mark.parametrize("marginal", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
def test_training_begins_at_log_2_exactly(
    tmp_path: Path, num_draws: int, marginal: bool, bf16: bool
) -> None:
    arguments = {"max_steps": 1, "bf16": bf16}
    trainer = make_trainer(tmp_path, num_draws=num_draws, marginal=marginal, arguments=arguments)
    trainer.train()
    expected = dpo_loss(torch.zeros(num_draws, 1), beta=1.0, marginal=marginal).item()
    assert history(trainer) == [expected]
    assert abs(expected - math.log(2)) < 1e-7
    assert history(trainer, "rewards/margins") == [0.0]
    assert history(trainer, "rewards/accuracies") == [0.5]


@pytest.fixture
def moved(randomise):
    """Returns a trainer whose parameters are away from where they start."""

    def make(folder: Path, **options) -> SteerableDPOTrainer:
        trainer = make_trainer(folder, **options)
        with torch.no_grad():
            for parameter in parameters(trainer).values():
                parameter.add_(0.3 * torch.randn_like(parameter))
        return trainer

    return make


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("marginal", [False, True])
def test_gradient_of_a_step_is_that_of_the_formula(
    tmp_path: Path, moved, joint: bool, marginal: bool
) -> None:
    seen = KeepGradients()
    arguments = {"max_steps": 1, "max_grad_norm": 0.0, "learning_rate": 0.0}
    trainer = moved(tmp_path, joint=joint, marginal=marginal, arguments=arguments, callbacks=[seen])
    trainer.train()
    pairs = trainer.train_dataset
    order = next(iter(trainer.get_train_dataloader()))["pair"].tolist()
    # The same, from whole logits.
    policy, guide = trainer.policy, trainer.posterior.__self__
    contexts = trainer.train_pairs.contexts
    z = draw_latents(guide.posterior, contexts, pairs.row[order], step=0, num_draws=2, seed=5)
    batch = pairs.batch(order)
    z = z if joint else z.detach()

    def score(z: Tensor | None) -> Tensor:
        logits = policy(batch.input_ids, batch.attention_mask, z=z)
        token = logits[:, :-1].log_softmax(-1).gather(-1, batch.input_ids[:, 1:, None])[..., 0]
        return (token * batch.response_mask[:, 1:]).sum(-1)

    with torch.no_grad(), policy.reference():
        base = score(None)
    rho = torch.stack([score(torch.cat([draw, draw])) - base for draw in z])
    margin = 0.5 * (rho[:, :8] - rho[:, 8:])
    loss = -margin.sigmoid().mean(0).log() if marginal else -margin.sigmoid().log().mean(0)
    assert history(trainer)[0] == pytest.approx(loss.mean().item(), rel=1e-5)
    assert abs(loss.mean().item() - math.log(2)) > 0.01
    names = list(parameters(trainer))
    wanted = torch.autograd.grad(
        loss.mean(), [dict(trainer.model.named_parameters())[name] for name in names]
    )
    for name, gradient in zip(names, wanted, strict=True):
        assert torch.allclose(seen.gradients[0][name], gradient, rtol=1e-4, atol=1e-5), name
        assert gradient.abs().max() > 0, name
    assert joint == any("guide" in name for name in names)


def test_padding_has_no_effect(tmp_path: Path, moved) -> None:
    trainer = moved(tmp_path)
    batch = trainer.train_dataset.batch([0, 1, 2, 8])
    z = torch.randn(2, 8, 2)
    expected = trainer.policy.sequence_log_prob(batch, z)
    wide = type(batch)(
        torch.nn.functional.pad(batch.input_ids, (0, 5), value=3),
        torch.nn.functional.pad(batch.attention_mask, (0, 5)),
        torch.nn.functional.pad(batch.response_mask, (0, 5)),
    )
    wide.input_ids[wide.attention_mask == 0] = 4
    assert torch.allclose(trainer.policy.sequence_log_prob(wide, z), expected, atol=1e-5)
    # Other prompts are other conditions: the masks stay with the responses.
    rows = make_rows()
    rows.prompts = ["say now " + prompt for prompt in rows.prompts]
    longer = rows.tokenise(make_tokenizer()).batch([0, 1, 2, 8])
    kept = [
        tokens[mask].tolist()
        for tokens, mask in zip(longer.input_ids, longer.response_mask, strict=True)
    ]
    assert kept == [
        tokens[mask].tolist()
        for tokens, mask in zip(batch.input_ids, batch.response_mask, strict=True)
    ]


@pytest.mark.slow
def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    runs = []
    for number, (size, parts) in enumerate(((8, 1), (4, 2), (2, 4))):
        seen = KeepGradients()
        arguments = {"per_device_train_batch_size": size, "gradient_accumulation_steps": parts}
        trainer = make_trainer(tmp_path / str(number), arguments=arguments, callbacks=[seen])
        trainer.train()
        runs.append((trainer, seen))
    (whole, gradients), *parted = runs
    assert len(history(whole)) == 6
    for trainer, seen in parted:
        assert history(trainer) == pytest.approx(history(whole), rel=1e-5)
        assert history(trainer, "rewards/margins") == pytest.approx(
            history(whole, "rewards/margins"), abs=1e-5
        )
        for mine, theirs in zip(seen.gradients, gradients.gradients, strict=True):
            for name in mine:
                assert torch.allclose(mine[name], theirs[name], rtol=1e-3, atol=1e-5), name
    # And other draws would be seen.
    other = make_trainer(tmp_path / "other", arguments={"seed": 6})
    other.train()
    assert history(other)[1:] != pytest.approx(history(whole)[1:], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["group_by_length", "random"])
def test_references_from_a_cache_are_those_computed(tmp_path: Path, strategy: str) -> None:
    arguments = {"max_steps": 9, "train_sampling_strategy": strategy}
    live = make_trainer(tmp_path / "live", arguments=arguments)
    live.train()
    owner = fingerprint(live.policy)
    calls = []
    for _ in range(2):
        cache = ReferenceCache(tmp_path / "cache", owner)
        known = make_trainer(tmp_path / "known", arguments=arguments, reference=cache)
        layer = known.policy.base.model.layers[0]
        layer.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
        known.train()
        for name, value in parameters(known).items():
            torch.testing.assert_close(value, parameters(live)[name], rtol=1e-4, atol=1e-5)
    # Two draws in 9 steps, twice; and once each of the 2 batches that hold all 16 sequences (beside
    # the one that finds out whether prompts can be shared, twice two).
    assert calls.count(True) == 36
    assert calls.count(False) == 2 + 4
    other = ReferenceCache(tmp_path / "other", "another model")
    with pytest.raises(ValueError, match="must be the cache of the policy's base model"):
        make_trainer(tmp_path, reference=other)


@pytest.mark.slow
@pytest.mark.parametrize("marginal", [False, True])
@pytest.mark.parametrize("joint", [False, True])
def test_opposite_preferences_are_learned_in_both_directions(
    tmp_path: Path, joint: bool, marginal: bool
) -> None:
    arguments = {"max_steps": 100, "learning_rate": 1e-2}
    trainer = make_trainer(tmp_path, joint=joint, marginal=marginal, arguments=arguments)
    before = [value.clone() for value in trainer.posterior.__self__.parameters()]
    trainer.train()
    policy, pairs = trainer.policy, trainer.train_dataset
    batch = pairs.batch(range(8))  # The first person's, who prefers red.
    margins = []
    for first in (0.8, -0.8, 0.0):
        z = torch.tensor([[first, 0.0]]).expand(16, 2)
        with torch.no_grad():
            score = policy.sequence_log_prob(batch, z)
            with policy.reference():
                score = score - policy.sequence_log_prob(batch)
        margins.append(score[:8] - score[8:])
    red, blue, nobody = margins
    assert (red > 1).all()
    assert (blue < -1).all()
    assert (nobody < red).all()
    assert (nobody > blue).all()
    guide = trainer.posterior.__self__
    moved = any((old != new).any() for old, new in zip(before, guide.parameters(), strict=True))
    assert moved == joint
    assert all(parameter.grad is None for parameter in guide.parameters()) or joint


def test_the_guide_learns_at_a_rate_of_its_own(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, joint=True, guide_learning_rate=0.0)
    start = parameters_to_vector(trainer.guide.parameters()).clone()
    trainer.train()
    assert torch.equal(parameters_to_vector(trainer.guide.parameters()), start)
    rates = [group["lr"] for group in trainer.optimizer.param_groups]
    assert rates == [3e-3, 3e-3, 0.0]


@pytest.mark.slow
def test_evaluation_is_the_same_every_time(tmp_path: Path) -> None:
    rows = make_rows()
    evaluation, _ = rows.split_prompts(0.5)
    arguments = {"eval_strategy": "steps", "eval_steps": 10, "max_steps": 60, "learning_rate": 1e-2}
    arguments |= {"save_strategy": "steps", "save_steps": 10, "load_best_model_at_end": True}
    trainer = make_trainer(
        tmp_path,
        arguments=arguments,
        eval_dataset=evaluation.tokenise(make_tokenizer()),
        eval_contexts=make_contexts(evaluation, max_context=3),
    )
    first = trainer.evaluate()
    assert first["eval_loss"] == pytest.approx(math.log(2), rel=1e-6)
    assert first["eval_rewards/accuracies"] == 0.5
    trainer.train()
    losses = history(trainer, "eval_loss")[1:]
    last = trainer.evaluate()
    assert last["eval_loss"] == pytest.approx(min(losses), rel=1e-5)  # That of the best step.
    assert trainer.evaluate()["eval_loss"] == last["eval_loss"]
    assert last["eval_rewards/accuracies"] > 0.6
    # By hand, one row at a time.
    pairs = trainer.eval_dataset
    z = draw_latents(
        trainer.posterior, trainer.eval_pairs.contexts, pairs.row, step=0, num_draws=2, seed=5
    )
    batch = pairs.batch(range(len(pairs)))
    with torch.no_grad():
        score = trainer.policy.sequence_log_prob(batch, torch.cat([z, z], 1))
        with trainer.policy.reference():
            score = score - trainer.policy.sequence_log_prob(batch)
    chosen, rejected = score.chunk(2, -1)
    losses = dpo_loss(chosen - rejected, beta=0.5)
    assert last["eval_loss"] == pytest.approx(losses.mean().item(), rel=1e-5)
    assert last["eval_rewards/margins"] == pytest.approx(
        0.5 * (chosen - rejected).mean().item(), rel=1e-5
    )


def test_evaluation_follows_a_guide_that_learns(tmp_path: Path, moved) -> None:
    rows = make_rows()
    trainer = moved(
        tmp_path,
        joint=True,
        eval_dataset=rows.tokenise(make_tokenizer()),
        eval_contexts=make_contexts(rows),
    )
    before = trainer.evaluate()["eval_loss"]
    with torch.no_grad():
        trainer.guide.weight.mul_(-1)
    after = trainer.evaluate()["eval_loss"]
    assert abs(after - before) > 0.01
    with torch.no_grad():
        trainer.guide.weight.mul_(-1)
    assert trainer.evaluate()["eval_loss"] == before


def test_checkpointing_of_activations_changes_nothing(tmp_path: Path) -> None:
    plain, checkpointed = (
        make_trainer(tmp_path / str(on), arguments={"activation_checkpointing": on})
        for on in (False, True)
    )
    calls = []
    layer = checkpointed.policy.base.model.layers[0].mlp
    layer.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    plain.train()
    checkpointed.train()
    assert digest(plain) == digest(checkpointed)
    assert calls.count(True) == 6 * 4  # Two draws, and each once again in backward.


def test_training_leaves_the_random_state_alone(tmp_path: Path) -> None:
    random.seed(1)
    np.random.seed(1)

    def state() -> tuple:
        return (
            torch.get_rng_state().tolist(),
            random.getstate(),
            np.random.get_state()[1].tolist(),
        )

    before = state()
    trainer = make_trainer(tmp_path)
    trainer.train()
    assert state() == before
    torch.manual_seed(99)
    other = make_trainer(tmp_path)
    other.train()
    assert digest(other) == digest(trainer)


class Spoil(TrainerCallback):
    """Puts a NaN into the modulation before a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args, state, control, model, **given) -> None:
        if state.global_step == self.step:
            with torch.no_grad():
                next(iter(model.policy.conditioning.parameters())).fill_(torch.nan)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, arguments=SAVING, callbacks=[Spoil(5)])
    message = (
        r"loss must be finite, got nan at step 5 in row \d+ of train_dataset \(user \d, prompt "
        r"'say p\d'\), and 8 such pairs of 8; the last checkpoint is '.*checkpoint-4'"
    )
    with pytest.raises(FloatingPointError, match=message):
        trainer.train()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-4"]
    whole = make_trainer(tmp_path / "whole", arguments=SAVING)
    whole.train()
    resumed = make_trainer(tmp_path, arguments=SAVING)
    resumed.train(resume_from_checkpoint=True)
    assert digest(resumed) == digest(whole)


def test_a_single_bad_row_is_named(tmp_path: Path) -> None:
    guide = ColourGuide()
    rows = make_rows()

    def posterior(batch):
        found = guide.posterior(batch)
        if batch.people is not None and batch.people[0] == 3 and batch.mask.shape[1] == 4:
            found.base_dist.loc = found.base_dist.loc + torch.nan
        return found

    trainer = SteerableDPOTrainer(
        make_policy(),
        make_arguments(tmp_path, max_steps=40),
        rows.tokenise(make_tokenizer()),
        make_contexts(rows, max_context=4),
        posterior,
    )
    with pytest.raises(FloatingPointError, match=r"\(user 3, .* no checkpoint yet"):
        trainer.train()


def test_gradients_that_are_not_finite_do_not_reach_the_parameters(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    parameter = next(iter(trainer.policy.conditioning.parameters()))
    parameter.register_hook(lambda gradient: gradient * torch.inf)
    before = digest(trainer)
    with pytest.raises(FloatingPointError, match="gradients must be finite, got others at step 0"):
        trainer.train()
    assert digest(trainer) == before


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    rows = make_rows()
    pairs, contexts, guide = rows.tokenise(make_tokenizer()), make_contexts(rows), ColourGuide()

    def make(**options) -> SteerableDPOTrainer:
        given = {
            "policy": make_policy(),
            "args": make_arguments(tmp_path),
            "train_dataset": pairs,
            "contexts": contexts,
            "posterior": guide.posterior,
        }
        return SteerableDPOTrainer(**{**given, **options})

    make()
    others = make_contexts(make_rows())
    bad = {
        "beta must be positive and finite, got -1": {"beta": -1},
        "num_draws must be at least 1, got 0": {"num_draws": 0},
        "contexts must be of the rows of train_dataset": {"contexts": others},
        "eval_contexts must be of the rows of eval_dataset": {"eval_dataset": pairs},
        "must have at least the 33 pairs of a batch": {
            "args": make_arguments(tmp_path, per_device_train_batch_size=33)
        },
        "args must not ask for label_smoothing_factor": {
            "args": make_arguments(tmp_path, label_smoothing_factor=0.1)
        },
        r"z of the policy's width 2, .* got \(1, 3\)": {
            "posterior": lambda batch: torch.distributions.Normal(
                torch.zeros(batch.num_users, 3), 1.0
            )
        },
    }
    for message, options in bad.items():
        with pytest.raises(ValueError, match=message):
            make(**options)


def test_evaluation_is_of_the_pairs_that_the_trainer_has_contexts_of(tmp_path: Path) -> None:
    rows = make_rows()
    pairs = rows.tokenise(make_tokenizer())
    with pytest.raises(ValueError, match="eval_dataset and eval_contexts must be given"):
        make_trainer(tmp_path).evaluate(pairs)
    given = {"eval_dataset": pairs, "eval_contexts": make_contexts(rows)}
    trainer = make_trainer(tmp_path, **given)
    others = rows.tokenise(make_tokenizer())
    for measure in (trainer.evaluate, trainer.predict):
        with pytest.raises(ValueError, match="eval_dataset must be the one that the trainer was"):
            measure(others)
    state = torch.get_rng_state()
    found = trainer.evaluate(pairs)
    assert torch.equal(torch.get_rng_state(), state)
    assert trainer.predict(pairs).metrics["test_loss"] == found["eval_loss"]
    assert trainer.predict(pairs).predictions.shape == (len(pairs), 2, 4)
    with torch.no_grad():
        next(iter(trainer.policy.conditioning.parameters())).fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="loss must be finite, .* of eval_dataset"):
        trainer.evaluate()


def test_a_reference_that_is_not_finite_is_named(tmp_path: Path) -> None:
    rows, base = make_rows(), make_base()
    with torch.no_grad():
        base.lm_head.weight.fill_(torch.nan)
    policy = SteerablePolicy.from_model(base, make_tokenizer(), latent_dim=2, lora_rank=2)
    trainer = SteerableDPOTrainer(
        policy,
        make_arguments(tmp_path, train_sampling_strategy="group_by_length"),
        rows.tokenise(make_tokenizer()),
        make_contexts(rows),
        ColourGuide().posterior,
        reference=ReferenceCache(tmp_path / "cache", fingerprint(policy)),
    )
    message = r"reference .* must be finite, got nan at step 0 in row \d+ of train_dataset"
    with pytest.raises(FloatingPointError, match=message):
        trainer.train()


def test_pairs_beyond_the_models_positions_are_refused(tmp_path: Path) -> None:
    records = [
        {"prompt": "say p1", "chosen": 28 * " red", "rejected": " blue", "user": user}
        for user in range(8)
    ]
    rows = PreferenceRows.from_records(records)
    pairs = rows.tokenise(make_tokenizer())
    given = (make_contexts(rows), ColourGuide().posterior)
    SteerableDPOTrainer(make_policy(), make_arguments(tmp_path), pairs, *given)  # 32 tokens.
    records[3]["chosen"] += " red"
    rows = PreferenceRows.from_records(records)
    pairs = rows.tokenise(make_tokenizer())
    with pytest.raises(ValueError, match="train_dataset must fit into the model's 32 positions"):
        SteerableDPOTrainer(
            make_policy(), make_arguments(tmp_path), pairs, make_contexts(rows), given[1]
        )


def test_a_guide_that_cannot_learn_is_refused(tmp_path: Path) -> None:
    rows = make_rows()

    def build(posterior, guide) -> SteerableDPOTrainer:
        return SteerableDPOTrainer(
            make_policy(),
            make_arguments(tmp_path),
            rows.tokenise(make_tokenizer()),
            make_contexts(rows, max_context=4),
            posterior,
            guide=guide,
        )

    guide = ColourGuide()
    build(guide.posterior, guide)
    with pytest.raises(ValueError, match="guide must be what posterior draws z by"):
        build(guide.posterior, ColourGuide())
    with pytest.raises(ValueError, match="guide must be what posterior draws z by"):
        build(torch.no_grad()(guide.posterior), guide)
    with pytest.raises(ValueError, match="guide must have parameters that require a gradient"):
        build(guide.posterior, guide.requires_grad_(False))


# Losses, language and learning rates.


def test_several_losses_are_trained_and_logged_as_trl_does(tmp_path: Path, moved) -> None:
    arguments = {"max_steps": 1, "learning_rate": 0.0}
    options = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}
    trainer = moved(tmp_path, arguments=arguments, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Random parameters lower the chosen answers' probability.
        trainer.train()
    pairs = trainer.train_dataset
    order = trainer.sampler.pairs_of_step(0)
    contexts = trainer.train_pairs.contexts
    z = draw_latents(trainer.posterior, contexts, pairs.row[order], step=0, num_draws=2, seed=5)
    batch = pairs.batch(order)
    with torch.no_grad():
        score = trainer.policy.sequence_log_prob(batch, torch.cat([z, z], 1))
        with trainer.policy.reference():
            ratio = score - trainer.policy.sequence_log_prob(batch)
    chosen, rejected = (0.5 * ratio).chunk(2, -1)
    tokens = batch.response_mask.sum(-1)
    sft = -(score / tokens).chunk(2, -1)[0].mean()
    loss = -(chosen - rejected).sigmoid().log().mean() + 0.5 * sft
    expected = {
        "loss": loss,
        "rewards/chosen": chosen.mean(),
        "rewards/rejected": rejected.mean(),
        "rewards/margins": (chosen - rejected).mean(),
        "logps/chosen": score[:, :8].mean(),
        "logps/rejected": score[:, 8:].mean(),
    }
    for name, value in expected.items():
        assert history(trainer, name)[0] == pytest.approx(value.item(), rel=1e-4), name


def test_a_fall_of_the_chosen_responses_warns_once(tmp_path: Path) -> None:
    """Of a trained policy whose guide then says the opposite of everybody."""
    arguments = {"max_steps": 60, "learning_rate": 1e-2}
    trained = make_trainer(tmp_path, arguments=arguments)
    trained.train()  # Warns of nothing.
    guide, rows = ColourGuide(), trained.train_dataset.rows
    with torch.no_grad():
        guide.weight.neg_()
    trainer = SteerableDPOTrainer(
        trained.policy,
        make_arguments(tmp_path, learning_rate=0.0),
        trained.train_dataset,
        make_contexts(rows, max_context=4, min_context=4),
        guide.posterior,
        beta=0.5,
    )
    with pytest.warns(UserWarning, match="log-probability of chosen responses has fallen") as seen:
        trainer.train()
    assert history(trainer, "rewards/chosen")[0] < -0.5  # A nat, by β.
    assert len([w for w in seen if "has fallen" in str(w.message)]) == 1


def test_training_stops_at_the_budget_of_divergence(tmp_path: Path) -> None:
    def train(folder: str, budget: float | None) -> SteerableDPOTrainer:
        arguments = {"max_steps": 12, "learning_rate": 3e-2}
        policy = make_policy()
        z = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        probe = LanguageProbe.of(policy, PROMPTS[:3], z, max_new_tokens=4)
        options = {"probe": probe, "kl_budget": budget, "loss_type": ["sigmoid", "sft"]}
        trainer = make_trainer(tmp_path / folder, arguments=arguments, **options)
        trainer.train()
        return trainer

    whole = history(train("whole", None), "language/kl")
    assert len(whole) == 12
    assert whole[0] < 0.1 < max(whole)
    budget = (whole[5] + max(whole[:5])) / 2
    first = next(step for step, kl in enumerate(whole) if kl > budget)
    stopped = train("stopped", budget)
    assert history(stopped, "language/kl") == whole[: first + 1]
    assert stopped.state.global_step == first + 1 < 12
    with pytest.raises(ValueError, match="kl_budget needs a probe"):
        make_trainer(tmp_path, kl_budget=0.1)


def test_training_stops_where_held_out_pairs_get_worse(tmp_path: Path) -> None:
    """By the callback of transformers: held-out people with the opposite preferences."""
    rows = make_rows()
    opposite = PreferenceRows(rows.prompts, rows.rejected, rows.chosen, rows.users)
    arguments = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 20, "learning_rate": 1e-2}
    arguments |= {"save_strategy": "steps", "save_steps": 1, "load_best_model_at_end": True}
    arguments |= {"metric_for_best_model": "eval_loss", "greater_is_better": False}
    trainer = make_trainer(
        tmp_path,
        arguments=arguments,
        callbacks=[EarlyStoppingCallback(2)],
        eval_dataset=opposite.tokenise(make_tokenizer()),
        eval_contexts=make_contexts(opposite, max_context=0),
    )
    trainer.train()
    assert 3 <= trainer.state.global_step < 20


@pytest.mark.parametrize(
    ("conditioning", "rate", "expected"),
    [("gated", None, 3e-3), ("gated", 1e-4, 1e-4), ("film", None, 3e-4), ("film", 2e-4, 2e-4)],
)
def test_the_conditioning_learns_at_a_rate_of_its_own(
    tmp_path: Path, conditioning: str, rate: float | None, expected: float
) -> None:
    rows, guide = make_rows(), ColourGuide()
    policy = SteerablePolicy.from_model(
        make_base(), make_tokenizer(), latent_dim=2, lora_rank=2, conditioning=conditioning
    )
    trainer = SteerableDPOTrainer(
        policy,
        make_arguments(tmp_path),
        rows.tokenise(make_tokenizer()),
        make_contexts(rows),
        guide.posterior,
        conditioning_learning_rate=rate,
    )
    trainer.create_optimizer()
    groups = trainer.optimizer.param_groups
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    own = {id(p) for p in policy.conditioning.parameters()}
    assert set(rates) == {id(p) for p in policy.trainable_parameters()}
    assert sum(len(group["params"]) for group in groups) == len(rates)
    for number, found in rates.items():
        assert found == pytest.approx(expected if number in own else 3e-3)
