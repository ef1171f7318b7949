"""The result of one check."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from attachments.foundation.numerals import counted

Status = Literal["ok", "warning", "failed"]


class Finding(BaseModel):
    """One line of the doctor's output.

    `check` is the check's stable name, `subject` which of several objects it checked; `text` says what was found and
    `remedy` what to do. None of these contains a customer's name or address, because they also go to Prefect.
    """

    model_config = ConfigDict(frozen=True)

    check: str
    subject: str | None = None
    status: Status
    text: str
    remedy: str = ""
    names: tuple[str, ...] = Field(default=(), exclude=True, repr=False)
    """Printed only on the caller's terminal."""

    @property
    def about(self) -> str:
        """The check and its subject."""
        return f"{self.check} {self.subject}" if self.subject else self.check

    def __str__(self) -> str:
        word = "FAILED" if self.status == "failed" else self.status
        return f"{word:<9}{self.about}: {self.text}{f' {self.remedy}' if self.remedy else ''}"


def ok(check: str, text: str, *, subject: str | None = None, names: Sequence[str] = ()) -> Finding:
    """A check that passed."""
    return Finding(check=check, subject=subject, status="ok", text=text, names=tuple(names))


def warning(check: str, text: str, remedy: str = "", *, subject: str | None = None) -> Finding:
    """Something works but needs attention, or could not be checked."""
    return Finding(check=check, subject=subject, status="warning", text=text, remedy=remedy)


def failed(check: str, text: str, remedy: str, *, subject: str | None = None, names: Sequence[str] = ()) -> Finding:
    """Something does not work until a person corrects it."""
    return Finding(check=check, subject=subject, status="failed", text=text, remedy=remedy, names=tuple(names))


def summary(findings: Sequence[Finding]) -> str:
    """One sentence with the counts and the failed checks."""
    counts = Counter(finding.status for finding in findings)
    warnings = f", {counted(counts['warning'], 'warning')}" if counts["warning"] else ""
    if not counts["failed"]:
        return f"Nothing failed in {counted(len(findings), 'check')}{warnings}."
    about = ", ".join(finding.about for finding in findings if finding.status == "failed")
    return f"{counts['failed']} of {counted(len(findings), 'check')} failed{warnings}: {about}."


def by_urgency(findings: Iterable[Finding]) -> list[Finding]:
    """Failures first, then warnings, then passed checks; otherwise in the original order."""
    return sorted(findings, key=lambda finding: ("failed", "warning", "ok").index(finding.status))
