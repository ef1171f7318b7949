"""What is wrong with a block that cannot be used."""

from pydantic import ValidationError


def reasons(error: ValidationError) -> str:
    """Our own validators' words for it, which show no values; the fields' names where pydantic itself refuses."""
    details = error.errors(include_input=False)
    problems = [str(detail["ctx"]["error"]) for detail in details if detail["type"] == "value_error"]
    fields = sorted({str(detail["loc"][0]) for detail in details if detail["type"] != "value_error" and detail["loc"]})
    return "; ".join([*dict.fromkeys(problems), *(f"{field} is wrong" for field in fields)]) or "its fields are wrong"
