"""The receiver's metrics, in Prometheus' text format."""

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest


class Metrics:
    """The receiver's counters and gauges; none carries customer data."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.deliveries = Counter(
            "attachments_deliveries",
            "Webhook deliveries by outcome.",
            ["outcome"],
            registry=self.registry,
        )
        self.dispatched = Counter(
            "attachments_dispatched", "Flow runs that Prefect has created.", registry=self.registry
        )
        self.failing = Gauge(
            "attachments_dispatch_failures", "Consecutive failures to create a flow run.", registry=self.registry
        )
        self.depth = Gauge("attachments_inbox_entries", "Deliveries waiting for Prefect.", registry=self.registry)
        self.oldest = Gauge(
            "attachments_inbox_oldest_seconds", "Age of the oldest waiting delivery.", registry=self.registry
        )

    def text(self) -> bytes:
        """All metrics, as the body of `GET /metrics`."""
        return generate_latest(self.registry)
