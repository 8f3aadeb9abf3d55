"""Judges the champion on the latest films that it scored, by the plan it came with, and puts it on hold.

Nothing here can make a champion better or worse than it is: a hold only says that people have to look.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openmed.errors import BadInput
from openmed.files import read_json, write_json, write_text
from openmed.gates.gate import FAIL, Gate
from pipeline import ledger, registry
from pipeline.monitoring.asking import drawn_with
from pipeline.monitoring.judging import checks, wording
from pipeline.monitoring.judging.judge import judge
from pipeline.monitoring.judging.looks import Looks
from pipeline.monitoring.judging.subject import Subject
from pipeline.monitoring.log import ScoreLog, labels, read_asks
from pipeline.monitoring.oversight import LogState, look_after, note_head
from pipeline.monitoring.sharing import WATCH_PAGE, sharing
from pipeline.monitoring.windows import Eligible, by_content, latest, released, windows
from pipeline.promotion.gates.evidence import Evidence
from pipeline.settings.project import locked

if TYPE_CHECKING:
    import pandas as pd

    from openmed.metrics.score_intervals import Interval
    from openmed.monitoring.drift import Shift

_COLUMNS = ("sha256", "patient", "score", "scored_at")


@dataclass(frozen=True)
class Period:
    """One window of films, the last of them scored at `until` (UTC, ISO 8601).

    Of each metric, what the probabilities expect, where it rests on enough films, and what labels show.
    """

    films: int
    until: str
    expected: "Mapping[str, Interval]"
    measured: "Mapping[str, Interval]"

    def to_json(self) -> dict[str, Any]:
        """Returns plain values."""
        shown = {
            way: {name: intervals[name].to_json() for name in checks.NAMES if name in intervals}
            for way, intervals in (("expected", self.expected), ("measured", self.measured))
        }
        return {"films": self.films, "until": self.until, **shown}


@dataclass(frozen=True)
class Watch:
    """What a look at the champion's latest films showed.

    Attributes:
        verdict: PASS, FAIL, WARNING, or INSUFFICIENT EVIDENCE where no check fails or warns and one cannot
            be made.
        news: Whether the last watch said otherwise.
        films: How many were judged, of so many patients; `labelled` ones were judged by their labels.
        share: Of the finding, estimated (0..1); None where it was not.
        flagged: Share of the films called a finding: `now`, and of the `test` films; None without films.
        referred: Reason -> number of films.
        periods: The latest windows, the oldest first.
        oversight: What the log of answers holds, and how often readers overrule.
        hold: The reason that holds the version; None when nothing does.
        problem: Why it may not answer although it is not on hold, such as a moved alias; None when it may.
        at: When it was made, UTC.
    """

    version: str
    verdict: str
    news: bool
    sentence: str
    films: int
    patients: int
    labelled: int
    share: "Interval | None"
    flagged: Mapping[str, float | None]
    referred: Mapping[str, int]
    checks: list[Gate]
    shifts: "list[Shift]"
    periods: list[Period]
    oversight: LogState
    hold: str | None
    problem: str | None
    page: Path
    at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="microseconds"))

    def to_json(self) -> dict[str, Any]:
        """Returns the content of watch.json."""
        lists = {
            name: [each.to_json() for each in vars(self)[name]] for name in ("checks", "shifts", "periods")
        }
        return (
            vars(self)
            | lists
            | {
                "share": self.share and self.share.to_json(),
                "oversight": self.oversight.to_json(),
                "page": str(self.page),
            }
        )


@sharing()
def watch(home: Path) -> Watch:
    """Judges the champion on its latest films; when they show it as surely too bad, it goes on hold.

    Compared are their looks with those of the films that it was trained on, at their share of the finding;
    what is expected of it from its own probabilities, which only warns; what it did where labels have come;
    and how much it refers. A check fails only when its whole interval lies beyond the limit of the change
    plan, at a confidence that lets all looks together err as seldom as the plan says. Films that a person
    has released the version on are not judged again. Which films are the latest does not depend on names
    (`pipeline.monitoring.windows`); what it did is measured on windows of their own: the latest films with
    labels, half of them with the finding where there are so many, and the latest of those that were drawn
    to be labelled. Writes watch.json and watch.html in `watch` below the state folder.

    Raises:
        BadInput: There is no champion.
        IntegrityError: The champion's evidence or the log was changed.
    """
    # Of an alias that was moved the page is to tell too.
    version, reference = registry.champion_profile(moved_too=True)
    if version is None:
        raise BadInput("there is no champion to watch: promote a version first")
    evidence, log, known = Evidence.of(version), ScoreLog(home, version), labels(home)
    subject, plan, after = Subject.of(evidence), evidence.plan.protocol.monitoring, released(version)
    films = latest(log, plan.films, Eligible(after), None)
    labelled = _labelled(home, subject, log, known, after, plan.films)
    with locked("looks"):
        looks = Looks(*(folder / "looks.json" for folder in log.folders))
        judged = judge(subject, plan, films, reference, labelled, looks)
        looks.save()
    seen = (len(films), int(films["patient"].nunique()), sum(map(len, labelled.values())))
    sentence = wording.sentence(version, judged.checks, seen, plan)
    _, problem = ledger.recorded_champion()
    if judged.verdict == FAIL and problem is None:
        ledger.hold(version, by=ledger.MONITORING, reason=sentence)
    held, page = ledger.on_hold().get(version), Path(home) / WATCH_PAGE
    result = Watch(
        *(version, judged.verdict, _before(page) != (version, judged.verdict), sentence, *seen, judged.share),
        flagged={"now": _flagged(films, evidence), "test": _flagged(evidence.test, evidence)},
        referred=_reasons(films),
        checks=judged.checks,
        shifts=judged.shifts,
        periods=list(_periods(subject, log, known, plan.films))[::-1],
        oversight=look_after(home, plan.keep_answers_days),
        hold=held.reason if held else None,
        problem=problem,
        page=page,
    )
    _write(result, reference, films)
    note_head(home, version, result.oversight)
    return result


def _before(page: Path) -> tuple[str, str] | None:
    """Version and verdict of the last watch; None where there was none."""
    with suppress(BadInput, KeyError):
        last = read_json(page.with_suffix(".json"))
        return last["version"], last["verdict"]
    return None


def _labelled(
    home: Path, subject: Subject, log: ScoreLog, known: dict[str, str], after: str, films: int
) -> "dict[str, pd.DataFrame]":
    """The latest films with labels, those that were drawn to be labelled apart from those that came unasked.

    Of those that came: half of `films` with the finding, half without it, if so many came. Sensitivity,
    specificity and AUC do not hang on how frequent the finding is, only on enough films of each.
    """
    import pandas as pd

    drawn = drawn_with(read_asks(home, log.version), set(known))
    came = known.keys() - set(drawn.index)
    having = {digest for digest in came if known[digest] == subject.positive}
    parts = [pd.DataFrame(columns=[*_COLUMNS])]
    for side in (having, came - having):
        if side:
            parts += islice(windows(log, math.ceil(films / 2), _COLUMNS, Eligible(after, side)), 1)
    sampled = latest(log, films, Eligible(after, set(drawn.index)), _COLUMNS)
    return {
        "measured": _with_truth(pd.concat(parts[1:] or parts), known),
        "sampled": _with_truth(sampled, known).assign(probability=sampled["sha256"].map(drawn)),
    }


def _with_truth(films: "pd.DataFrame", known: dict[str, str]) -> "pd.DataFrame":
    return by_content(films.assign(truth=films["sha256"].map(known)))


def _reasons(films: "pd.DataFrame") -> dict[str, int]:
    """How many films were referred for each reason; older answers, which name none, know only one."""
    from openmed.inference.referral import NO_CLASS

    referrals = films.reindex(columns=["refer", "reason"])
    reasons = referrals.loc[referrals["refer"].eq(True).fillna(False), "reason"]
    return reasons.replace("", NO_CLASS).fillna(NO_CLASS).value_counts().to_dict()


def _flagged(films: "pd.DataFrame", evidence: Evidence) -> float | None:
    return float((films["score"] >= evidence.spec.threshold).mean()) if len(films) else None


def _periods(subject: Subject, log: ScoreLog, known: dict[str, str], films: int) -> Iterator[Period]:
    """Expected and measured performance of the latest windows, the latest first."""
    for part in islice(windows(log, films, _COLUMNS), 12):
        part = _with_truth(part, known)
        expected, counts = checks.expected(subject, part)
        answered = part[part["truth"].notna()]
        measured = checks.measured(subject, answered)[0] if len(answered) else {}
        yield Period(
            len(part),
            part["scored_at"].max(),
            {name: expected[name] for name in counts if counts[name] >= checks.MIN_FILMS},
            {name: each.interval(0.95) for name, each in measured.items()},
        )


def _write(result: Watch, reference: "pd.DataFrame | None", films: "pd.DataFrame") -> None:
    from pipeline.report.watch_page import build_watch_page

    content = result.to_json()
    write_text(result.page, build_watch_page(content, reference, films))
    write_json(result.page.with_suffix(".json"), content)
