"""How long a run has been in one state, by the clock of one worker."""

from datetime import UTC, datetime

from prefect.states import Pending

from attachments.worker.liveness_monitor import LivenessMonitor
from attachments.worker.timings import WorkerTimings
from tests.worker.prefect_stand_in import pending


def test_the_time_in_a_state_begins_when_the_state_is_first_seen() -> None:
    """It begins again with a new state, and for a run that was missing at the check before."""
    clock, run = [1000.0], pending()
    monitor = LivenessMonitor(WorkerTimings(), lambda: clock[0])
    seen = []
    for seconds in (0, 5, 5):
        clock[0] += seconds
        assert monitor.is_check_due()
        seen.append(monitor.seconds_unchanged(run))
    run.state = Pending(timestamp=datetime.now(UTC))
    clock[0] += 5
    assert monitor.is_check_due()
    seen.append(monitor.seconds_unchanged(run))
    clock[0] += 5
    assert monitor.is_check_due()
    clock[0] += 5
    assert monitor.is_check_due()
    seen.append(monitor.seconds_unchanged(run))
    assert seen == [0, 5, 10, 0, 0]


def test_others_are_judged_only_after_prefect_has_responded_for_a_while() -> None:
    """While it did not, it recorded nobody's heartbeat."""
    clock = [1000.0]
    monitor = LivenessMonitor(WorkerTimings(heartbeat_timeout=20), lambda: clock[0])
    monitor.api_answered()
    clock[0] += 19
    assert not monitor.can_judge
    clock[0] += 1
    assert monitor.can_judge
    monitor.api_failed()
    monitor.api_answered()
    assert not monitor.can_judge
