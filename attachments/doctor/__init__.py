"""Looks whether all that the product needs is there and right, and says what to do where it is not."""

from attachments.doctor.examination import examine
from attachments.doctor.findings import Finding, by_urgency, summary

__all__ = ["Finding", "by_urgency", "examine", "summary"]
