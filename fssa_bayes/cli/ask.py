"""`fssa-bayes ask`: a page that asks people questions, and a database with their answers."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import socket
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from fssa_bayes._files import write_file
from fssa_bayes.cli.output import prepare

if TYPE_CHECKING:
    from fssa_bayes.questions import Goal
    from fssa_bayes.serve import Store, Study

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")

_SHOWN = "What people see"
_PEOPLE = "Who comes"
_ASKED = "What is asked"
_SERVER = "The server"
_LINKS = ["number", "link"]
_VARIABLE = "FSSA_BAYES_TOKEN"


class GoalName(StrEnum):
    """Names what questions are to tell."""

    person = "person"
    best = "best"
    value = "value"


class Control(StrEnum):
    """Names what half of the people are asked."""

    random = "random"


@app.command()
def ask(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="A saved model, or a folder of results of `analyse`.",
            show_default=False,
        ),
    ],
    items: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="The items, one a row: csv with a column `item` (or the first one) of names, and "
            "the features of the model.",
            show_default=False,
        ),
    ],
    db: Annotated[
        str,
        typer.Option(
            metavar="FILE|URL",
            help="Where answers are kept: a file of SQLite, or a URL of SQLAlchemy, such as "
            "postgresql+psycopg://…",
            show_default=False,
        ),
    ],
    title_column: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Column with the name of an item that people see.",
            rich_help_panel=_SHOWN,
            show_default=False,
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Column with Markdown that describes an item.",
            rich_help_panel=_SHOWN,
            show_default=False,
        ),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Column with names of image files in --images.",
            rich_help_panel=_SHOWN,
            show_default=False,
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder with the images: PNG, JPEG, GIF or WebP.",
            rich_help_panel=_SHOWN,
            show_default=False,
        ),
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN,…",
            help="Columns that are shown side by side; if absent, the model's features. `none` "
            "for none.",
            rich_help_panel=_SHOWN,
            show_default=False,
        ),
    ] = None,
    title: Annotated[
        str, typer.Option(help="Title of the page.", rich_help_panel=_SHOWN)
    ] = "Which do you prefer?",
    question: Annotated[
        str, typer.Option(help="The question above the items.", rich_help_panel=_SHOWN)
    ] = "Which do you prefer?",
    consent: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Markdown that people agree to; a short text if absent.",
            rich_help_panel=_SHOWN,
            show_default=False,
        ),
    ] = None,
    results: Annotated[
        bool,
        typer.Option(
            "--results",
            help="Tell people at the end what they seem to prefer.",
            rich_help_panel=_SHOWN,
        ),
    ] = False,
    links: Annotated[
        int,
        typer.Option(
            min=0,
            max=100_000,
            help="Number of personal links, one a person, written to --links-file.",
            rich_help_panel=_PEOPLE,
        ),
    ] = 0,
    links_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where links are written; if absent, links.csv or links-pilot.csv beside --db.",
            rich_help_panel=_PEOPLE,
            show_default=False,
        ),
    ] = None,
    open_places: Annotated[
        int,
        typer.Option(
            "--open",
            min=0,
            help="How many people may come by one open link, the address of the page.",
            rich_help_panel=_PEOPLE,
        ),
    ] = 0,
    pilot: Annotated[
        bool,
        typer.Option(
            "--pilot",
            help="Mark interviews made now as trials: results leave them out without --pilot.",
            rich_help_panel=_PEOPLE,
        ),
    ] = False,
    goal: Annotated[
        GoalName,
        typer.Option(
            help="What a question is to tell: everything about the person, the best item, or what "
            "to recommend.",
            rich_help_panel=_ASKED,
        ),
    ] = GoalName.person,
    questions: Annotated[
        int,
        typer.Option(
            min=1,
            max=200,
            help="Answers at most; --held-out and --control add questions at the end. As many "
            "skips, or 3, end the choice of questions too.",
            rich_help_panel=_ASKED,
        ),
    ] = 12,
    best: Annotated[
        float | None,
        typer.Option(
            help="Stop earlier, when an item is the best, or within half a nat of it, with this "
            "probability.",
            rich_help_panel=_ASKED,
            show_default=False,
        ),
    ] = None,
    held_out: Annotated[
        int,
        typer.Option(
            min=0,
            max=50,
            help="Random questions at the end, which judge predictions; 4 with --control.",
            rich_help_panel=_ASKED,
            show_default=False,
        ),
    ] = 0,
    control: Annotated[
        Control | None,
        typer.Option(
            help="Ask half of the people, drawn at random, random questions, and compare by 4 more "
            "questions at the end, or as many as --held-out.",
            rich_help_panel=_ASKED,
            show_default=False,
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on.", rich_help_panel=_SERVER)
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port; 0 for a free one.", rich_help_panel=_SERVER)
    ] = 8000,
    url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Address that people use, where another server stands before this one, such as "
            "https://study.example.org. Needed with a --host that others reach.",
            rich_help_panel=_SERVER,
            show_default=False,
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help=f"File with the researcher's token. If absent, the variable {_VARIABLE}, or else "
            "a file beside a --db that is a file, made at the first start.",
            rich_help_panel=_SERVER,
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of arms, orders and draws.")] = 0,
) -> None:
    """Asks people which items they prefer, on a page, each the questions that tell most.

    Every answer is in the database before the next question is shown; after an interruption the
    same command goes on. The researcher's page is at /researcher.
    """
    for option, path in (("--items", items), ("--consent", consent), ("--token-file", token_file)):
        if path is not None and not path.is_file():
            raise FileNotFoundError(f"{option} must be an existing file, got {str(path)!r}")
    if images is not None and not images.is_dir():
        raise FileNotFoundError(f"--images must be an existing folder, got {str(images)!r}")
    folder = next((f for f in (run / "model", run) if (f / "config.json").is_file()), None)
    if folder is None:
        raise FileNotFoundError(
            f"RUN must be a saved model or results of `analyse`, got {str(run)!r}"
        )
    if best is not None and control is not None:
        raise ValueError("--control compares after the same number of questions: leave --best out")
    if best is not None and not 0 < best <= 1:
        raise ValueError(f"--best must lie above 0 and not above 1, got {best}")
    if (image is None) != (images is None):
        raise ValueError("--image and --images go together: a column, and where its files lie")
    if "://" not in db and not Path(db).parent.is_dir():
        raise FileNotFoundError(f"--db must lie in an existing folder, got {db!r}")
    address = _read_url(url)
    if not links and not open_places and not Path(db).exists() and "://" not in db:
        raise ValueError("--links or --open must say who may come, got neither for a new --db")
    _need_packages()
    from fssa_bayes.serve import LOOPBACK, Page, Store, create_app, is_loopback

    if not is_loopback(host) and url is None:
        raise ValueError(
            f"--url must tell the address that people use where others reach --host {host}"
        )
    token = _read_token(db, token_file)
    file = links_file or _beside(db, "links-pilot.csv" if pilot else "links.csv")
    if links:
        _read_links(file)
    with contextlib.ExitStack() as stack:
        import uvicorn

        listener = stack.enter_context(_bind(host, port))
        port = listener.getsockname()[1]
        address = address or f"http://{'127.0.0.1' if is_loopback(host) else host}:{port}"
        page = Page(
            title=title,
            question=question,
            **({} if consent is None else {"consent": consent.read_text(encoding="utf-8")}),
            shows_result=results,
            places=open_places,
            pilot=pilot,
            secure=address.startswith("https://"),
        )
        prepare()
        study = _make_study(
            folder,
            items,
            {"title": title_column, "text": text, "image": image, "folder": images}
            | {"features": _listed(features)},
            {"goal": _read_goal(goal), "control": control is not None, "seed": seed}
            | {"num_held_out": held_out or (4 if control else 0)},
            (best, questions),
        )
        hosts = (*LOOPBACK, urlsplit(address).hostname or "")
        store = stack.enter_context(Store(db))  # Nothing is written before all else is right.
        store.claim(study.digests, study.items.describe())
        page_app = create_app(study, store, token or _make_token(db), page, hosts)
        told = _enrol(store, study, links, file, address, pilot=pilot)
        if open_places:
            told.insert(0, f"Open link: {address}/")
        told.append(f"Researcher: {address}/researcher")
        print("\n".join(told), flush=True)
        config = uvicorn.Config(
            page_app,
            access_log=False,  # It would hold the links.
            log_level="warning",
            proxy_headers=url is not None,
            server_header=False,
            limit_concurrency=1000,
        )
        uvicorn.Server(config).run(sockets=[listener])


def _need_packages() -> None:
    """Raises an ImportError that names the extra, unless its packages are there."""
    try:
        import fastapi  # noqa: F401
        import jinja2  # noqa: F401
        import markdown_it  # noqa: F401
        import python_multipart  # noqa: F401
        import sqlalchemy  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "ask needs the packages of an extra, in a clone of the project: pip install -e "
            f"'.[serve]' ({error})"
        ) from error


def _read_url(url: str | None) -> str | None:
    """Reads `--url`, without a slash at the end."""
    if url is None:
        return None
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
        raise ValueError(f"--url must read like https://study.example.org, got {url!r}")
    return url.rstrip("/")


def _read_links(file: Path) -> list[list[str]]:
    """Reads the rows of a file of links; none if there is no file."""
    if not file.exists():
        return []
    try:
        header, *rows = list(csv.reader(io.StringIO(file.read_text(encoding="utf-8-sig"))))
    except (ValueError, csv.Error):  # Of an empty file too.
        header, rows = [], []
    if header != _LINKS or any(len(row) != len(_LINKS) for row in rows):
        raise ValueError(f"--links-file must be a new file or one of links, got {str(file)!r}")
    return rows


def _beside(db: str, name: str) -> Path:
    """Returns a path beside a database that is a file, else in the working folder."""
    return Path(name) if "://" in db else Path(db).with_name(name)


def _read_token(db: str, token_file: Path | None) -> str | None:
    """Returns the researcher's token, of a file or the environment; None if there is none yet."""
    from fssa_bayes.serve import check_token

    if token_file is None and _VARIABLE in os.environ:
        return _checked(check_token, os.environ[_VARIABLE], _VARIABLE)
    if token_file is None:
        if "://" in db:
            raise ValueError(
                f"the researcher's token must be given, by {_VARIABLE} or --token-file, where --db "
                "is a URL"
            )
        token_file = _token_beside(db)
        if not token_file.exists():
            return None
        print(f"The researcher's token is in {token_file}", flush=True)
    try:
        text = token_file.read_text(encoding="utf-8")
    except ValueError as error:
        raise ValueError(f"--token-file must be text, got {str(token_file)!r}") from error
    return _checked(check_token, text, str(token_file))


def _make_token(db: str) -> str:
    """Makes a token for the researcher, in a file beside the database."""
    from fssa_bayes.serve import new_token

    # Another process may be faster: its token is taken.
    with contextlib.suppress(FileExistsError):
        handle = os.open(_token_beside(db), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(new_token() + "\n")
    return _read_token(db, None)


def _token_beside(db: str) -> Path:
    return Path(f"{db}.token")


def _checked(check: object, token: str, source: str) -> str:
    try:
        return check(token)
    except ValueError as error:
        raise ValueError(f"{error}, in {source}") from error


def _bind(host: str, port: int) -> socket.socket:
    """Takes the port, before any work."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    if sys.platform != "win32":
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(1024)  # A second server on the same port fails here at the latest.
    except OSError as error:
        listener.close()
        raise OSError(f"--port {port} of {host} cannot be used: {error.strerror}") from error
    return listener


def _read_goal(goal: GoalName) -> Goal:
    from fssa_bayes.questions import BestItemInformation, InformationGain, ValueOfInformation

    goals = {"person": InformationGain, "best": BestItemInformation, "value": ValueOfInformation}
    return goals[goal.value]()


def _listed(names: str | None) -> list[str] | None:
    if names is None:
        return None
    return [] if names == "none" else names.split(",")


def _make_study(
    folder: Path, items: Path, shown: dict, options: dict, limits: tuple[float | None, int]
) -> Study:
    from fssa_bayes.io import load
    from fssa_bayes.questions import Stop
    from fssa_bayes.serve import Items, Study

    model, guide = load(folder)
    best, questions = limits
    stop = Stop(best=best, max_questions=questions)
    return Study(model, guide, Items.read(items, model, **shown), stop=stop, **options)


def _enrol(
    store: Store, study: Study, links: int, file: Path, address: str, *, pilot: bool
) -> list[str]:
    """Makes the personal links that are missing, and returns what there is to tell about links.

    The file is written first: after an interruption between both the same command replaces the new
    links. Links of the file that the database knows stay, those of a pilot too, under the address
    that people use now.
    """
    from fssa_bayes.serve import new_token

    have = store.count("link", pilot=pilot)
    if not max(links, have):
        return []
    found, known, kept = _read_links(file), [], 0
    for number, link in found:
        token = link.rpartition("/")[2]
        who = store.find(token)
        if who is not None:
            known.append([number, f"{address}/i/{token}"])
            kept += who.source == "link" and who.pilot == pilot
    tokens = [new_token() for _ in range(max(0, links - have))]
    rows = [*known, *([str(have + n + 1), f"{address}/i/{t}"] for n, t in enumerate(tokens))]
    if tokens or (known and rows != found):
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([_LINKS, *rows])
        write_file(file, text.getvalue().encode())
        file.chmod(0o600)
    store.enrol(tokens, study.arm, pilot=pilot)
    told = []
    if tokens or kept:
        told.append(f"{len(tokens)} new personal links of {max(links, have)} in {file}")
    if any(row not in found for row in known):
        told.append(f"The {len(known)} links that {file} held before now begin with {address}")
    if kept < have:
        where = "is not in" if file.exists() else "is in no file: there is no"
        where = where if have - kept == 1 else where.replace("is", "are", 1)
        told.append(
            f"{have - kept} of the {have} personal links of earlier starts {where} {file}. The "
            "database holds no links, so that they cannot be shown again: put the file back, or "
            "raise --links for new ones"
        )
    return told
