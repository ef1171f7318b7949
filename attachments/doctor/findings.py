"""What the doctor says of one thing that it has looked at."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from attachments.foundation.numerals import counted

Status = Literal["ok", "warning", "failed"]


class Finding(BaseModel):
    """One line of the doctor's.

    `check` is the stable name of what was looked at, `subject` which one of several; `text` says how it is and
    `remedy` what to do about it. None of these holds a customer's name or address: they go to Prefect as well.
    """

    model_config = ConfigDict(frozen=True)

    check: str
    subject: str | None = None
    status: Status
    text: str
    remedy: str = ""
    names: tuple[str, ...] = Field(default=(), exclude=True, repr=False)
    """For the terminal of whoever asks, and for nothing else."""

    @property
    def about(self) -> str:
        """What was looked at, in a few words."""
        return f"{self.check} {self.subject}" if self.subject else self.check

    def __str__(self) -> str:
        word = "FAILED" if self.status == "failed" else self.status
        return f"{word:<9}{self.about}: {self.text}{f' {self.remedy}' if self.remedy else ''}"


def ok(check: str, text: str, *, subject: str | None = None, names: Sequence[str] = ()) -> Finding:
    """It is as it should be."""
    return Finding(check=check, subject=subject, status="ok", text=text, names=tuple(names))


def warning(check: str, text: str, remedy: str = "", *, subject: str | None = None) -> Finding:
    """It works, or could not be looked at; somebody should know."""
    return Finding(check=check, subject=subject, status="warning", text=text, remedy=remedy)


def failed(check: str, text: str, remedy: str, *, subject: str | None = None, names: Sequence[str] = ()) -> Finding:
    """It does not work until somebody does something."""
    return Finding(check=check, subject=subject, status="failed", text=text, remedy=remedy, names=tuple(names))


def summary(findings: Sequence[Finding]) -> str:
    """All of it in one sentence, that names what failed."""
    counts = Counter(finding.status for finding in findings)
    warnings = f", {counted(counts['warning'], 'warning')}" if counts["warning"] else ""
    if not counts["failed"]:
        return f"Nothing failed in {counted(len(findings), 'check')}{warnings}."
    about = ", ".join(finding.about for finding in findings if finding.status == "failed")
    return f"{counts['failed']} of {counted(len(findings), 'check')} failed{warnings}: {about}."


def by_urgency(findings: Iterable[Finding]) -> list[Finding]:
    """What failed, then the warnings, then what is as it should be; each as it was looked at."""
    return sorted(findings, key=lambda finding: ("failed", "warning", "ok").index(finding.status))
