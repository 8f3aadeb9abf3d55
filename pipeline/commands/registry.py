"""`openmed registry`: the versions, what is known about them, and decisions on them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from openmed.errors import BadInput, IntegrityError
from pipeline.commands.printing import Json, cell, print_json, print_table

if TYPE_CHECKING:
    from pipeline.ledger import Caller

registry = typer.Typer(
    help="Registered versions: list, judge, promote, roll back, verify.", no_args_is_help=True
)

Version = Annotated[str, typer.Argument(help="models:/openmed-cxr@champion, models:/openmed-cxr/7 or 7.")]
Number = Annotated[str, typer.Argument(metavar="VERSION", help="Number of the version.")]
By = Annotated[str, typer.Option(help="Who decides.")]
Reason = Annotated[str, typer.Option(help="Why.")]
Key = Annotated[
    Path | None, typer.Option(help="SSH key that signs it, where the champion's change plan lists keys.")
]
_COLUMNS = (
    *("version", "architecture", "verdict", "aliases", "auc", "sensitivity", "specificity"),
    *("approved_by", "hold"),
)


def _caller(key: Path | None = None) -> "Caller":
    from pipeline.ledger import Caller
    from pipeline.settings.people import logins

    return Caller(logins(), key)


def _by_role(texts: list[str], problem: str) -> dict[str, str]:
    """Reads ROLE=SOMETHING, once for each role."""
    parts = [text.partition("=") for text in texts]
    given = {role.strip(): something for role, _, something in parts}
    if any(not equals for _, equals, _ in parts) or len(given) < len(parts):
        raise BadInput(problem)
    return given


def _add_decision(verb: Literal["reject", "adopt", "hold", "release"], about: str, outcome: str) -> None:
    """Adds the command of a decision on one version; the outcome is said of the entry (`{0}`)."""

    @registry.command(verb, help=about)
    def decide(version: Number, by: By, reason: Reason, key: Key = None) -> None:
        from pipeline import ledger

        decided = getattr(ledger, verb)(version, by=by, reason=reason, caller=_caller(key))
        print(outcome.format(decided))


@registry.command("list")
def list_(as_json: Json = False) -> None:
    """Lists the registered versions, newest first; ends with exit code 3 when the record is broken."""
    from pipeline import ledger
    from pipeline.registry import list_versions

    versions, broken = list_versions(), None
    try:
        held = {version: entry.reason for version, entry in ledger.on_hold().items()}
    except IntegrityError as error:
        held, broken = {}, error
    rows = [vars(version) | {"hold": held.get(version.version)} for version in versions]
    if as_json:
        print_json(rows)
    else:
        # The reason is a long sentence; `show` tells it.
        short = [row | {"hold": "on hold" if row["hold"] else broken and "unknown"} for row in rows]
        print_table(_COLUMNS, [[cell(row[column]) for column in _COLUMNS] for row in short])
    if broken:
        raise broken


@registry.command()
def show(version: Version, as_json: Json = False) -> None:
    """Tells the story of a version: where it came from, who decided what and why."""
    from pipeline.ledger import story
    from pipeline.registry import version_at

    number = version_at(version)
    events = story(number)
    if as_json:
        print_json([{"at": at, "what": what} for at, what in events])
        return
    print(f"Version {number}")
    for at, what in events:
        print(f"{at}  {what}")


@registry.command()
def verify(version: Version, as_json: Json = False) -> None:
    """Recomputes everything that a version stands on; ends with exit code 3 at the first broken link."""
    from pipeline.registry import verify as check
    from pipeline.registry import version_at

    number = version_at(version)
    links = check(number)
    if as_json:
        print_json([{"link": name, "problem": broken, "unchecked": why} for name, broken, why in links])
    else:
        for name, broken, why in links:
            print(f"unknown  {name}: {why}" if why else f"{'broken' if broken else 'intact'}  {name}")
    if problem := links[-1].problem:
        raise IntegrityError(f"version {number}, {links[-1].name}: {problem}")


@registry.command()
def promote(
    version: Number,
    by: Annotated[
        list[str],
        typer.Option(
            metavar="ROLE=NAME", help="Who says yes in a role of the change plan; once for each role."
        ),
    ],
    comment: Annotated[str, typer.Option(help="Why.")] = "",
    sign: Annotated[
        list[str] | None,
        typer.Option(metavar="ROLE=KEY", help="SSH key that signs the yes of a role; once for each role."),
    ] = None,
) -> None:
    """Makes a version the champion if it passes its gates now."""
    from pipeline.ledger import champion
    from pipeline.promotion.actions import promote as promote_version

    approvals = _by_role(by, "--by names one person for each role, such as --by clinical='Dr Adams'")
    keys = _by_role(
        sign or [], "--sign names one key for each role, such as --sign clinical=~/.ssh/id_ed25519"
    )
    entry = promote_version(
        version,
        approved_by=approvals,
        comment=comment,
        expected_champion=champion(),
        caller=_caller(),
        keys={role: Path(key).expanduser() for role, key in keys.items()},
    )
    print(f"version {version} is the champion, approved by {entry.by}")


@registry.command("sign")
def sign_(
    version: Number,
    role: Annotated[str, typer.Option("--as", metavar="ROLE", help="Role of the change plan.")],
    by: Annotated[str, typer.Option(help="Who says yes in it.")],
    key: Annotated[Path, typer.Option(help="SSH key that signs, private or held by the agent.")],
) -> None:
    """Signs a yes ahead, for whoever promotes the version, here or in Airflow."""
    from pipeline.promotion.actions import sign

    entry = sign(version, role=role, by=by, caller=_caller(key.expanduser()))
    print(f"the yes of {entry.by} as {role} to version {version} is signed with {entry.content['key']}")


_add_decision("reject", "Turns a version down for good.", "version {0.version} is rejected by {0.by}")


@registry.command()
def gate(version: Number, as_json: Json = False) -> None:
    """Judges a version as a promotion would, and shows the table."""
    from pipeline.promotion import actions as promotion

    judged = promotion.gate(version)
    if as_json:
        print_json(judged.to_json())
    else:
        print(judged.table_markdown)


@registry.command()
def documents(version: Number, out: Annotated[Path, typer.Option(help="Folder to write them to.")]) -> None:
    """Writes model card, data sheet, CLAIM checklist and change-plan record, as far as facts go."""
    from pipeline.promotion.documents import write_documents

    for name, (missing, items) in write_documents(version, out).items():
        print(f"{out / name}  {items - missing} of {items} items filled in, {missing} open")


_add_decision(
    "adopt",
    "Makes the change plan that came with a version one that counts from now on.",
    "the change plan of version {0.version} counts from now on, by {0.by}",
)


@registry.command()
def rollback(reason: Reason, by: By, key: Key = None) -> None:
    """Makes the previous champion the champion again."""
    from pipeline import ledger
    from pipeline.registry import check

    entry = ledger.roll_back(by=by, reason=reason, check=check, caller=_caller(key))
    print(f"version {entry.version} is the champion again")


_add_decision(
    "hold",
    "Puts a version on hold: it answers no new films until it is released.",
    "version {0.version} is on hold since {0.at}, by {0.by}: {0.reason}",
)


_add_decision("release", "Takes a version off hold.", "version {0.version} is off hold, by {0.by}")


@registry.command()
def repair(reason: Reason, by: By, key: Key = None) -> None:
    """Puts aliases that were moved by something else back to where the record of decisions says."""
    from pipeline import ledger

    entry = ledger.repair(by=by, reason=reason, caller=_caller(key))
    print(f"version {entry.version} is the champion, as the record says")
