"""Which flows the warm worker runs: those that its host allows, whatever a deployment in Prefect asks for.

Anyone who reaches Prefect's API can create a deployment, and a deployment says what code its runs execute: pull steps
are commands, and an entrypoint can name a file, code in a storage block, or any module below the worker's working
directory or among its packages. So the worker runs this product's own flows, and what `ATTACHMENTS_WORKER_FLOWS` names.
"""

from attachments.runs.deployment_spec import current_entrypoint, declared_deployments

VARIABLE = "ATTACHMENTS_WORKER_FLOWS"
ANY = "*"
UNLESS_YOURS = f"If the deployment is yours and should run, set {VARIABLE}={ANY} for the worker and restart it."
NO_DEPLOYMENT = "Not started: the run belongs to no deployment, and this worker runs deployments only. Deploy its flow."


class FlowNotAllowed(Exception):
    """The worker does not run this deployment's code; the text says what to do."""


def check_allowed(entrypoint: str | None, *, has_pull_steps: bool, allowed: str) -> None:
    """Raise `FlowNotAllowed` unless the worker may run the code that a deployment names.

    `allowed` is the variable's value: names of packages, modules or flows, comma-separated, whose flows run as well, or
    `*` for whatever a deployment names.
    """
    if ANY in _names(allowed):
        return
    if has_pull_steps:
        raise FlowNotAllowed(
            "Not started: the deployment has pull steps, which are commands for the worker, and this worker runs none. "
            f"Deploy it with `pull: []`. {UNLESS_YOURS}"
        )
    if not entrypoint or ":" in entrypoint:
        raise FlowNotAllowed(
            "Not started: the deployment's code is a file, and this worker runs flows of modules only. Deploy it "
            f"with an entrypoint such as package.module.flow. {UNLESS_YOURS}"
        )
    if not _is_ours(entrypoint) and not is_named(entrypoint, allowed):
        raise FlowNotAllowed(
            "Not started: the deployment's flow is none that this worker may run. If it is yours, add the name of its "
            f"package to {VARIABLE} for the worker and restart it."
        )


def is_named(entrypoint: str, allowed: str) -> bool:
    """Whether the variable's value names the flow that an entrypoint leads to, or all flows."""
    return any(name == ANY or f"{entrypoint}.".startswith(f"{name}.") for name in _names(allowed))


def _names(allowed: str) -> list[str]:
    return [name.strip() for name in allowed.split(",") if name.strip()]


def _is_ours(entrypoint: str) -> bool:
    """Whether it is a flow of this product, also by the name that it had in version 0.1: `load_flow` maps that."""
    return any(spec["entrypoint"] == current_entrypoint(entrypoint) for spec in declared_deployments())
