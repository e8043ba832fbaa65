"""`fssa-bayes steer`: a language model that follows people, from a file of their choices."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import sys
import warnings
from enum import StrEnum
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from fssa_bayes._files import write_file
from fssa_bayes.cli.output import prepare

if TYPE_CHECKING:
    from fssa_bayes.steering import Bundle, Person

app = typer.Typer(add_completion=False, rich_markup_mode="markdown", no_args_is_help=True)

_VARIABLE = "FSSA_BAYES_TOKEN"
_WHERE = "Where things are"
_WHO = "Who is answered"

BundleFolder = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="What `train` wrote.", show_default=False)
]
BaseModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="PATH",
        help="Base model, if it is no longer where it was: a folder, or a name on the hub.",
        rich_help_panel=_WHERE,
        show_default=False,
    ),
]
Encoder = Annotated[
    str | None,
    typer.Option(
        "--encoder",
        metavar="PATH",
        help="Text encoder, if it is no longer where it was.",
        rich_help_panel=_WHERE,
        show_default=False,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(help="Where the policy runs, such as cuda.", show_default=False),
]
Options = Annotated[
    list[str] | None,
    typer.Option(
        "--model-option",
        metavar="NAME=VALUE",
        help="How the base model is loaded, such as attn_implementation=eager, revision=… or "
        'quantization_config={"load_in_4bit":true,"quant_method":"bitsandbytes"}; may be given '
        "again.",
        rich_help_panel=_WHERE,
        show_default=False,
    ),
]
Choices = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="FILE",
        help="The person's choices: rows as for `train`; those of other people are left out.",
        rich_help_panel=_WHO,
        show_default=False,
    ),
]
Database = Annotated[
    str | None,
    typer.Option(
        "--db",
        metavar="FILE|URL",
        help="A database of `serve` that holds the person's choices.",
        rich_help_panel=_WHO,
        show_default=False,
    ),
]
User = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="The person; may be absent where --data is of one person.",
        rich_help_panel=_WHO,
        show_default=False,
    ),
]


class Way(StrEnum):
    """Names how z changes the model."""

    gated = "gated"
    film = "film"


@app.callback()
def start() -> None:
    """Steers a language model by what people chose.

    Rows of prompt, chosen, rejected and user train a bundle; the bundle writes, exports and serves
    as a person would have it, who may be new.
    """


@app.command()
def train(
    data: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="Rows of prompt, chosen, rejected and user, in the formats of TRL: .jsonl, .json, "
            ".parquet or .csv.",
            show_default=False,
        ),
    ],
    model: Annotated[
        str,
        typer.Option(
            metavar="PATH", help="Base model: a folder, or a name on the hub.", show_default=False
        ),
    ],
    encoder: Annotated[
        str,
        typer.Option(
            metavar="PATH", help="Text encoder: a folder, or a name on the hub.", show_default=False
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            metavar="BUNDLE",
            help="Folder of the bundle; it must be new, empty or an earlier bundle.",
            show_default=False,
        ),
    ],
    latent_dim: Annotated[int, typer.Option(min=1, help="Dimensions of z.")] = 2,
    components: Annotated[
        int, typer.Option(min=0, help="Principal components of the embeddings; 0 for all of them.")
    ] = 16,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the policy.")] = 200,
    reward_steps: Annotated[
        int | None,
        typer.Option(
            min=1, help="Steps of each stage of the preference model.", show_default=False
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pairs of a step.")] = 8,
    accumulate: Annotated[
        int, typer.Option(min=1, help="Parts in which a step is computed, to save memory.")
    ] = 1,
    learning_rate: Annotated[float, typer.Option(help="Peak rate of the policy.")] = 1e-3,
    beta: Annotated[float, typer.Option(help="Strength of the pull to the base model.")] = 0.1,
    loss: Annotated[
        str, typer.Option(metavar="NAME,…", help="Losses by TRL's names.")
    ] = "sigmoid,sft",
    lora_rank: Annotated[int, typer.Option(min=1, help="Rank of the adapter.")] = 8,
    conditioning: Annotated[
        Way, typer.Option(help="How z changes the model; `film` cannot be exported.")
    ] = Way.gated,
    max_length: Annotated[
        int | None,
        typer.Option(
            min=2, help="Rows of more tokens are left out and counted.", show_default=False
        ),
    ] = None,
    min_context: Annotated[
        int, typer.Option(min=0, help="Least choices that the policy knows in training.")
    ] = 0,
    max_context: Annotated[
        int, typer.Option(min=0, help="Most choices that the policy knows in training.")
    ] = 10,
    test_size: Annotated[
        float, typer.Option(help="Share of the prompts held out to measure the policy; 0 for none.")
    ] = 0.1,
    bf16: Annotated[bool, typer.Option("--bf16", help="Train in mixed precision.")] = False,
    model_option: Options = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all that is drawn.")] = 0,
) -> None:
    """Trains a bundle: features of texts, the preference model, and the policy that z steers.

    After an interruption the same command goes on from the last checkpoint, in a hidden folder
    beside the bundle.
    """
    if not data.is_file():
        raise FileNotFoundError(f"--data must be an existing file, got {str(data)!r}")
    options = _read_options(model_option)
    _need("policy", "transformers", "peft")
    prepare()
    from fssa_bayes.steering import Training, read_rows, train_bundle
    from fssa_bayes.steering.bundle import check_replaceable

    out = out.absolute()
    check_replaceable(out)
    with warnings.catch_warnings():
        warnings.showwarning = _tell_in_a_line
        rows = read_rows(data)
    print(rows, flush=True)
    training = Training(
        latent_dim=latent_dim,
        components=components,
        reward_steps=reward_steps,
        steps=steps,
        batch_size=batch_size,
        gradient_accumulation=accumulate,
        learning_rate=learning_rate,
        beta=beta,
        loss_type=tuple(loss.split(",")),
        lora_rank=lora_rank,
        conditioning=conditioning.value,
        max_length=max_length,
        min_context=min_context,
        max_context=max_context,
        test_size=test_size,
        bf16=bf16,
        seed=seed,
        model_options=options,
    )
    # Another command starts anew: what was half done with other options is of no use to it.
    told = f"{model}\n{encoder}\n{training}\n".encode() + data.read_bytes()
    run = hashlib.sha256(told).hexdigest()[:12]
    work = out.with_name(f".{out.name}-{run}.steer.part")
    with warnings.catch_warnings():
        warnings.showwarning = _tell_in_a_line
        bundle, figures = train_bundle(rows, model, encoder, training, work=work)
    if int(os.environ.get("RANK", "0")):  # Of the processes that torchrun started the first writes.
        return
    bundle.save(out)
    for folder in out.parent.glob(f".{escape(out.name)}-*.steer.part"):
        shutil.rmtree(folder, ignore_errors=True)
    shown = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
    print(f"{out}: {shown}")


@app.command()
def generate(
    bundle: BundleFolder,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="What to answer; a question where the model has a chat template. May be given "
            "again.",
            show_default=False,
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Rows with a `prompt` each, as for `train`.", show_default=False
        ),
    ] = None,
    data: Choices = None,
    db: Database = None,
    user: User = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="JSON lines; standard output if absent.", show_default=False
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Most tokens of an answer; 256, or what the model has room for, if absent.",
            show_default=False,
        ),
    ] = None,
    temperature: Annotated[
        float, typer.Option(min=0, help="0 takes the most probable tokens.")
    ] = 1.0,
    top_p: Annotated[
        float, typer.Option(help="Probability of the tokens that are drawn among.")
    ] = 1.0,
    stop: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Ends an answer; may be given again."),
    ] = None,
    model: BaseModel = None,
    encoder: Encoder = None,
    device: Device = None,
    model_option: Options = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws.")] = 0,
) -> None:
    """Answers prompts as a person would have it; without --data and --db, as nobody in particular.

    Writes a JSON object a line: prompt, response and user.
    """
    if not prompt and prompts is None:
        raise ValueError("--prompt or --prompts must say what to answer, got neither")
    _check_sources(data, db, user)
    found = _load(bundle, model, encoder, device, model_option)
    from fssa_bayes.steering.records import read_records

    has_template = found.policy.tokenizer.chat_template is not None
    asked: list[Any] = [
        [{"role": "user", "content": text}] if has_template else text for text in prompt or ()
    ]
    if prompts is not None:
        records = read_records(prompts)
        if not all("prompt" in record for record in records):
            raise ValueError(f"--prompts must have a 'prompt' in every row of {str(prompts)!r}")
        asked += [record["prompt"] for record in records]
    name, person = _find_person(found, data, db, user)
    if max_new_tokens is None:
        room = (found.policy.reach or 1 << 20) - max(map(len, found.policy.encode(asked)))
        max_new_tokens = max(1, min(256, room))
    texts = person.generate(
        asked,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        stop=stop or (),
        seed=seed,
    )
    rows = [
        {"prompt": question, "response": text, "user": name}
        for question, text in zip(asked, texts, strict=True)
    ]
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if out is None:
        print(content, end="")
    else:
        write_file(out, content.encode())


@app.command()
def export(
    bundle: BundleFolder,
    out: Annotated[
        Path,
        typer.Option(metavar="FOLDER", help="Folder of the adapter.", show_default=False),
    ],
    data: Choices = None,
    db: Database = None,
    user: User = None,
    model: BaseModel = None,
    encoder: Encoder = None,
    model_option: Options = None,
) -> None:
    """Writes a person's policy as an ordinary LoRA adapter, which peft reads by itself."""
    if data is None and db is None:
        raise ValueError("--data or --db must hold the person's choices, got neither")
    _check_sources(data, db, user)
    found = _load(bundle, model, encoder, None, model_option)
    name, person = _find_person(found, data, db, user)
    person.export(out)
    print(f"{out}: the adapter of {name!r}, by {person.num_choices} choices")


@app.command()
def serve(
    bundle: BundleFolder,
    db: Annotated[
        str,
        typer.Option(
            metavar="FILE|URL",
            help="Where choices are kept: a file of SQLite, also that of `ask`, or a URL of "
            "SQLAlchemy.",
            show_default=False,
        ),
    ],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for a free one.")] = 8001,
    url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Address that clients use, where it is not that of --host and --port.",
            show_default=False,
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help=f"File with the token that requests must bear; if absent, the variable "
            f"{_VARIABLE}. Needed unless --host is this machine alone.",
            show_default=False,
        ),
    ] = None,
    at_once: Annotated[int, typer.Option(min=1, help="Answers computed at a time.")] = 2,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 2048,
    name: Annotated[str, typer.Option(help="Name of the model for clients.")] = "steered",
    model: BaseModel = None,
    encoder: Encoder = None,
    device: Device = None,
    model_option: Options = None,
) -> None:
    """Serves chat completions for clients of OpenAI's API; the field `user` names the person.

    POST /people/NAME/choices adds a choice, GET /people/NAME says what is believed, DELETE
    /people/NAME forgets. A choice is in the database before it is answered.
    """
    if token_file is not None and not token_file.is_file():
        raise FileNotFoundError(f"--token-file must be an existing file, got {str(token_file)!r}")
    if not bundle.is_dir():
        raise FileNotFoundError(f"BUNDLE must be an existing folder, got {str(bundle)!r}")
    _need("serve", "fastapi", "sqlalchemy", "uvicorn")
    from fssa_bayes.serve import LOOPBACK, Store, check_token, is_loopback

    token = token_file.read_text() if token_file is not None else os.environ.get(_VARIABLE)
    if token is not None:
        token = check_token(token)
    elif not is_loopback(host):
        raise ValueError(
            f"--token-file or {_VARIABLE} must give a token where others reach --host {host}"
        )
    if not is_loopback(host) and url is None:
        raise ValueError(
            f"--url must tell the address that clients use where others reach --host {host}"
        )
    if url is not None and not urlsplit(url).hostname:
        raise ValueError(f"--url must read like https://chat.example.org, got {url!r}")
    with Store(db) as store, _bind(host, port) as listener:
        import uvicorn

        from fssa_bayes.serve.chat import create_chat_app

        found = _load(bundle, model, encoder, device, model_option)
        own = f"[{host}]" if ":" in host else host
        address = (url or f"http://{own}:{listener.getsockname()[1]}").rstrip("/")
        hosts = (*LOOPBACK, urlsplit(address).hostname or "")
        served = create_chat_app(
            found, store, token, hosts=hosts, at_once=at_once, most_tokens=max_tokens, name=name
        )
        print(f"Base URL for clients: {address}/v1", flush=True)
        config = uvicorn.Config(
            served,
            access_log=False,
            log_level="warning",
            proxy_headers=url is not None and token is not None,
            server_header=False,
        )
        uvicorn.Server(config).run(sockets=[listener])


def _tell_in_a_line(message: Warning | str, *_where: object, **_options: object) -> None:
    """Shows a warning without the place in the library that it came from."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


def _bind(host: str, port: int) -> socket.socket:
    """Takes the port, before any work."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise OSError(f"--port {port} of {host} cannot be used: {error.strerror}") from error


def _need(extra: str, *packages: str) -> None:
    """Raises an ImportError that names the extra, unless its packages are there."""
    from importlib.util import find_spec

    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise ImportError(
            "steer needs the packages of an extra, in a clone of the project: pip install -e "
            f"'.[{extra}]' (there is no {missing[0]})"
        )


def _read_options(given: list[str] | None) -> dict[str, Any]:
    """Reads NAME=VALUE, whose value is JSON or else text."""
    found = {}
    for text in given or ():
        name, mark, value = text.partition("=")
        if not mark or not name.isidentifier():
            raise ValueError(f"--model-option must read like NAME=VALUE, got {text!r}")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def _check_sources(data: Path | None, db: str | None, user: str | None) -> None:
    if data is not None and db is not None:
        raise ValueError("--data and --db each hold choices: give one of them")
    if data is not None and not data.is_file():
        raise FileNotFoundError(f"--data must be an existing file, got {str(data)!r}")
    if db is not None and "://" not in db and not Path(db).is_file():
        raise FileNotFoundError(f"--db must be an existing file, got {db!r}")
    if db is not None and user is None:
        raise ValueError("--user must name a person of --db, got none")
    if user is not None and data is None and db is None:
        raise ValueError(f"--data or --db must hold the choices of {user!r}, got neither")


def _load(
    folder: Path,
    model: str | None,
    encoder: str | None,
    device: str | None,
    model_option: list[str] | None,
) -> Bundle:
    if not folder.is_dir():
        raise FileNotFoundError(f"BUNDLE must be an existing folder, got {str(folder)!r}")
    options = _read_options(model_option)
    _need("policy", "transformers", "peft")
    prepare()
    from fssa_bayes.steering import Bundle

    return Bundle.load(folder, base_model=model, encoder=encoder, device=device, **options)


def _find_person(
    bundle: Bundle, data: Path | None, db: str | None, user: str | None
) -> tuple[str | None, Person]:
    """Finds a person and their choices."""
    if db is not None:
        _need("serve", "sqlalchemy")
        from fssa_bayes.serve import People, Store

        with Store(db) as store:
            people = People(store)
            people.claim(bundle.digest())
            if people.version(user) is None:
                raise ValueError(f"--user must be a person of --db, got {user!r}")
            return user, bundle.person(people.records(user))
    if data is None:
        return None, bundle.person()
    from fssa_bayes.steering.records import read_records

    records = read_records(data)
    names = list(dict.fromkeys(str(record.get("user", "person")) for record in records))
    if user is None and len(names) > 1:
        raise ValueError(f"--user must name one of the people of --data, such as {names[:5]}")
    name = names[0] if user is None else user
    if name not in names:
        raise ValueError(f"--user must be a person of --data, such as {names[:5]}, got {name!r}")
    own = [record for record in records if str(record.get("user", "person")) == name]
    return name, bundle.person([{**record, "user": name} for record in own])
