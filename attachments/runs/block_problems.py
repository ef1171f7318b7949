"""Describes why a block is not valid."""

from pydantic import ValidationError


def reasons(error: ValidationError) -> str:
    """The texts of this project's validators, which contain no values; for pydantic's own errors, the fields' names."""
    details = error.errors(include_input=False)
    problems = [str(detail["ctx"]["error"]) for detail in details if detail["type"] == "value_error"]
    fields = sorted({str(detail["loc"][0]) for detail in details if detail["type"] != "value_error" and detail["loc"]})
    return "; ".join([*dict.fromkeys(problems), *(f"{field} is wrong" for field in fields)]) or "its fields are wrong"
