"""Does a language model follow a person after a handful of that person's choices?

Trains a small language model from scratch on answers in four styles (`fssa_bayes.datasets.styles`:
terse or long, formal or casual), fits the preference model to choices of people of four types, and
then one policy under z ~ q(z | choices), by preference optimisation with the guide frozen. The
policy is never told a type, and nothing is trained for a new person. Oracles, policies trained for
one type alone, show what could be reached.

What to see, of people and prompts that training has not met, on pairs that divide the types two
against two:

1. The implicit reward's accuracy starts at a half and comes close to the oracle's for every type.
2. What it writes follows: both ends of both traits rise with the number of choices.
3. On lines between the z of people of two types the traits change step by step.
4. People would choose its answers over the base model's; averaging over the posterior changes what
   it writes where little is known, and hardly where much is.

    python examples/steer_policy.py

About three minutes of one core. `--model PATH` takes a pretrained instruct model in place of the
small one, `--device cuda` a GPU. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import transformers
from arguments import Parser, device, real, run, whole
from pyro import distributions as dist
from scipy.stats import spearmanr
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from tokenizers.trainers import WordLevelTrainer
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    PrinterCallback,
    TrainingArguments,
)

from fssa_bayes import HeterogeneousBTL, ImportanceWeightedELBO, NeuralProcessGuide, Sleep, fit
from fssa_bayes.data.texts import embed_texts, load_encoder
from fssa_bayes.datasets import styles
from fssa_bayes.policy import (
    Contexts,
    PreferenceRows,
    ResponseBatch,
    SteerableDPOTrainer,
    SteerablePolicy,
)
from fssa_bayes.policy.evaluation import (
    accuracy,
    accuracy_by_context,
    draw_given,
    implicit_margin,
    posterior_gap,
    trait_rates,
    win_rate,
)
from fssa_bayes.posterior import corrected

LATENT_DIM = 2
CONTEXTS = (0, 1, 2, 5, 10)
CHOICES = 24  # Of every person.
LONGEST = 48  # Tokens of an answer.
LINE = 11  # Points between two people.
TRAITS = {"long": styles.is_long, "formal": styles.formality}
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}<end> "
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def main(args: argparse.Namespace) -> None:
    if args.quick:
        args.users, args.test_users, args.pretrain_steps, args.reward_steps = 16, 8, 30, 10
        args.steps, args.draws, args.prompts, args.texts, args.batch_size = 4, 2, 2, 8, 8
    if args.model is None:  # Threads cost a network this small more than they bring.
        torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    clock = Clock()
    prompts, new_prompts = styles.prompts()[:1500], styles.prompts()[1500:]
    path = pretrain(prompts, args) if args.model is None else args.model
    clock("language model")
    task = Task(path, prompts, args.users, args, seed=args.seed)
    test = Task(path, new_prompts, args.test_users, args, seed=args.seed + 1_000_000)
    clock("choices as text, tokens and embeddings")
    model, guide = fit_reward(task, args)
    clock("preference model and guide")
    posterior = corrected(model, guide)
    policy = train_policy(task, posterior, args.steps, args)
    clock("policy")
    reached = score(policy, posterior, test, args)
    if args.oracle:
        oracle = score_oracles(task, test, args)
        clock("four oracles")
        reached = reached.merge(oracle, on="group")
        reached["share"] = (reached["value"] - 0.5) / (reached["oracle"] - 0.5)
    show("Accuracy of the implicit reward, %", reached, args)
    rates, samples = measure_traits(policy, model, posterior, test, args)
    line = walk(policy, posterior, test, (2 * new_prompts)[: args.texts], args)
    clock("evaluation")
    draw_traits(rates, line, args.out)
    draw_samples(samples, test, args.out)
    print(f"figures and tables in {args.out}")


class Task:
    """Holds people of four types and their choices: as text, as tokens and as features."""

    def __init__(
        self, path: Path, prompts: list[str], users: int, args: argparse.Namespace, seed: int
    ) -> None:
        table, self.type = styles.simulate(users, CHOICES, prompts=prompts, seed=seed)
        self.rows = PreferenceRows(
            [ask(prompt) for prompt in table["prompt"]],
            [answer(text) for text in table["chosen"]],
            [answer(text) for text in table["rejected"]],
            table["user"],
        )
        self.path = path
        self.encoder, self.tokenizer = load_encoder(path, device=args.device)
        self.pairs = self.rows.tokenise(self.tokenizer)
        self.preferences = self.rows.to_preferences(self.embed, seed=seed)
        self.contexts = Contexts(
            self.rows, self.preferences, max_context=CHOICES, min_context=10, seed=seed
        )

    def embed(self, texts: list[str]) -> torch.Tensor:
        """Averages hidden states of the language model itself."""
        return embed_texts(texts, self.encoder, self.tokenizer, progress_bar=False)

    @property
    def type_of_row(self) -> np.ndarray:
        """Name of the type of every row's person, with shape (R,)."""
        return np.array(styles.TYPES, dtype=object)[self.type[self.rows.user]]


def ask(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


def answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


# Training.


def pretrain(prompts: list[str], args: argparse.Namespace) -> Path:
    """Trains a small Llama and its tokenizer on answers in all four styles, equally often."""
    rng = np.random.default_rng(args.seed)
    asked = prompts * 6
    texts = [styles.write(prompt, int(rng.integers(len(styles.TYPES))), rng) for prompt in asked]
    tokenizer = train_tokenizer([*prompts, *texts])
    talks = [ask(prompt) + answer(text) for prompt, text in zip(asked, texts, strict=True)]
    encoded = tokenizer.apply_chat_template(
        talks, padding=True, return_dict=True, return_tensors="pt"
    )
    tokens, real = encoded["input_ids"], encoded["attention_mask"].bool()
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
    torch.manual_seed(args.seed)
    model = LlamaForCausalLM(config).to(args.device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, 5e-3, total_steps=args.pretrain_steps, pct_start=0.1
    )
    for _ in range(args.pretrain_steps):
        rows = torch.randint(len(tokens), (32,))
        width = int(real[rows].sum(-1).max())
        batch, mask = (x[rows, :width].to(args.device) for x in (tokens, real))
        loss = model(batch, attention_mask=mask, labels=batch.masked_fill(~mask, -100)).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    print(f"language model: {model.num_parameters():,} parameters, {loss.item():.2f} nats a token")
    for part in (model, tokenizer):
        part.save_pretrained(args.out / "language_model")
    return args.out / "language_model"


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Builds a tokenizer of words and punctuation, with a chat template."""
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
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<end>",
        chat_template=TEMPLATE,
    )


def fit_reward(task: Task, args: argparse.Namespace) -> tuple[HeterogeneousBTL, NeuralProcessGuide]:
    """Fits the preference model and its guide to embeddings of prompts with answers."""
    torch.manual_seed(args.seed)
    model = HeterogeneousBTL(task.preferences.num_features, LATENT_DIM)
    guide = NeuralProcessGuide(model, "multivariate_normal")
    fit(
        model,
        guide,
        task.preferences,
        objective=[ImportanceWeightedELBO(), Sleep()],
        steps=args.reward_steps,
        validation=None,
        learning_rate=5e-3,
        seed=args.seed,
        progress_bar=False,
    )
    return model, guide


def train_policy(task: Task, posterior, steps: int, args: argparse.Namespace) -> SteerablePolicy:
    """Trains a policy on a task's pairs under z ~ posterior(context)."""
    policy = SteerablePolicy.from_pretrained(
        task.path, latent_dim=LATENT_DIM, device=args.device, seed=args.seed
    )
    training = TrainingArguments(
        output_dir=str(args.out / "training"),
        max_steps=steps,
        per_device_train_batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=min(10, steps // 2),
        logging_steps=50,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=args.device == "cpu",
        seed=args.seed,
    )
    trainer = SteerableDPOTrainer(
        policy, training, task.pairs, task.contexts, posterior, beta=args.beta
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return policy


def same_for_all(context) -> dist.Distribution:
    """Gives everybody the same z: a policy that is not steered."""
    return dist.Delta(torch.zeros(context.num_users, LATENT_DIM)).to_event(1)


# What to see.


def score(
    policy: SteerablePolicy, posterior: Callable, test: Task, args: argparse.Namespace
) -> pd.DataFrame:
    """Measures accuracy by type and number of choices known."""
    return accuracy_by_context(
        policy,
        test.pairs,
        test.contexts,
        posterior,
        test.type_of_row,
        num_contexts=CONTEXTS,
        num_draws=args.draws,
        averaged=False,
        seed=args.seed,
    )


def score_oracles(task: Task, test: Task, args: argparse.Namespace) -> pd.DataFrame:
    """Trains a policy for each type alone and measures its accuracy for people of that type."""
    rows = []
    for number, name in enumerate(styles.TYPES):
        own = Subtask(task, task.type[task.rows.user] == number)
        oracle = train_policy(own, same_for_all, max(1, args.steps // 3), args)
        of_type = Subtask(test, test.type_of_row == name)
        margin = implicit_margin(oracle, of_type.pairs, torch.zeros(LATENT_DIM))
        table = accuracy(margin, of_type.rows.user)
        rows.append((name, table["value"][0], table["standard_error"][0]))
    return pd.DataFrame(rows, columns=["group", "oracle", "oracle_error"])


class Subtask:
    """Holds some rows of a task, with contexts that tell nothing."""

    def __init__(self, task: Task, rows: np.ndarray) -> None:
        self.path, self.rows = task.path, task.rows.subset(rows)
        self.pairs = self.rows.tokenise(task.tokenizer)
        nothing = self.rows.to_preferences(torch.zeros(len(self.rows.item_texts()), 1))
        self.contexts = Contexts(self.rows, nothing, max_context=0)


def measure_traits(
    policy: SteerablePolicy,
    model: HeterogeneousBTL,
    posterior: Callable,
    test: Task,
    args: argparse.Namespace,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Writes answers for the people tested, one draw of z each, and looks at them."""
    rows = np.flatnonzero(np.arange(len(test.rows)) % CHOICES < args.prompts)
    prompts = [test.rows.prompts[row] for row in rows]
    user, group = test.rows.user[rows], test.type_of_row[rows]
    write = {"max_new_tokens": LONGEST, "seed": args.seed, "batch_size": 128}
    with policy.reference():
        base = policy.generate(prompts, **write)
    known = draw_given(
        posterior, test.contexts, rows, num_context=CHOICES - 1, num_draws=16, seed=args.seed
    )

    @torch.no_grad()
    def reward(texts: list[str]) -> torch.Tensor:
        """Draws each person's utility of the answer, given all that person's other choices."""
        items = [
            f"user: {p[0]['content']}\nassistant: {a}" for p, a in zip(prompts, texts, strict=True)
        ]
        return model.item_utility(test.embed(items), known).diagonal(dim1=-2, dim2=-1)

    tables, wins, gaps, samples = [], [], [], []
    for size in CONTEXTS:
        z = draw_given(
            posterior, test.contexts, rows, num_context=size, num_draws=8, seed=args.seed
        )
        texts = policy.generate(prompts, z[0], **write)
        tables.append(trait_rates(texts, TRAITS, user, group).assign(contexts=size))
        wins.append(win_rate(texts, base, reward, user).assign(contexts=size))
        few = np.arange(0, len(rows), 4)
        batch = ResponseBatch.from_texts(
            test.tokenizer, [prompts[i] for i in few], [answer(texts[i] or ".") for i in few]
        )
        gaps.append(posterior_gap(policy, batch, z[:, few], user[few]).assign(contexts=size))
        samples.append(pd.DataFrame({"contexts": size, "group": group, "row": rows, "text": texts}))
    rates = pd.concat(tables)
    for name in TRAITS:
        show(f"Answers that are {name}, %", rates[rates["trait"] == name], args)
    show("Preferred to the base model's answer, %", pd.concat(wins), args)
    show(
        "Posterior-averaged policy against that at the mean, nats a token", pd.concat(gaps), args, 1
    )
    return rates, pd.concat(samples)


def walk(
    policy: SteerablePolicy,
    posterior: Callable,
    test: Task,
    prompts: list[str],
    args: argparse.Namespace,
) -> pd.DataFrame:
    """Writes answers along lines from terse formal people's z to long casual people's.

    Every person of the one type is paired with one of the other, and a prompt with one such pair.
    """
    ends = []
    for name in (styles.TYPES[0], styles.TYPES[-1]):
        rows = np.flatnonzero(test.type_of_row == name)
        first = rows[np.unique(test.rows.user[rows], return_index=True)[1]]
        z = draw_given(
            posterior, test.contexts, first, num_context=10, num_draws=50, seed=args.seed
        )
        ends.append(z.mean(0))
    pair = torch.arange(len(prompts)) % min(map(len, ends))
    rates = []
    for position in np.linspace(0, 1, LINE):
        texts = policy.generate(
            [ask(prompt) for prompt in prompts],
            torch.lerp(ends[0][pair], ends[1][pair], float(position)),
            max_new_tokens=LONGEST,
            seed=args.seed,
            batch_size=128,
        )
        rates.append({name: np.mean([trait(x) for x in texts]) for name, trait in TRAITS.items()})
    line = pd.DataFrame(rates, index=pd.Index(np.linspace(0, 1, LINE), name="position"))
    line.to_csv(args.out / "line.csv")
    print(
        f"\nFrom terse formal people to long casual ones, {int(pair.max()) + 1} lines, "
        f"% of {len(prompts)} answers"
    )
    print((100 * line.T).round(1).to_string())
    for name in TRAITS:
        correlation = spearmanr(line.index, line[name]).statistic
        print(f"rank correlation of position and share {name}: {correlation:.3f}")
    return line


def show(title: str, table: pd.DataFrame, args: argparse.Namespace, scale: int = 100) -> None:
    """Prints a table with a row a group and a column a number of choices, and keeps it."""
    name = title.split(",")[0].lower().replace(" ", "_").replace("'", "")
    table.to_csv(args.out / f"{name}.csv", index=False)
    digits = 1 if scale == 100 else 4
    cells = table.assign(
        cell=[
            f"{scale * value:.{digits}f} ± {scale * error:.{digits}f}"
            for value, error in zip(table["value"], table["standard_error"], strict=True)
        ]
    ).pivot(index="group", columns="contexts", values="cell")
    if "oracle" in table:
        first = table.drop_duplicates("group").set_index("group")
        cells["oracle"] = [
            f"{100 * value:.1f} ± {100 * error:.1f}"
            for value, error in first.loc[cells.index, ["oracle", "oracle_error"]].to_numpy()
        ]
        share = table[table["contexts"] == CONTEXTS[-1]].set_index("group")["share"]
        cells["of the way"] = [f"{100 * value:.0f} %" for value in share[cells.index]]
    print(f"\n{title} (± standard error by person) after 0, 1, … choices")
    print(cells.to_string())


def draw_traits(rates: pd.DataFrame, line: pd.DataFrame, out: Path) -> None:
    """Draws traits against the number of choices known, and along the line."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 3.8), sharey=True)
    place = np.arange(len(CONTEXTS))
    for ax, trait in zip(axes, TRAITS, strict=False):
        for number, name in enumerate(styles.TYPES):
            own = rates[(rates["trait"] == trait) & (rates["group"] == name)]
            ax.errorbar(
                place + 0.06 * (number - 1.5),
                own["value"],
                own["standard_error"],
                marker="os^D"[number],
                color=f"C{number}",
                linestyle="-" if number < 2 else "--",
                capsize=2,
                label=name,
            )
        ax.set(xticks=place, xticklabels=CONTEXTS, xlabel="choices known", ylim=(-0.03, 1.03))
        ax.set_title(f"answers that are {trait}")
    axes[0].set_ylabel("share, ± standard error by person")
    for trait, style in zip(TRAITS, ("o-", "s--"), strict=True):
        axes[2].plot(line.index, line[trait], style, label=trait)
    axes[2].set(xlabel="from a terse formal to a long casual person")
    axes[2].set_title("along a line of z")
    axes[2].legend(frameon=False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=4, frameon=False)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(out / "steer_policy.png", dpi=110)
    plt.close(figure)


def draw_samples(samples: pd.DataFrame, test: Task, out: Path) -> None:
    """Shows what is written for one person of each type after 0, 1 and 10 choices."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(styles.TYPES), 1, figsize=(12, 6.4), sharex=True)
    for ax, name in zip(axes, styles.TYPES, strict=True):
        row = samples.loc[samples["group"] == name, "row"].min()
        own = samples[samples["row"] == row].set_index("contexts")["text"]
        ax.set(xlim=(0, 3), ylim=(0, 1), xticks=[], yticks=[])
        ax.set_title(
            f"a {name} person asks: {test.rows.prompts[row][0]['content']}", loc="left", fontsize=10
        )
        for column, size in enumerate((0, 1, CONTEXTS[-1])):
            text = textwrap.fill(own[size], 50, max_lines=5, placeholder=" …")
            ax.text(column + 0.03, 0.9, f"{size} choices known", fontsize=8, color="gray", va="top")
            ax.text(column + 0.03, 0.7, text, fontsize=8.5, va="top")
            ax.axvline(column, color="lightgray", linewidth=0.8)
    figure.tight_layout()
    figure.savefig(out / "steer_policy_samples.png", dpi=110)
    plt.close(figure)


class Clock:
    """Prints the seconds that each stage took, by the clock and of processors."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def __call__(self, stage: str) -> None:
        wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        print(f"[{stage}: {wall:.0f} s in all, {cpu:.0f} s of processors]", flush=True)


def make_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--model", type=Path, help="folder of an instruct model")
    parser.add_argument("--device", type=device, default="cpu", help="where language models are")
    parser.add_argument("--users", type=whole(4), default=200, help="training people")
    parser.add_argument("--test-users", type=whole(8), default=40, help="people to follow")
    parser.add_argument("--pretrain-steps", type=whole(), default=800)
    parser.add_argument("--reward-steps", type=whole(), default=400)
    parser.add_argument(
        "--steps", type=whole(), default=300, help="of the policy; oracles take a third"
    )
    parser.add_argument("--batch-size", type=whole(), default=32, help="pairs a step")
    parser.add_argument("--learning-rate", type=real(), default=5e-3, help="of the policy")
    parser.add_argument("--beta", type=real(), default=1.0, help="pull towards the base model")
    parser.add_argument("--draws", type=whole(), default=4, help="of z for every pair")
    parser.add_argument("--prompts", type=whole(), default=8, help="answers written for a person")
    parser.add_argument(
        "--texts", type=whole(), default=800, help="answers for a place on the line"
    )
    parser.add_argument(
        "--oracle", action=argparse.BooleanOptionalAction, default=True, help="train the oracles"
    )
    parser.add_argument("--quick", action="store_true", help="a tiny run, to see that it runs")
    return parser


if __name__ == "__main__":
    run(main, make_parser())
