"""What the service counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class Measures:
    """Counters, in a registry of their own. No measure has a user, a text or a key in it."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"penchant_{name}", text, labels, registry=self.registry)

        self._seconds = Histogram(
            "penchant_request_seconds",
            "Time from request to answer",
            ("endpoint", "status"),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._working = Gauge("penchant_requests_in_work", "Requests that wait for an answer", registry=self.registry)
        self._scored = counter("scored_responses", "Responses scored, by how the scores were personalised", "personalisation")
        self._requests = counter("score_requests", "Score requests, by how they were personalised", "personalisation")
        self._onboardings = counter("onboardings", "Times a user was onboarded")
        self._compared = counter("new_comparisons", "New comparisons that the scores were held against")
        self._agreed = counter("new_comparisons_agreed", "New comparisons that the scores had right before they were known")

    def began(self) -> None:
        """A request came in."""
        self._working.inc()

    def ended(self, endpoint: str, status: int, seconds: float) -> None:
        """A request was answered."""
        self._working.dec()
        self._seconds.labels(endpoint, str(status)).observe(seconds)

    def scored(self, personalisation: str, responses: int) -> None:
        """Responses were scored."""
        self._scored.labels(personalisation).inc(responses)
        self._requests.labels(personalisation).inc()

    def onboarded(self, *, agreed: float, comparisons: int) -> None:
        """A user was onboarded with new comparisons, so many of which the scores had right."""
        self._onboardings.inc()
        self._compared.inc(comparisons)
        self._agreed.inc(agreed)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)
