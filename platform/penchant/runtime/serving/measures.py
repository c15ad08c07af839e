"""What the service counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from penchant.runtime.serving.chat.events import Ended, Started
from penchant.runtime.serving.engine import ScoreAnswer

_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
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
        self._scored = counter("scored_responses", "Responses scored, by how and by what", "personalisation", "bundle")
        self._requests = counter("score_requests", "Score requests, by how they were personalised", "personalisation", "bundle")
        self._onboardings = counter("onboardings", "Times a user was onboarded", "bundle")
        self._compared = counter("new_comparisons", "New comparisons that the scores were held against", "bundle")
        right = "New comparisons that the scores had right before they were known"
        self._agreed = counter("new_comparisons_agreed", right, "bundle")
        self._texts = counter("texts", "Look-ups of texts by the models, by whether they were remembered or encoded", "found")

        def histogram(name: str, text: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(f"penchant_{name}", text, buckets=buckets, registry=self.registry)

        self._batches = histogram("batch_requests", "Score requests that were scored together", _BATCHES)
        self._model = histogram("model_seconds", "Time that the model took for a score request's batch", _SECONDS)
        self._waited = histogram("scorer_wait_seconds", "Time of a score request on the way to the model and back", _SECONDS)
        self._generations = counter("generations", "Chats answered, by how they were personalised", "personalisation", "base")
        self._tokens = counter("chat_tokens", "Tokens of chats, by whether they were read or written", "kind")
        first = "Time from a chat's arrival at a replica to its first token, by whether the user's adapter was in memory"
        self._first_token = Histogram(
            "penchant_first_token_seconds", first, ("adapter",), buckets=_SECONDS, registry=self.registry
        )
        self._rows = histogram("chat_rows", "Answers that were written side by side when a chat's first token came", _BATCHES)
        self._adapters = counter("adapters", "Adapters that replicas read, and that made room for others", "happened")

    def began(self) -> None:
        """A request came in."""
        self._working.inc()

    def ended(self, endpoint: str, status: int, seconds: float) -> None:
        """A request was answered."""
        self._working.dec()
        self._seconds.labels(endpoint, str(status)).observe(seconds)

    def scored(self, answer: ScoreAnswer, *, seconds: float) -> None:
        """A score request was answered by a replica.

        Args:
            answer: The replica's.
            seconds: How long it took, with the way there and back.
        """
        labels = (answer.personalisation, answer.bundle)
        self._scored.labels(*labels).inc(len(answer.score))
        self._requests.labels(*labels).inc()
        self._model.observe(answer.seconds)
        self._waited.observe(max(0.0, seconds - answer.seconds))
        if answer.batch is not None:
            self._batches.observe(answer.batch.requests)
            self._texts.labels("remembered").inc(answer.batch.texts_remembered)
            self._texts.labels("encoded").inc(answer.batch.texts_encoded)

    def onboarded(self, bundle: str, *, agreed: float, comparisons: int) -> None:
        """A user was onboarded with new comparisons, so many of which the scores had right."""
        self._onboardings.labels(bundle).inc()
        self._compared.labels(bundle).inc(comparisons)
        self._agreed.labels(bundle).inc(agreed)

    def generated(self, started: Started, ended: Ended, tokens: int) -> None:
        """A chat was answered by a replica, in so many tokens."""
        self._generations.labels(started.how, started.base).inc()
        self._tokens.labels("read").inc(started.prompt_tokens)
        self._tokens.labels("written").inc(tokens)
        adapter = "none" if started.how != "own" else "cold" if started.cold else "warm"
        self._first_token.labels(adapter).observe(ended.first_token_seconds)
        self._rows.observe(ended.rows)
        self._adapters.labels("loaded").inc(ended.loads)
        self._adapters.labels("evicted").inc(ended.evictions)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)
