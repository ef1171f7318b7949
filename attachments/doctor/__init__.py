"""Health checks: whether everything that this product needs exists and is set up correctly, and what to do if not."""

from attachments.doctor.checks import run_checks
from attachments.doctor.findings import Finding, by_urgency, summary

__all__ = ["Finding", "by_urgency", "run_checks", "summary"]
