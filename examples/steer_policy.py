"""Does a language model follow a person after a handful of that person's choices?

Trains a small language model from scratch on answers in four styles (`fssa_bayes.datasets.styles`:
terse or long, formal or casual), fits the preference model to choices of people of four types, and
then a policy under z ~ q(z | a few choices), by preference optimisation with the guide frozen. One
policy serves all four types: it is never told a type, and nothing is trained for a new person.

Everything is measured on people and prompts that training has not seen, on pairs of which every
one divides the types two against two:

1. Accuracy of the implicit reward for each type after 0, 1, 2, 5 and 10 choices, beside an oracle, a
   policy trained for that type alone.
2. Traits of what it writes, with standard errors by person: both ends of both traits rise.
3. A continuum: rates of the traits along a line between two people's z.
4. How often people prefer its answers to the base model's, and how much averaging over the
   posterior changes what it writes.

    python examples/steer_policy.py

`--model PATH` takes a pretrained instruct model with a chat template in place of the small one
(`--beta .1` and a smaller `--learning-rate` suit it), `--device cuda` a GPU. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from pyro import distributions as dist
from scipy.stats import spearmanr
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from tokenizers.trainers import WordLevelTrainer
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    TrainingArguments,
)

from fssa_bayes import HeterogeneousBTL, ImportanceWeightedELBO, NeuralProcessGuide, Sleep, fit
from fssa_bayes._random import seeded
from fssa_bayes.datasets import styles
from fssa_bayes.embedding import embed_texts, load_encoder
from fssa_bayes.policy import (
    Contexts,
    PreferenceRows,
    ResponseBatch,
    SteerableDPOTrainer,
    SteerablePolicy,
    draw_latents,
    interpolate,
)
from fssa_bayes.policy.evaluation import (
    accuracy,
    accuracy_by_context,
    implicit_margin,
    posterior_gap,
    trait_rates,
    win_rate,
)

NUM_CONTEXTS = (0, 1, 2, 5, 10)
LATENT_DIM = 2
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}<end> "
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
TRAITS = {"long": styles.is_long, "formal": styles.formality}


def main(args: argparse.Namespace) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter(), time.process_time()
    train_prompts, test_prompts = np.split(styles.prompts(), [1500])
    path = args.model or pretrain(train_prompts, args)
    report("language model", start)
    people = Task(train_prompts, args.users, path, args, seed=args.seed)
    others = Task(test_prompts, args.test_users, path, args, seed=args.seed + 1_000_000)
    report("embeddings", start)
    model, guide = fit_reward(people, args)
    report("reward model", start)
    policy = train_policy(path, people, guide.posterior, args.steps, args)
    report("policy", start)
    oracles = [train_oracle(path, people, t, args) for t in range(len(styles.TYPES))]
    report("oracles", start)
    show_accuracy(policy, oracles, others, guide, args)
    report("accuracy", start)
    show_traits(policy, model, others, guide, args)
    report("traits", start)
    show_continuum(policy, others, guide, args)
    report("continuum", start)


class Task:
    """Holds simulated people, their choices as text, tokens and features, and their contexts."""

    def __init__(
        self, prompts: np.ndarray, users: int, path: Path, args: argparse.Namespace, seed: int
    ) -> None:
        table, self.type = styles.simulate(users, args.choices, prompts=list(prompts), seed=seed)
        self.rows = PreferenceRows(
            [ask(prompt) for prompt in table["prompt"]],
            [answer(text) for text in table["chosen"]],
            [answer(text) for text in table["rejected"]],
            table["user"],
        )
        self.encoder, tokenizer = load_encoder(path, device=args.device)
        self.tokenizer = tokenizer
        self.pairs = self.rows.tokenise(tokenizer)
        self.preferences = self.rows.to_preferences(self.embed, seed=seed)
        self.contexts = Contexts(self.rows, self.preferences, max_context=args.choices, seed=seed)

    def embed(self, texts: list[str]) -> torch.Tensor:
        return embed_texts(texts, self.encoder, self.tokenizer, progress_bar=False)

    @property
    def row_type(self) -> np.ndarray:
        return np.array(styles.TYPES, dtype=object)[self.type[self.rows.user]]


def ask(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": str(prompt)}]


def answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


# ------------------------------------------------------------------ training


def pretrain(prompts: np.ndarray, args: argparse.Namespace) -> Path:
    """Trains a small Llama and its tokenizer on answers in all four styles, equally often."""
    rng = np.random.default_rng(args.seed)
    asked = np.repeat(prompts, 6)
    texts = [styles.write(str(p), int(rng.integers(len(styles.TYPES))), rng) for p in asked]
    tokenizer = train_tokenizer([*map(str, prompts), *texts])
    talks = [ask(prompt) + answer(text) for prompt, text in zip(asked, texts, strict=True)]
    encoded = tokenizer.apply_chat_template(
        talks, padding=True, return_dict=True, return_tensors="pt"
    )
    tokens, mask = encoded["input_ids"], encoded["attention_mask"].bool()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    with seeded(args.seed):
        model = LlamaForCausalLM(config).to(args.device)
        optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, 5e-3, total_steps=args.pretrain_steps, pct_start=0.1
        )
        for _ in range(args.pretrain_steps):
            rows = torch.randint(len(tokens), (32,))
            width = int(mask[rows].sum(-1).max())
            inputs = tokens[rows, :width].to(args.device)
            real = mask[rows, :width].to(args.device)
            loss = model(inputs, attention_mask=real, labels=inputs.masked_fill(~real, -100)).loss
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
    print(f"language model: {model.num_parameters():,} parameters, {loss.item():.3f} nats a token")
    model.save_pretrained(args.out / "language_model")
    tokenizer.save_pretrained(args.out / "language_model")
    return args.out / "language_model"


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Builds a tokenizer of words and punctuation with a chat template."""
    tokenizer = Tokenizer(WordLevel(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("[.,!?]"), "isolated")]
    )
    tokenizer.decoder = decoders.WordPiece(cleanup=True)  # No space before punctuation.
    special = ["<pad>", "<unk>", "<end>", "user:", "assistant:"]
    tokenizer.train_from_iterator(
        texts, WordLevelTrainer(special_tokens=special, show_progress=False)
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="<end>"
    )
    fast.chat_template = TEMPLATE
    return fast


def fit_reward(
    people: Task, args: argparse.Namespace
) -> tuple[HeterogeneousBTL, NeuralProcessGuide]:
    """Fits the preference model and its guide on mean hidden states of the language model."""
    with seeded(args.seed):
        model = HeterogeneousBTL(people.preferences.num_features, LATENT_DIM, utility=args.utility)
        guide = NeuralProcessGuide(model)
    stages = [ImportanceWeightedELBO(steps=args.reward_steps), Sleep(steps=args.reward_steps)]
    fit(
        model,
        guide,
        people.preferences,
        objective=stages,
        learning_rate=5e-3,
        validation=None,
        seed=args.seed,
        progress_bar=False,
    )
    return model, guide


def train_policy(path, people: Task, posterior, steps: int, args: argparse.Namespace):
    """Trains a policy under z ~ q(z | context), with the guide frozen."""
    policy = SteerablePolicy.from_pretrained(
        path, latent_dim=LATENT_DIM, device=args.device, seed=args.seed
    )
    arguments = TrainingArguments(
        output_dir=str(args.out / "training"),
        max_steps=steps,
        per_device_train_batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=10,
        logging_steps=50,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=args.device == "cpu",
        seed=args.seed,
    )
    trainer = SteerableDPOTrainer(
        policy,
        arguments,
        people.pairs,
        people.contexts,
        posterior,
        beta=args.beta,
        num_draws=args.draws,
        marginal=args.marginal,
    )
    trainer.train()
    return policy


def train_oracle(path: Path, people: Task, own_type: int, args: argparse.Namespace):
    """Trains a policy for one type alone: its people's choices only, and z the same for all."""
    own = Subset(people, people.type[people.rows.user] == own_type, args)

    def same(batch):
        return dist.Delta(torch.zeros(batch.num_users, LATENT_DIM)).to_event(1)

    return train_policy(path, own, same, args.oracle_steps, args)


class Subset:
    """The same task with fewer rows."""

    def __init__(self, whole: Task, keep: np.ndarray, args) -> None:
        self.rows = whole.rows.subset(keep)
        self.pairs = self.rows.tokenise(whole.tokenizer)
        features = torch.zeros(len(self.rows.item_texts()), 1)
        self.contexts = Contexts(self.rows, self.rows.to_preferences(features), max_context=0)


# ------------------------------------------------------------------ what to see


def show_accuracy(policy, oracles, others: Task, guide, args) -> None:
    group, user = others.row_type[others.pairs.row], others.rows.user[others.pairs.row]
    table = accuracy_by_context(
        policy,
        others.pairs,
        others.contexts,
        guide.posterior,
        group,
        num_contexts=NUM_CONTEXTS,
        num_draws=args.eval_draws,
        seed=args.seed,
    )
    z = torch.zeros(LATENT_DIM)
    best = {}
    for name, oracle in zip(styles.TYPES, oracles, strict=True):
        own = np.flatnonzero(group == name)
        margin = implicit_margin(oracle, others.pairs, z)
        t = accuracy(margin[own], user[own])
        best[name] = (t.value[0], t.standard_error[0])
    wide = table.pivot(index="group", columns="contexts", values="value").loc[list(styles.TYPES)]
    se = table.pivot(index="group", columns="contexts", values="standard_error").loc[
        list(styles.TYPES)
    ]
    print((100 * wide).round(1))
    print((100 * se).round(1))
    print(best)
    for name in styles.TYPES:
        print(
            name, "share of the way", round((wide.loc[name, 10] - 0.5) / (best[name][0] - 0.5), 3)
        )


def show_traits(policy, model, others: Task, guide, args) -> None:
    rng = np.random.default_rng(args.seed)
    rows = np.concatenate(
        [
            rng.choice(np.flatnonzero(others.rows.user == u), args.texts, replace=False)
            for u in range(len(others.rows.user_names))
        ]
    )
    prompts = [others.rows.prompts[r] for r in rows]
    user, group = others.rows.user[rows], others.row_type[rows]
    tables = []
    for size in NUM_CONTEXTS:
        z = draw_latents(
            guide.posterior,
            others.contexts,
            rows,
            step=1,
            num_draws=1,
            seed=args.seed,
            num_context=size,
        ).detach()
        texts = policy.generate(
            prompts, z[0], max_new_tokens=args.max_new_tokens, seed=args.seed, batch_size=128
        )
        tables.append(trait_rates(texts, TRAITS, user, group).assign(contexts=size))
        print(size, texts[:4])
    table = pd.concat(tables)
    print(table.pivot(index=["trait", "group"], columns="contexts", values="value").round(3))
    base = (
        policy.generate(
            prompts, None, max_new_tokens=args.max_new_tokens, seed=args.seed, batch_size=128
        )
        if False
        else None
    )
    with policy.reference():
        base = policy.generate(
            prompts, max_new_tokens=args.max_new_tokens, seed=args.seed, batch_size=128
        )
    zr = draw_latents(
        guide.posterior,
        others.contexts,
        rows,
        step=1,
        num_draws=8,
        seed=args.seed,
        num_context=others.contexts.available(0).size,
    ).detach()

    @torch.no_grad()
    def reward(responses):
        f = others.embed(
            [f"user: {p[0]['content']}\nassistant: {t}" for p, t in zip(prompts, responses)]
        )
        return model.item_utility(f, zr).diagonal(dim1=-2, dim2=-1)

    print("win", win_rate(texts, base, reward, user, group))
    for size in (1, 10):
        z = draw_latents(
            guide.posterior,
            others.contexts,
            rows,
            step=1,
            num_draws=8,
            seed=args.seed,
            num_context=size,
        ).detach()
        t = policy.generate(
            prompts, z[0], max_new_tokens=args.max_new_tokens, seed=args.seed, batch_size=128
        )
        batch = ResponseBatch.from_texts(others.tokenizer, prompts, [answer(x or ".") for x in t])
        few = slice(0, 120)
        print(
            "gap",
            size,
            posterior_gap(policy, batch.select(torch.arange(120)), z[:, :120], user[few]),
        )


def show_continuum(policy, others: Task, guide, args) -> None:
    means = []
    for t in (0, 3):
        person = int(np.flatnonzero(others.type == t)[0])
        row = int(np.flatnonzero(others.rows.user == person)[0])
        means.append(
            draw_latents(
                guide.posterior,
                others.contexts,
                [row],
                step=2,
                num_draws=200,
                seed=args.seed,
                num_context=10,
            )
            .mean((0, 1))
            .detach()
        )
    print("z", means)
    line = interpolate(*means, 11)
    prompts = [ask(p) for p in styles.prompts()[1500:]][: args.line_texts]
    rates = []
    for z in line:
        texts = policy.generate(
            prompts, z, max_new_tokens=args.max_new_tokens, seed=args.seed, batch_size=128
        )
        rates.append([np.mean([f(t) for t in texts]) for f in TRAITS.values()])
    rates = np.array(rates)
    print(rates.round(3).T)
    for k, name in enumerate(TRAITS):
        print(name, spearmanr(np.arange(11), rates[:, k]).statistic)


def report(stage: str, start: tuple[float, float]) -> None:
    wall, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
    print(f"[{stage}: {wall:.0f} s, {cpu:.0f} CPU s]", flush=True)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--users", type=int, default=200)
    parser.add_argument("--test-users", type=int, default=48)
    parser.add_argument("--choices", type=int, default=24)
    parser.add_argument("--pretrain-steps", type=int, default=1000)
    parser.add_argument("--reward-steps", type=int, default=400)
    parser.add_argument("--utility", default="bilinear")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--oracle-steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--draws", type=int, default=1)
    parser.add_argument("--eval-draws", type=int, default=4)
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--line-texts", type=int, default=300)
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--marginal", action="store_true")
    parser.add_argument("--beta", type=float, default=1.0)
    parser.add_argument("--learning-rate", type=float, default=5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("output"))
    return parser.parse_args(argv)


if __name__ == "__main__":
    main(parse_args())
