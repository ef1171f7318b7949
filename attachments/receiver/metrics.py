"""What the receiver counts, in Prometheus' text format."""

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest


class Metrics:
    """The receiver's counters and gauges; none carries customer data."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.deliveries = Counter(
            "attachments_deliveries",
            "Webhook deliveries by what was answered.",
            ["outcome"],
            registry=self.registry,
        )
        self.dispatched = Counter("attachments_dispatched", "Flow runs that Prefect has taken.", registry=self.registry)
        self.failing = Gauge(
            "attachments_dispatch_failures", "Failures in a row while creating flow runs.", registry=self.registry
        )
        self.depth = Gauge("attachments_inbox_entries", "Deliveries that wait for Prefect.", registry=self.registry)
        self.oldest = Gauge(
            "attachments_inbox_oldest_seconds", "Age of the delivery that waits longest.", registry=self.registry
        )

    def text(self) -> bytes:
        """All of them, as `GET /metrics` answers."""
        return generate_latest(self.registry)
