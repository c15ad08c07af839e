"""What locust's clients do: score and rerank for known users, onboard new ones, ask for questions, look users up."""

import os
import random
import uuid

from locust import FastHttpUser, constant_pacing, task

PROMPTS = [f"Explain {what}." for what in ("tides", "bread", "chess", "rain", "wool", "maps", "salt", "bees")]
ANSWERS = [
    "Step one: begin with what you have.",
    "What a lovely question, dear reader!",
    "Be careful, and ask a doctor.",
    "In short: yes.",
]


class Person(FastHttpUser):
    """Somebody's application."""

    wait_time = constant_pacing(float(os.environ.get("PACING", "0.5")))

    def on_start(self) -> None:
        """As who they come."""
        self.headers = {"Authorization": f"Bearer {os.environ['KEY']}"}
        self.person = f"person-{uuid.uuid4()}"

    @task(10)
    def score(self) -> None:
        user = random.choice([f"user-{random.randrange(1, 800):04d}", self.person])
        body = {"user": user, "prompt": random.choice(PROMPTS), "responses": ANSWERS}
        self.client.post("/v1/score", json=body, headers=self.headers)

    @task(4)
    def rerank(self) -> None:
        body = {"user": self.person, "query": random.choice(PROMPTS), "documents": ANSWERS, "top_n": 2}
        self.client.post("/v2/rerank", json=body, headers=self.headers)

    @task(4)
    def choose(self) -> None:
        chosen, rejected = random.sample(ANSWERS, 2)
        body = {"comparisons": [{"prompt": f"{random.choice(PROMPTS)} {uuid.uuid4()}", "chosen": chosen, "rejected": rejected}]}
        path = f"/v1/users/{self.person}/comparisons"
        with self.client.post(
            path, json=body, headers=self.headers, name="/v1/users/{user}/comparisons", catch_response=True
        ) as answer:
            if answer.status_code == 200:
                with open(os.environ["ACKNOWLEDGED"], "a") as file:
                    file.write(body["comparisons"][0]["prompt"] + "\n")

    @task(2)
    def ask(self) -> None:
        self.client.get(f"/v1/users/{self.person}/next-comparison", headers=self.headers, name="/v1/users/{user}/next-comparison")

    @task(1)
    def look(self) -> None:
        self.client.get(f"/v1/users/{self.person}", headers=self.headers, name="/v1/users/{user}")

    @task(1)
    def start_again(self) -> None:
        """Somebody else: the number of users grows."""
        self.person = f"person-{uuid.uuid4()}"
