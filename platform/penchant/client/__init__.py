"""The service's client: plain Python over HTTP, without the model, Ray or the server.

    from penchant.client import Client, Comparison

    with Client("http://127.0.0.1:8000") as client:  # the key is PENCHANT_KEY
        client.add_comparisons("ana", [Comparison("Why is the sky blue?", chosen="Ha! Paint.", rejected="Scattering.")])
        client.score("ana", "Explain tides.", ["The moon pulls.", "Joke of the day: the sea waved."]).scores

`penchant.client.trl` makes a user's scores a reward for TRL's trainers.
"""

from penchant.client.answers import Comparison, Question, Ranked, Ranking, Scores, Stored, UserInfo
from penchant.client.client import AsyncClient, Client
from penchant.client.errors import AuthenticationError, ClientError, RequestError, ServiceUnavailable

__all__ = [
    "AsyncClient",
    "AuthenticationError",
    "Client",
    "ClientError",
    "Comparison",
    "Question",
    "Ranked",
    "Ranking",
    "RequestError",
    "Scores",
    "ServiceUnavailable",
    "Stored",
    "UserInfo",
]
